"""Means of scores over batches, and their standard errors. Needs neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .convergence import Scores

__all__ = ["average", "flatten", "weighted_mean"]


def flatten(scores: Sequence[Sequence[float]]) -> list[float]:
    """All numbers, layer after layer."""
    return [score for layer in scores for score in layer]


def average(
    batches: Sequence[Mapping[str, Scores]], weights: Sequence[float], origins: Sequence[int] | None = None
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Weighted means of batches of scores, and their standard errors over the batches (0 for a single one).

    With p_b a batch's share of the weight and n batches, the standard error of the mean m is
    sqrt(n / (n - 1) * sum_b p_b^2 (s_b - m)^2) (ours): for equal batches their standard deviation / sqrt(n).

    origins: the data set of each batch. A difference between data sets is no error of the mean: the sum is then taken
    within each set, about its own mean, and the sets' are added. If any set has a single batch, which has no spread,
    all batches count as one set.
    """
    sets = list(origins or [])
    if not sets or min(map(sets.count, sets)) < 2:
        sets = [0] * len(batches)
    means: dict[str, Scores] = {}
    errors: dict[str, Scores] = {}
    for metric in batches[0]:
        # For each layer and iteration its value in every batch.
        columns = [
            list(zip(*layer, strict=True))
            for layer in zip(*(batch[metric] for batch in batches), strict=True)
        ]
        means[metric] = [[weighted_mean(weights, values) for values in layer] for layer in columns]
        errors[metric] = [[_standard_error(weights, values, sets) for values in layer] for layer in columns]
    return means, errors


def weighted_mean(weights: Sequence[float], values: Sequence[float]) -> float:
    """Weighted mean."""
    return math.fsum(w * value for w, value in zip(weights, values, strict=True)) / math.fsum(weights)


def _standard_error(weights: Sequence[float], values: Sequence[float], sets: Sequence[int]) -> float:
    total, variance = math.fsum(weights), 0.0
    for origin in set(sets):
        own = [(w, value) for w, value, at in zip(weights, values, sets, strict=True) if at == origin]
        n, mean = len(own), weighted_mean(*zip(*own, strict=True))
        if n > 1:
            variance += n / (n - 1) * math.fsum((w / total * (value - mean)) ** 2 for w, value in own)
    return math.sqrt(variance)
