"""Claims about decoding: a cache, a batch or a compiler does not change the logits of the full forward.

Greedy tokens and ties: where the two best logits differ by less than rounding, either token is right, and the texts
differ from there on. So tokens decoded with a cache are read once by the model without one, and a token counts as
different only if its logit there is below the highest by more than twice the bound on rounding. By induction, a text
without such a token is what the uncached model decodes, up to ties.

Legend: B sequences, P prompt tokens, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, StaticCache

from iiad.errors import InputError
from iiad.models import count_evaluations
from iiad.models.compatibility import cache_argument

from .check_artefact import CheckSettings
from .claims import LOGITS, TOKENS, Claim, Skipped, Subject, worst
from .timing import require_compiler

__all__ = ["DECODING", "count_unlikely_tokens"]

NUM_BEAMS = 4


def cached_logits(subject: Subject, cut: Callable[[CheckSettings], list[int]]) -> float:
    """Read the sequences in calls of the sizes that `cut` gives, through a dynamic cache, against one call."""
    return subject.compare(_run(subject, cut(subject.settings), _dynamic_cache(subject)))


def padded_logits(subject: Subject) -> float:
    """Decode a batch with a short, left-padded sequence, each row against itself alone without a cache.

    The padding is random tokens: what they are must not matter.
    """
    mask = _left_padding(subject)
    logits = _run(subject, _one_by_one(subject.settings), _dynamic_cache(subject), mask=mask)
    rows = enumerate(zip(subject.tokens, logits, mask.bool(), strict=True))
    return worst(
        subject.compare(own[real], subject.forward_alone(row, tokens[real][None], padded=True)[0])
        for row, (tokens, own, real) in rows
    )


def stopping_tokens(subject: Subject) -> float:
    """Count tokens of a padded batch, layer by layer, that take other numbers of evaluations in cached steps.

    Skipped where all tokens run all iterations.
    """
    if getattr(subject.model.config, "tolerance", None) is None:
        raise Skipped("no tolerance: all tokens run all iterations")
    mask, found = _left_padding(subject), []
    for sizes in ([subject.tokens.shape[1]], _one_by_one(subject.settings)):
        with count_evaluations(subject.model) as counts:
            _run(subject, sizes, _dynamic_cache(subject), mask=mask)
        found.append([torch.cat(calls, 1) for calls in counts.calls if calls])
    real = mask.bool().cpu()
    pairs = ((a != b, a.shape == real.shape) for a, b in zip(*found, strict=True))
    return sum(int((other & real if own else other).sum()) for other, own in pairs)


def greedy_tokens(subject: Subject, padded: bool) -> float:
    """Decode greedily by stock generate(), each row against itself alone; padded: with that padding."""
    _require_cache(subject)
    mask = _left_padding(subject)[:, : subject.settings.prompt_tokens]
    mask = mask if padded else torch.ones_like(mask)
    new, different = subject.settings.new_tokens, 0
    # A logit may be too low by the bound, and the highest one too high.
    margin = 2 * subject.settings.rounding_bound * subject.deviation
    texts = zip(_generate(subject, subject.prompts, mask), (1 - mask).sum(-1), strict=True)
    for row, (tokens, num_padding) in enumerate(texts):
        logits = subject.forward_alone(row, tokens[None, num_padding:], padded)[:, -new - 1 : -1]
        different += count_unlikely_tokens(tokens[None, -new:], logits, margin)
    return different


def count_unlikely_tokens(chosen: Tensor, logits: Tensor, margin: float) -> int:
    """Count tokens whose logit is below the highest by more than the margin, or NaN.

    chosen: (B, T); logits: (B, T, V) from which each should have been chosen.
    """
    logits = logits.double()
    behind = logits.amax(-1) - logits.gather(-1, chosen[..., None])[..., 0]  # (B, T)
    return int((~(behind <= margin)).sum())  # so that NaN counts


def static_logits(subject: Subject) -> float:
    """Decode through a static cache and through a dynamic one."""
    sizes = _one_by_one(subject.settings)
    found = _run(subject, sizes, _static_cache(subject))
    return subject.compare(found, _run(subject, sizes, _dynamic_cache(subject)))


def beam_scores(subject: Subject) -> float:
    """Scores (nats a token) of the four best beams with a cache and without.

    Scores and not tokens, because of ties: beams that differ in nothing but a tie have the same score.
    """
    _require_cache(subject)
    prompt = subject.prompts[:1]
    options = {"num_beams": NUM_BEAMS, "num_return_sequences": NUM_BEAMS, "return_dict_in_generate": True}
    cached, uncached = (
        _generate(subject, prompt, torch.ones_like(prompt), use_cache=use, output_scores=True, **options)
        for use in (True, False)
    )
    return subject.compare(cached.sequences_scores, uncached.sequences_scores)


def compiled_logits(subject: Subject) -> float:
    """Decode through a static cache by steps compiled whole (fullgraph), and by the same steps as they are."""
    if not subject.settings.compile:
        raise Skipped("not asked for (--no-compile)")
    sizes = _one_by_one(subject.settings)
    wanted = _run(subject, sizes, _static_cache(subject))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, about its own modules
        try:
            require_compiler(subject.settings.device)
        except InputError as error:
            raise Skipped(str(error)) from None
        torch.compiler.reset()  # of each class only so many models are compiled before torch gives up
        try:
            step = torch.compile(subject.model.forward, fullgraph=True, dynamic=False)
            found = _run(subject, sizes, _static_cache(subject), step=step)
        finally:
            torch.compiler.reset()
    return subject.compare(found, wanted)


def _one_by_one(settings: CheckSettings) -> list[int]:
    """Sizes of calls: the prompt, then a token each."""
    return [settings.prompt_tokens, *[1] * settings.new_tokens]


def _chunks(settings: CheckSettings) -> list[int]:
    """Sizes of four unequal calls."""
    num_tokens = settings.prompt_tokens + settings.new_tokens
    sizes = [num_tokens // 2, num_tokens // 4, 1]
    return [*sizes, num_tokens - sum(sizes)]


@torch.no_grad()
def _run(
    subject: Subject,
    sizes: Sequence[int],
    cache: Any,
    *,
    mask: Tensor | None = None,
    step: Callable[..., Any] | None = None,
) -> Tensor:
    """Logits (B, T, V) of the subject's tokens, read in calls of these sizes through a cache.

    mask: (B, T), 0 at padding, as generate() would give it. step: makes all calls but the first.
    """
    inputs = subject.inputs
    takes_positions = inputs.positions in inspect.signature(subject.model.forward).parameters
    forward, cached = subject.model, {cache_argument(subject.model): cache, "use_cache": True}
    cached |= inputs.keep(len(subject.tokens), padded=mask is not None)
    logits, start = [], 0
    for size in sizes:
        end = start + size
        given = {inputs.tokens: subject.tokens[:, start:end]}
        if mask is not None:
            given[inputs.mask] = mask[:, :end]
            if takes_positions:
                given[inputs.positions] = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:end]
        logits.append(forward(**given, **cached).logits)
        start, forward = end, step or forward
    return torch.cat(logits, 1)


@torch.no_grad()
def _generate(subject: Subject, prompts: Tensor, mask: Tensor, **options: Any) -> Any:
    """Run stock generate() on prompts (B, P), greedily or by beams, without ever ending early."""
    model, new = subject.model, subject.settings.new_tokens
    before = model.generation_config
    model.generation_config = GenerationConfig()  # no end of text, penalties or what else comes with it
    try:
        given = subject.inputs.prompt(prompts, mask)
        return model.generate(**given, max_new_tokens=new, do_sample=False, pad_token_id=0, **options)
    finally:
        model.generation_config = before


def _left_padding(subject: Subject) -> Tensor:
    """(B, T): 0 on the first half of the second prompt, which is padding, and 1 elsewhere."""
    mask = torch.ones_like(subject.tokens)
    mask[1, : subject.settings.prompt_tokens // 2] = 0
    return mask


def _require_cache(subject: Subject) -> None:
    if not cache_argument(subject.model):
        raise Skipped(f"the forward of {type(subject.model).__name__} takes no cache")


def _dynamic_cache(subject: Subject) -> Cache:
    _require_cache(subject)
    return subject.inputs.cache(partial(DynamicCache, config=subject.model.config))


def _static_cache(subject: Subject) -> Cache:
    _require_cache(subject)
    if not getattr(subject.model, "_can_compile_fullgraph", False):
        raise Skipped(f"{type(subject.model).__name__} supports no static cache")
    options = {"config": subject.model.config, "max_cache_len": subject.tokens.shape[1]}
    return subject.inputs.cache(partial(StaticCache, **options))


DECODING = [
    Claim("cached = uncached: logits", LOGITS, False, partial(cached_logits, cut=_one_by_one)),
    Claim("cached = uncached: greedy tokens", TOKENS, True, partial(greedy_tokens, padded=False)),
    Claim("left-padded = single: logits", LOGITS, False, padded_logits),
    Claim("left-padded = single: greedy tokens", TOKENS, True, partial(greedy_tokens, padded=True)),
    Claim("static cache = dynamic cache", LOGITS, False, static_logits),
    Claim("chunked prefill = whole", LOGITS, False, partial(cached_logits, cut=_chunks)),
    Claim("cached = uncached: tokens that stop", TOKENS, True, stopping_tokens),
    Claim("beam search: cached = uncached", LOGITS, False, beam_scores),
    Claim("compiled = eager", LOGITS, False, compiled_logits),
]
