"""Stability of a profile's scores: the bootstrap over its batches of text. All definitions are ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from iiad.errors import require_least
from iiad.influence.averages import flatten
from iiad.influence.convergence import Scores
from iiad.influence.diagnostics import rank_correlation
from iiad.influence.profile import Profile

from .targets import Bounds
from .threshold import normalize_scores, require_threshold, threshold_budget

__all__ = ["Stability", "keep_frequency", "measure_stability"]

Array = NDArray[np.float64]

LOW_PERCENTILE = 5


@dataclass(frozen=True)
class Stability:
    """Agreement of other batches of the same text, and of other data sets, on the ranks of a model's iterations.

    median, low: Spearman's rank correlation of the profile's scores with those of a resample, over the resamples:
        the median and the 5th percentile, from -1 to 1. A resample whose scores are all equal counts as 0.
    between_sets: the rank correlation of each two data sets' own scores, by their numbers in `profile.data`.
    Each is None where there is nothing to compare: no data set with more than one batch (median, low), a data set
    without batches (between_sets), fewer than three iterations, scores that are all equal.
    """

    metric: str
    num_samples: int
    median: float | None
    low: float | None
    between_sets: dict[tuple[int, int], float | None]


def keep_frequency(
    profile: Profile,
    metric: str,
    threshold: float,
    normalize: str = "none",
    bounds: Bounds | None = None,
    num_samples: int = 1000,
    seed: int = 0,
) -> list[list[float]] | None:
    """Share of resamples, in [0, 1], in which the threshold rule keeps each iteration of each layer.

    A resample draws as many batches of each data set as it has, with replacement, and averages them as the
    profile does, weighted by tokens. Near 0 or 1 the decision holds on other text of the kind; near a half it is
    a toss-up. Falls from one iteration of a layer to the next, because iterations run in order.
    None where no data set has more than one batch: every resample is the profile then.

    threshold, normalize, bounds: as of `plan_by_threshold`. Raises InputError for what that refuses, and
    for num_samples below 1.
    """
    require_threshold(threshold)
    own = normalize_scores(profile.scores_of(metric), normalize)
    means = _resample(profile, metric, num_samples, seed)
    if means is None:
        return None
    budgets = []
    for row in means.tolist():
        kept = threshold_budget(normalize_scores(_split(row, own), normalize), threshold)
        budgets.append((bounds or Bounds()).clip(kept, profile.model))
    of_layer = np.array(budgets).T  # (L, num_samples)
    return [
        [float(np.mean(of_layer[t] >= i)) for i in range(1, len(layer) + 1)] for t, layer in enumerate(own)
    ]


def measure_stability(profile: Profile, metric: str, num_samples: int = 1000, seed: int = 0) -> Stability:
    """Measure how stable a metric's ranking of the iterations is, over resamples and between data sets.

    Raises InputError for a metric that the profile does not hold and for num_samples below 1.
    """
    own = np.array(flatten(profile.scores_of(metric)))
    means = _resample(profile, metric, num_samples, seed)
    median = low = None
    if means is not None and own.size >= 3 and np.ptp(own) > 0:
        correlations = _correlations(means, own)
        median, low = (float(np.percentile(correlations, at)) for at in (50, LOW_PERCENTILE))
    scores = [_scores_of_set(profile, metric, number) for number in range(len(profile.data))]
    pairs = combinations(range(len(scores)), 2)
    between = {(a, b): rank_correlation(scores[a], scores[b]) for a, b in pairs}
    return Stability(metric, num_samples, median, low, between)


def _resample(profile: Profile, metric: str, num_samples: int, seed: int) -> Array | None:
    """Scores of resamples, (num_samples, N), N iterations of all layers; None where they could not differ."""
    require_least(1, num_samples=num_samples)
    own = np.array(flatten(profile.scores_of(metric)))
    origins = np.array([batch.data for batch in profile.batches])
    sizes = np.bincount(origins)
    if sizes.max() < 2:
        return None
    generator = np.random.default_rng(seed)
    tokens = np.array([batch.num_tokens for batch in profile.batches], dtype=float)
    weights = np.zeros((num_samples, len(origins)))  # tokens that each batch brings to each resample
    for origin in np.flatnonzero(sizes):
        n = sizes[origin]
        weights[:, origins == origin] = generator.multinomial(n, np.full(n, 1 / n), size=num_samples)
    weights *= tokens
    # As distances from the profile's scores: where all batches agree, a resample is the profile to the last bit.
    distances = np.array([flatten(batch.scores[metric]) for batch in profile.batches]) - own
    return own + (weights @ distances) / weights.sum(axis=1, keepdims=True)


def _correlations(means: Array, own: Array) -> Array:
    """Spearman's rank correlation of each row with the profile's own scores: Pearson's of the ranks."""
    from scipy.stats import rankdata  # takes a second to import

    ranks = rankdata(means, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    wanted = rankdata(own)
    wanted -= wanted.mean()
    lengths = np.linalg.norm(ranks, axis=1) * np.linalg.norm(wanted)
    return np.divide(ranks @ wanted, lengths, out=np.zeros(len(ranks)), where=lengths > 0)


def _scores_of_set(profile: Profile, metric: str, number: int) -> list[float]:
    """The mean scores of a data set, all layers in a row; none for a set without batches."""
    drawn = [batch for batch in profile.batches if batch.data == number]
    if not drawn:
        return []
    rows = [flatten(batch.scores[metric]) for batch in drawn]
    means: list[float] = np.average(rows, axis=0, weights=[batch.num_tokens for batch in drawn]).tolist()
    return means


def _split(row: Sequence[float], like: Scores) -> list[list[float]]:
    numbers = iter(row)
    return [[next(numbers) for _ in layer] for layer in like]
