"""One timed run of one model: a prompt in one forward call, then greedy decoding from the exact cache.

Legend: B sequences, T prompt tokens.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .compiled import CompiledDecoder

__all__ = ["Timing", "mark", "now", "random_prompts", "run_calls", "seconds_between", "time_model"]


@dataclass(frozen=True)
class Timing:
    """What one run took.

    Attributes:
        prefill_seconds: reading the prompts and choosing one token after each.
        decode_seconds: all decoding steps together.
        cache_bytes: keys and values that the cache holds after the last step.
        tokens: (B, steps + 1), the tokens chosen, on the model's device.
    """

    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int
    tokens: Tensor


@torch.inference_mode()
def time_model(model: Any, prompts: Tensor, num_steps: int, decoder: CompiledDecoder | None = None) -> Timing:
    """Run and time a causal language model (ours).

    Our own loop rather than generate(), whose bookkeeping would be timed along.

    prompts: (B, T) token ids on the model's device. num_steps: decoding steps, at least 1; each is one forward
    call that reads one token of each sequence and chooses the next. decoder: runs it instead, compiled.
    """
    cache: Any = DynamicCache(config=model.config) if decoder is None else decoder.new_cache()
    run = partial(run_calls, model) if decoder is None else decoder.run_calls
    calls = run(prompts, cache)
    started = now(prompts.device)
    chosen = [next(calls)]
    prefilled = now(prompts.device)
    chosen += [next(calls) for _ in range(num_steps)]
    ended = now(prompts.device)
    return Timing(prefilled - started, ended - prefilled, _cache_bytes(cache), torch.cat(chosen, 1))


def run_calls(model: Any, prompts: Tensor, cache: Any) -> Iterator[Tensor]:
    """The next token of each sequence, (B, 1), after one forward call each: the prompts', then a decoding step's.

    prompts: (B, T) on the model's device. cache: empty; it is filled. Endless, and in the caller's grad mode.
    """
    takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    only_last = {"logits_to_keep": 1} if takes_keep else {}
    inputs = prompts
    while True:
        logits = model(input_ids=inputs, past_key_values=cache, use_cache=True, **only_last).logits
        inputs = logits[:, -1:].argmax(-1)  # (B, 1)
        del logits
        yield inputs


def random_prompts(batch_size: int, num_tokens: int, vocab_size: int, seed: int) -> Tensor:
    """(batch_size, num_tokens) token ids below vocab_size, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch_size, num_tokens), generator=generator)


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def mark(device: torch.device) -> Any:
    """A moment in the device's work, for `seconds_between`.

    On a GPU it is an event in its stream: waiting for the device at every mark would slow what is measured.
    """
    if device.type != "cuda":
        return now(device)
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(start: Any, end: Any) -> float:
    """Seconds from one mark to another, once the device has passed both."""
    if isinstance(start, torch.cuda.Event):
        return float(start.elapsed_time(end)) / 1000  # it counts milliseconds
    return float(end - start)


def _cache_bytes(cache: DynamicCache) -> int:
    """Of the tensors as they are, whatever a model's cache leaves out (a sliding window, say)."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
