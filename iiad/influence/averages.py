"""Means of scores over batches of text, and their standard errors. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["Scores", "average", "weighted_mean"]

Scores = list[list[float]]
"""For each layer a number for each of its iterations (or of its predictor's stages)."""


def average(
    batches: Sequence[Mapping[str, Scores]], weights: Sequence[float], origins: Sequence[int] | None = None
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Weighted means of batches of scores, and their standard errors over the batches (0 for a single one).

    With p_b a batch's share of the weight and n batches, the standard error of the mean m is
    sqrt(n / (n - 1) * sum_b p_b^2 (s_b - m)^2) (ours): for equal batches their standard deviation / sqrt(n).

    origins: the data set of each batch. That data sets differ is no error of the mean: the sum is then taken within
    each set, about its own mean, and the sets' are added. A set of a single batch tells nothing; with one such, all
    batches count as one set.
    """
    sets = (
        list(origins) if origins is not None and min(map(origins.count, origins)) > 1 else [0] * len(batches)
    )
    means: dict[str, Scores] = {}
    errors: dict[str, Scores] = {}
    for metric in batches[0]:
        columns = [
            [_mean_and_error(weights, values, sets) for values in zip(*layer, strict=True)]
            for layer in zip(*(batch[metric] for batch in batches), strict=True)
        ]
        means[metric] = [[mean for mean, _ in layer] for layer in columns]
        errors[metric] = [[error for _, error in layer] for layer in columns]
    return means, errors


def _mean_and_error(
    weights: Sequence[float], values: Sequence[float], sets: Sequence[int]
) -> tuple[float, float]:
    total, variance = math.fsum(weights), 0.0
    for origin in set(sets):
        own = [(w, value) for w, value, at in zip(weights, values, sets, strict=True) if at == origin]
        n, mean = len(own), weighted_mean(*zip(*own, strict=True))
        spread = math.fsum((w / total * (value - mean)) ** 2 for w, value in own)
        variance += spread * n / (n - 1) if n > 1 else 0.0
    return weighted_mean(weights, values), math.sqrt(variance)


def weighted_mean(weights: Sequence[float], values: Sequence[float]) -> float:
    """Sum of weight * value / sum of weights; both of the same length, of at least one."""
    return math.fsum(w * value for w, value in zip(weights, values, strict=True)) / math.fsum(weights)
