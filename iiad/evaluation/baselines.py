"""What knows nothing, or next to nothing, of a text: the measure of whether a model knows anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["NaiveScores", "naive_scores"]


@dataclass(frozen=True)
class NaiveScores:
    """Mean nats per token of two models without context.

    uniform: all tokens of the vocabulary alike, ln V. unigram: by how often each was in the training text, every
    count one more than it is (Laplace), so that no token is impossible.
    """

    uniform: float
    unigram: float


def naive_scores(training: np.ndarray, tokens: np.ndarray, vocab_size: int) -> NaiveScores:
    """Score `tokens` by the counts in `training`; both (n,) ids below vocab_size (ours)."""
    counts = np.bincount(training, minlength=vocab_size).astype(np.float64) + 1.0
    nll = math.log(counts.sum()) - np.log(counts)  # (V,)
    return NaiveScores(math.log(vocab_size), float(nll[tokens].mean()))
