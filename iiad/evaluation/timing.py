"""One timed run of one model: a prompt in one forward call, then greedy decoding, eager or compiled. All ours.

An encoder-decoder's prompt is a source, which its encoder reads; its decoder begins with the start token.

Beside it what evaluations share: prompts, the machine, and the check of positions.

Legend: B sequences, T prompt tokens.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from iiad.checkpoints import load_config, read_limits
from iiad.clock import now
from iiad.errors import InputError
from iiad.generation.guards import start_token
from iiad.models.compatibility import cache_argument

__all__ = [
    "Timing",
    "cached_tokens",
    "compile_step",
    "describe_machine",
    "device_name",
    "new_cache",
    "random_prompts",
    "reads_sources",
    "require_compiler",
    "require_positions",
    "run_calls",
    "time_model",
]

CPU_INFO = Path("/proc/cpuinfo")
Step = Callable[..., Any]  # a model's forward


@dataclass(frozen=True)
class Timing:
    """One run.

    Attributes:
        prefill_seconds: reading the prompts and choosing one token after each; encoding sources.
        decode_seconds: all decoding steps together.
        cache_bytes: keys and values that the cache holds after the last step, a source's too.
        tokens: (B, steps + 1), the tokens chosen, or the start token and these, on the model's device.
    """

    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int
    tokens: Tensor


def compile_step(model: Any) -> Step:
    """Compile the model's forward whole (fullgraph), on a GPU with CUDA graphs, to decode from a static cache.

    The first step compiles, which takes tens of seconds; so does a step with another number of sequences, cache
    length or plan.
    """
    mode = "reduce-overhead" if model.device.type == "cuda" else None
    return torch.compile(model.forward, fullgraph=True, dynamic=False, mode=mode)


@torch.inference_mode()
def time_model(model: Any, prompts: Tensor, num_steps: int, step: Step | None = None) -> Timing:
    """Run and time a model, without generate() and its bookkeeping.

    prompts: (B, T) token ids on the model's device. num_steps: decoding steps, at least 1; each is one forward
    call that reads one token of each sequence and chooses the next. step: from `compile_step`, decodes instead; not
    in an encoder-decoder's first step, which makes the source's keys and values.
    """
    cache = new_cache(model, None if step is None else (prompts.shape[1], num_steps))
    calls = run_calls(model, prompts, cache, step)
    started = now(prompts.device)
    chosen = [next(calls)]
    prefilled = now(prompts.device)
    chosen += [next(calls) for _ in range(num_steps)]
    ended = now(prompts.device)
    return Timing(prefilled - started, ended - prefilled, _held_bytes(cache), torch.cat(chosen, 1))


def new_cache(
    model: Any, static: tuple[int, int] | None = None, kind: type[DynamicCache] = DynamicCache
) -> Any:
    """Return an empty cache. static: for so many prompt and new tokens; None: dynamic. kind: of a dynamic one."""
    config = model.config
    if not reads_sources(model):
        return (
            kind(config=config) if static is None else StaticCache(config=config, max_cache_len=sum(static))
        )
    if static is None:
        return EncoderDecoderCache(kind(config=config), kind(config=config))
    source, new = (StaticCache(config=config, max_cache_len=length) for length in static)
    return EncoderDecoderCache(new, source)


def reads_sources(model: Any) -> bool:
    """Return whether the model is an encoder-decoder."""
    return bool(model.config.is_encoder_decoder)


def _held_bytes(cache: Any) -> int:
    """Return the bytes of the tensors themselves, whatever a model's cache leaves out (a sliding window, say)."""
    reads = isinstance(cache, EncoderDecoderCache)
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if reads else (cache,)
    # Of slots for the source a layer uses one.
    layers = [layer for part in parts for layer in part.layers if layer.keys is not None]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def run_calls(model: Any, prompts: Tensor, cache: Any, step: Step | None = None) -> Iterator[Tensor]:
    """Yield the next token of each sequence, (B, 1), after the prompts' forward call and after each decoding step.

    Of an encoder-decoder the first is the start token, when the encoder has run.

    prompts: (B, T) on the model's device. cache: empty; it is filled. step: makes all calls but the first, and the
    encoder's.
    Endless, and in the caller's grad mode.
    """
    takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if takes_keep else {}
    options |= {cache_argument(model): cache, "use_cache": True}
    inputs, name, forward = prompts, "input_ids", model
    if reads_sources(model):
        options["encoder_outputs"] = model.get_encoder()(input_ids=prompts)
        inputs, name = prompts.new_full((len(prompts), 1), start_token(model)), "decoder_input_ids"
        yield inputs
    while True:
        if step is not None and prompts.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # the last step's output has been used
        logits = forward(**{name: inputs}, **options).logits
        inputs, forward = logits[:, -1:].argmax(-1), step or model  # (B, 1)
        del logits
        yield inputs


def random_prompts(batch_size: int, num_tokens: int, vocab_size: int, seed: int) -> Tensor:
    """Return (batch_size, num_tokens) token ids below vocab_size, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch_size, num_tokens), generator=generator)


def require_positions(model: str | Path, prompt_tokens: int, new_tokens: int) -> None:
    """Raise InputError for more tokens than the model has positions for, before it is loaded.

    A source has positions of its own; the target begins with the start token.
    """
    limit, _ = read_limits(model)
    where = f"the max_position_embeddings of {model}"
    if not load_config(model).is_encoder_decoder:
        if prompt_tokens + new_tokens > limit:
            raise InputError(
                f"prompt_tokens + new_tokens: expected at most {limit}, {where}, got {prompt_tokens} + {new_tokens}"
            )
        return
    for name, tokens in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if tokens > limit:
            raise InputError(f"{name}: expected at most {limit}, {where}, got {tokens}")


def cached_tokens(model: Any, prompt_tokens: int, new_tokens: int) -> int:
    """Return the tokens that each slot of self-attention holds in the end."""
    return new_tokens if reads_sources(model) else prompt_tokens + new_tokens


def require_compiler(device: str) -> None:
    """Raise InputError where not even an addition can be compiled: no C++ compiler, no Triton."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of many kinds
        cause = getattr(error, "inner_exception", error)
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise InputError(
            f"compile: expected a C++ compiler (CPU) or Triton (CUDA), got an error on {device}: {reason[:200]}"
        ) from None


def describe_machine(device: str) -> dict[str, Any]:
    """Return the machine's fields of the settings of a bench or a latency table."""
    return {
        "device": device,
        "device_name": device_name(device),
        "num_threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
    }


def device_name(device: str) -> str:
    """Return the model of a GPU or CPU; where the system does not know it, the kind of processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # only Linux has this file
        lines = []
    fields = ((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))
    models = (value for key, value in fields if key == "model name" and value)
    return next(models, None) or platform.processor() or platform.machine()
