"""What knows nothing, or next to nothing, of a text: the measure of whether a model knows anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from iiad.data import TokenCorpus, evaluation_windows
from iiad.errors import InputError

from .scoring import TokenScore, evaluate_model

__all__ = ["NaiveScores", "measure_knowledge", "naive_scores", "require_knowledge"]

COUNTED_TOKENS = 1 << 26
"""Of a training text, from its start: more would not change the counts' shares by what matters."""

MEASURED_TOKENS = 1 << 15
"""Of a training text, to measure a model on where there is no other."""

_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class NaiveScores:
    """Mean nats per token of two models without context.

    uniform: all tokens of the vocabulary alike, ln V. unigram: by how often each was in the training text, every
    count one more than it is (Laplace), so that no token is impossible.
    """

    uniform: float
    unigram: float


def naive_scores(training: np.ndarray, tokens: np.ndarray, vocab_size: int) -> NaiveScores:
    """Score `tokens` by the counts in the first 2^26 of `training`; both (n,) ids below vocab_size (ours)."""
    counts = _count(training[:COUNTED_TOKENS], vocab_size) + 1.0
    nll = math.log(counts.sum()) - np.log(counts)  # (V,)
    held = _count(tokens, vocab_size)
    return NaiveScores(math.log(vocab_size), float(held @ nll / held.sum()))


def _count(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id is there, (V,) in float64; a slice at a time, as counting makes 8 bytes of each token."""
    counts = np.zeros(vocab_size)
    for start in range(0, len(tokens), _AT_ONCE):
        counts += np.bincount(tokens[start : start + _AT_ONCE], minlength=vocab_size)
    return counts


def measure_knowledge(
    model: Any, corpus: TokenCorpus, block_size: int, batch_size: int, dtype: str
) -> tuple[TokenScore, np.ndarray]:
    """What a model scores on the first tokens of a text, and those tokens."""
    windows = evaluation_windows(corpus, block_size, MEASURED_TOKENS, batch_size)
    return evaluate_model(model, windows, name="teacher", dtype=dtype), corpus.tokens[:MEASURED_TOKENS]


def require_knowledge(nll: float, naive: NaiveScores, where: str, override: str | None) -> str:
    """A teacher's loss beside those of the naive models, in one line.

    where: what it was measured on. override: how to go on all the same; None where that is what was asked for.
    Raises InputError for a teacher that is no better than counts: random weights, say, or another tokenizer's.
    """
    line = (
        f"teacher: {nll:.4f} nats a token on {where}; token counts alone give {naive.unigram:.4f}, "
        f"knowing nothing {naive.uniform:.4f}"
    )
    if override is not None and nll >= naive.unigram:
        raise InputError(
            f"{line}: it has nothing to teach of this text; is it the trained model, with its own tokenizer? "
            f"({override} goes on all the same)"
        )
    return line
