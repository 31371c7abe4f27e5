"""Claims about decoding: whatever a cache, a batch or a compiler does, the logits are those of the full forward.

Greedy tokens and ties: two exact ways to the same logits differ by rounding, and where the two best tokens are closer
than that, either way may take either. From there on the texts would differ for no fault. So the tokens that were
decoded with a cache are read once by the model without one, and a token counts as different only if its logit there
is below the highest by more than rounding explains (`Subject.margin`). By induction, a text without such a token is
what the uncached model decodes, up to ties.

Legend: B sequences, P prompt tokens, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache

from iiad.errors import InputError

from .check_subject import Subject
from .claims import LOGITS, TOKENS, Claim, Skipped, count_unlikely_tokens, logit_difference, worst
from .compiled import require_compiler

__all__ = ["DECODING"]

NUM_BEAMS = 4
Forward = Callable[..., Any]


def cached_logits(subject: Subject) -> float:
    """The prompt in one call, then a token a call, through transformers' dynamic cache."""
    logits = _run_pieces(subject, subject.tokens, _one_by_one(subject), _dynamic_cache(subject))
    return logit_difference(logits, subject.logits, subject.deviation)


def cached_tokens(subject: Subject) -> float:
    """Greedy tokens of stock generate()."""
    _require_cache(subject)
    found = _generate(subject, subject.prompts, torch.ones_like(subject.prompts))
    return _count_other_tokens(subject, found)


def padded_logits(subject: Subject) -> float:
    """A batch with a short, left-padded sequence, from a cache; each against itself alone without one.

    The padding is random tokens: what they are must not matter.
    """
    mask = _left_padding(subject)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = _run_pieces(
        subject, subject.tokens, _one_by_one(subject), _dynamic_cache(subject), mask=mask, positions=positions
    )
    figures = []
    for row, own, real in zip(subject.tokens, logits, mask.bool(), strict=True):
        alone = subject.forward(subject.model, row[real][None])[0]
        figures.append(logit_difference(own[real], alone, subject.deviation))
    return worst(figures)


def padded_tokens(subject: Subject) -> float:
    """Greedy tokens of that batch by stock generate(); each row against itself alone."""
    _require_cache(subject)
    mask = _left_padding(subject)[:, : subject.settings.prompt_tokens]
    found = _generate(subject, subject.prompts, mask)
    different = 0
    for row, num_real in zip(found, mask.sum(-1), strict=True):
        num_padding = mask.shape[1] - int(num_real)
        different += _count_other_tokens(subject, row[None, num_padding:])
    return different


def static_logits(subject: Subject) -> float:
    """The same steps through a static cache and through a dynamic one."""
    sizes = _one_by_one(subject)
    found = _run_pieces(subject, subject.tokens, sizes, _static_cache(subject))
    wanted = _run_pieces(subject, subject.tokens, sizes, _dynamic_cache(subject))
    return logit_difference(found, wanted, subject.deviation)


def chunked_logits(subject: Subject) -> float:
    """The sequence in four calls of unequal sizes through one cache."""
    num_tokens = subject.tokens.shape[1]
    sizes = [num_tokens // 2, num_tokens // 4, 1]
    sizes.append(num_tokens - sum(sizes))
    logits = _run_pieces(subject, subject.tokens, sizes, _dynamic_cache(subject))
    return logit_difference(logits, subject.logits, subject.deviation)


def beam_scores(subject: Subject) -> float:
    """The best four beams' scores (nats a token) with a cache and without.

    Scores and not tokens, for the sake of ties: beams that differ in nothing but that have the same score.
    """
    _require_cache(subject)
    prompt = subject.prompts[:1]
    options = {"num_beams": NUM_BEAMS, "num_return_sequences": NUM_BEAMS, "return_dict_in_generate": True}
    cached, uncached = (
        _generate(
            subject, prompt, torch.ones_like(prompt), use_cache=use_cache, output_scores=True, **options
        )
        for use_cache in (True, False)
    )
    return logit_difference(cached.sequences_scores, uncached.sequences_scores, subject.deviation)


def compiled_logits(subject: Subject) -> float:
    """Decoding steps, compiled whole (fullgraph) over a static cache, against the same steps as they are."""
    if not subject.settings.compile:
        raise Skipped("not asked for (--no-compile)")
    sizes = _one_by_one(subject)
    wanted = _run_pieces(subject, subject.tokens, sizes, _static_cache(subject))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, about its own modules
        try:
            require_compiler(subject.settings.device)
        except InputError as error:
            raise Skipped(str(error)) from None
        torch.compiler.reset()  # of each class only so many models are compiled before torch gives up
        try:
            step = torch.compile(subject.model.forward, fullgraph=True, dynamic=False)
            found = _run_pieces(subject, subject.tokens, sizes, _static_cache(subject), step=step)
        finally:
            torch.compiler.reset()
    return logit_difference(found, wanted, subject.deviation)


def _one_by_one(subject: Subject) -> list[int]:
    return [subject.settings.prompt_tokens, *[1] * subject.settings.new_tokens]


@torch.no_grad()
def _run_pieces(
    subject: Subject,
    tokens: Tensor,
    sizes: Sequence[int],
    cache: Any,
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    step: Forward | None = None,
) -> Tensor:
    """Logits (B, T, V) of tokens (B, T), read in calls of so many tokens through a cache.

    mask, positions: (B, T), as generate() would give them. step: makes all calls but the first.
    """
    takes_positions = "position_ids" in inspect.signature(subject.model.forward).parameters
    forward: Forward = subject.model
    logits, start = [], 0
    for size in sizes:
        end = start + size
        given = {} if mask is None else {"attention_mask": mask[:, :end]}
        if positions is not None and takes_positions:
            given["position_ids"] = positions[:, start:end]
        out = forward(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, **given)
        logits.append(out.logits)
        start, forward = end, step or forward
    return torch.cat(logits, 1)


@torch.no_grad()
def _generate(subject: Subject, prompts: Tensor, mask: Tensor, **options: Any) -> Any:
    """What stock generate() makes of prompts (B, P) greedily, or by beams, without ever ending early."""
    with _plain_generation(subject.model):
        return subject.model.generate(
            prompts,
            attention_mask=mask,
            max_new_tokens=subject.settings.new_tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Generation settings without an end of text, penalties or whatever else a checkpoint brings along."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _count_other_tokens(subject: Subject, found: Tensor) -> int:
    """How many of the new tokens of found (B, P + new) the model without a cache would not have chosen."""
    new = subject.settings.new_tokens
    logits = subject.forward(subject.model, found)[:, -new - 1 : -1]
    return count_unlikely_tokens(found[:, -new:], logits, subject.margin)


def _left_padding(subject: Subject) -> Tensor:
    """(B, T): 0 on the first half of the second prompt, which is padding, and 1 elsewhere."""
    mask = torch.ones_like(subject.tokens)
    mask[1, : subject.settings.prompt_tokens // 2] = 0
    return mask


def _require_cache(subject: Subject) -> None:
    if "past_key_values" not in inspect.signature(subject.model.forward).parameters:
        raise Skipped(f"the forward of {type(subject.model).__name__} takes no past_key_values")


def _dynamic_cache(subject: Subject) -> DynamicCache:
    _require_cache(subject)
    return DynamicCache(config=subject.model.config)


def _static_cache(subject: Subject) -> StaticCache:
    _require_cache(subject)
    if not getattr(subject.model, "_can_compile_fullgraph", False):
        raise Skipped(f"{type(subject.model).__name__} supports no static cache")
    return StaticCache(config=subject.model.config, max_cache_len=subject.tokens.shape[1])


DECODING = [
    Claim("cached = uncached: logits", LOGITS, False, cached_logits),
    Claim("cached = uncached: greedy tokens", TOKENS, True, cached_tokens),
    Claim("left-padded = single: logits", LOGITS, False, padded_logits),
    Claim("left-padded = single: greedy tokens", TOKENS, True, padded_tokens),
    Claim("static cache = dynamic cache", LOGITS, False, static_logits),
    Claim("chunked prefill = whole", LOGITS, False, chunked_logits),
    Claim("beam search: cached = uncached", LOGITS, False, beam_scores),
    Claim("compiled = eager", LOGITS, False, compiled_logits),
]
