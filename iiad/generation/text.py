"""Text from a model: a prompt, and what the model says next, through transformers' own generate() or with a draft.

Legend: T tokens of the prompt.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from iiad.artefacts import ModelIdentity
from iiad.checkpoints import choose_device, choose_dtype, load_identified
from iiad.data import load_tokenizer
from iiad.errors import InputError
from iiad.memory import memory_explained
from iiad.planning import Plan
from iiad.planning.plan import read_plan, truncated_identity

from .continuation import continue_with_draft
from .draft_choice import Choice
from .drafts import Draft, check_draft_options, load_draft
from .speculation import Speculation
from .token_choice import Chooser

__all__ = [
    "Generation",
    "check_sampling",
    "generate_text",
    "load_drafted_generator",
    "load_generator",
    "read_prompt",
    "text_streamer",
]


@dataclass(frozen=True)
class Generation:
    """What a model said.

    Attributes:
        texts: one per sample, the prompt included, special tokens left out.
        num_new_tokens: tokens generated, over all samples, the one that ends a text included.
        seconds: what it took, reading the prompt included, without what the choice of a draft took.
        speculation: what the draft and the teacher did; None without a draft.
        choice: how the draft's plan and length were measured; None where they were given.
    """

    texts: list[str]
    num_new_tokens: int
    seconds: float
    speculation: Speculation | None = None
    choice: Choice | None = None

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, over all samples."""
        return self.num_new_tokens / max(self.seconds, 1e-9)


def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str = "",
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    num_samples: int = 1,
    streamer: Any = None,
    draft: Draft | None = None,
) -> Generation:
    """Continue a prompt with the model's own plan and cache.

    With a draft (lossless mode) the greedy text is the same and samples have the same distribution, but not the
    same tokens for the same seed (`iiad.speculation.speculate`).

    The same seed gives the same text on the same machine; the caller's random state is left as it was. What
    ends a text, and anything else that is not an argument here, is up to the model's generation_config.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompt: text to go on from; empty starts at the beginning of a text.
        max_new_tokens: the most tokens to add.
        temperature: 0 takes the likeliest token each time (greedy), above 0 samples.
        top_k: sample among the k likeliest tokens; default: all.
        top_p: sample among the likeliest tokens that hold this share of probability; default: all.
        seed: of the sampling.
        num_samples: texts to make; more than one only when sampling.
        streamer: told every token as it comes, as transformers' TextStreamer; for one sample only.
        draft: proposes tokens, which makes one sample faster; see `load_drafted_generator`.

    Raises:
        InputError: a value out of range, prompt and new tokens that do not fit in max_position_embeddings, a draft
            that cannot follow the model, or memory runs out.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed, num_samples)
    if streamer is not None and num_samples > 1:
        raise InputError(f"num_samples: found {num_samples} with a streamer; accepted: 1")
    if draft is not None and num_samples > 1:
        raise InputError(f"num_samples: found {num_samples} with a draft; accepted: 1")
    prompt_ids = _encode(model, tokenizer, prompt, max_new_tokens)  # (1, T)
    devices = [model.device] if model.device.type == "cuda" else []
    where, length = f"generating on {model.device}", prompt_ids.shape[1] + max_new_tokens
    with torch.random.fork_rng(devices=devices), memory_explained(where, model, num_samples, length):
        torch.manual_seed(seed)
        if draft is not None:
            chooser = Chooser(float(temperature), top_k, top_p)
            said, choice = continue_with_draft(
                model, draft, prompt_ids, max_new_tokens, chooser, _ends(model), streamer
            )
            ids = [*prompt_ids[0].tolist(), *said.tokens]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            return Generation([text], len(said.tokens), said.seconds, said, choice)
        options = _sampling_options(temperature, top_k, top_p)
        started = time.perf_counter()
        made = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_samples,
            pad_token_id=_padding(model, tokenizer),
            streamer=streamer,
            **options,
        ).cpu()  # (num_samples, T + new tokens)
        seconds = time.perf_counter() - started
    kept = [_trim(row, prompt_ids.shape[1], _ends(model)) for row in made]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in kept]
    return Generation(texts, sum(len(row) - prompt_ids.shape[1] for row in kept), seconds)


def _sampling_options(temperature: float, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    """What generate() is told."""
    if temperature > 0:
        # transformers drops all but 50 tokens where top_k is not said; 0 keeps all.
        sampling = {"temperature": float(temperature), "top_k": top_k or 0, "top_p": float(top_p or 1)}
        return {"do_sample": True, **sampling}
    return {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # the defaults: unused


def check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    num_samples: int,
) -> None:
    """Raise InputError for the first value out of range. Needs no model."""
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("num_samples", num_samples, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name}: found {value}; accepted: at least {least}")
    if temperature != 0 and not (math.isfinite(temperature) and 0.01 <= temperature <= 100):
        raise InputError(f"temperature: found {temperature}; accepted: 0 (greedy), or from 0.01 to 100")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k: found {top_k}; accepted: at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p: found {top_p}; accepted: above 0, at most 1")
    sampling = {"top_k": top_k, "top_p": top_p, "num_samples": num_samples if num_samples > 1 else None}
    for name, choice in sampling.items():
        if choice is not None and temperature == 0:
            raise InputError(
                f"{name}: found {choice} with temperature 0 (greedy); accepted: a temperature above 0"
            )


def read_prompt(prompt: str | None, prompt_file: str | Path | None) -> str:
    """The prompt from either place, empty from neither. Raises InputError: both, or a file that is not UTF-8 text."""
    if prompt is not None and prompt_file is not None:
        raise InputError("prompt: found both a text and a file; accepted: one of them")
    if prompt_file is None:
        return prompt or ""
    try:
        return Path(prompt_file).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{prompt_file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{prompt_file}: found byte {error.start} that is not UTF-8; accepted: UTF-8 text"
        ) from None


def load_generator(
    model: str | Path,
    *,
    plan: Plan | str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Any]:
    """A model, truncated to a plan if one is given, and its tokenizer.

    plan: a plan or its file. device: default CUDA where there is one. dtype: of the weights, "float32" or
    "bfloat16"; default float32 on the CPU. Raises InputError for any of them that cannot be used.
    """
    loaded, tokenizer, _ = _load(model, plan, device, dtype)
    return loaded, tokenizer


def load_drafted_generator(
    model: str | Path,
    draft: str | Path,
    *,
    draft_plan: Plan | str | Path | None = None,
    draft_length: int | None = None,
    plan: Plan | str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Any, Draft]:
    """A model, its tokenizer and a draft for it, all as `load_generator` and `iiad.speculation.load_draft`.

    draft: "self", "auto", or a model folder or hub name. draft_plan: for "self", a plan or its file; default: no
    iterations. draft_length: the most tokens to draft at a time; default: measured when generating. Raises
    InputError also for a draft of another vocabulary.
    """
    check_draft_options(model, draft, draft_plan is not None, draft_length)
    draft_budget = read_plan(draft_plan)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    loaded, tokenizer, identity = _load(model, plan, device, dtype)
    made = load_draft(draft, loaded, identity, plan=draft_budget, length=draft_length, dtype=dtype)
    return loaded, tokenizer, made


def _load(
    model: str | Path, plan: Plan | str | Path | None, device: str | None, dtype: str | None
) -> tuple[Any, Any, ModelIdentity]:
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    budget = read_plan(plan)
    loaded, identity = load_identified(model, device, dtype, cast=True)
    if budget is not None:
        runs = truncated_identity(identity, budget)
        if runs.num_iterations != identity.num_iterations:
            loaded.set_num_iterations(runs.num_iterations)
    return loaded, load_tokenizer(model), identity


def text_streamer(tokenizer: Any) -> Any:
    """What prints prompt and text to stdout as they come."""
    return TextStreamer(tokenizer, skip_special_tokens=True)


def _encode(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> Tensor:
    """(1, T) token ids on the model's device, T at least 1."""
    ids = tokenizer(prompt)["input_ids"]
    if not ids:  # what stands before a document's first token
        start = tokenizer.bos_token_id
        ids = [tokenizer.eos_token_id if start is None else start]
    vocab_size = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= vocab_size:
        found = f"its tokenizer gives token {max(ids)}"
        raise InputError(f"prompt: {found}; accepted: below the model's vocabulary of {vocab_size}")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and len(ids) + max_new_tokens > limit:
        found = f"{len(ids)} prompt tokens + {max_new_tokens} new tokens"
        raise InputError(f"prompt: found {found}; accepted: at most {limit} together, the model's positions")
    return torch.tensor([ids], device=model.device)


def _ends(model: Any) -> set[int]:
    """The tokens that end a text, as generate() sees it."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)


def _padding(model: Any, tokenizer: Any) -> int:
    """What fills up samples that ended before others."""
    padding = model.generation_config.pad_token_id
    if padding is None:
        padding = tokenizer.pad_token_id
    return tokenizer.eos_token_id if padding is None else padding


def _trim(row: Tensor, num_prompt: int, ends: set[int]) -> Tensor:
    """A sample up to the token that ended it, without the padding after that. row: (T + new tokens,)."""
    for position in range(num_prompt, len(row)):
        if int(row[position]) in ends:
            return row[: position + 1]
    return row
