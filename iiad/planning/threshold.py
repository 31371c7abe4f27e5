"""The threshold rule: which iterations a layer keeps, by their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

from iiad.errors import InputError
from iiad.influence.profile import Profile

from .bounds import Bounds
from .plan import Plan
from .prediction import predicted_loss, predicted_loss_error

__all__ = ["NORMALIZATIONS", "normalize_scores", "plan_by_threshold", "threshold_budget"]

NORMALIZATIONS: dict[str, str] = {
    "none": "scores as they are: the threshold is in the metric's unit",
    "layer": "each score divided by the largest absolute score of its layer: the threshold is a share of it",
    "model": "each score divided by the largest absolute score of the model: the threshold is a share of it",
}
"""What scores may be divided by before a threshold is laid on them (ours)."""


def normalize_scores(scores: Sequence[Sequence[float]], how: str) -> list[list[float]]:
    """The scores as shares of the largest absolute one of their layer or of the model, or as they are (ours).

    scores: for each layer one number for each of its iterations. how: a key of `NORMALIZATIONS`. Where the largest
    is 0 the scores stay 0. Raises InputError for another `how`.
    """
    if how == "layer":
        return [_shares(layer, max(map(abs, layer), default=0.0)) for layer in scores]
    if how == "model":
        largest = max((abs(score) for layer in scores for score in layer), default=0.0)
        return [_shares(layer, largest) for layer in scores]
    if how != "none":
        raise InputError(f"normalize: found {how!r}; accepted: {', '.join(NORMALIZATIONS)}")
    return [list(layer) for layer in scores]


def threshold_budget(scores: Sequence[Sequence[float]], threshold: float) -> list[int]:
    """r_t for each layer: the last iteration whose score is at least the threshold, or 0 where none is (ours).

    Trailing iterations below it are dropped; one that comes before an iteration at or above it stays, because
    iterations run in order. A higher threshold never adds an iteration. Threshold 0 keeps every iteration.
    """
    if threshold == 0:
        return [len(layer) for layer in scores]
    return [max((i for i, score in enumerate(layer, 1) if score >= threshold), default=0) for layer in scores]


def plan_by_threshold(
    profile: Profile,
    threshold: float,
    metric: str = "kl",
    normalize: str = "none",
    bounds: Bounds | None = None,
) -> Plan:
    """Keep of each layer the iterations up to the last one whose influence reaches the threshold (ours).

    Trailing iterations below it are dropped; one that comes before an iteration at or above it stays, because
    iterations run in order. A higher threshold never adds an iteration. Threshold 0 keeps the whole teacher, by
    definition: an iteration that does harm has a score below zero and is dropped by any threshold above 0.

    threshold: at least 0, in the metric's unit or, where scores are normalized, a share of the largest.
    normalize: none, layer or model, see `NORMALIZATIONS`.
    bounds: each layer's budget is then clipped to them, at threshold 0 too. Default: none.

    Raises InputError for another threshold, for NaN and infinity, and for a metric that the profile does not hold.
    """
    if not math.isfinite(threshold) or threshold < 0:
        raise InputError(f"threshold: found {threshold}; accepted: a number from 0")
    bounds = bounds or Bounds()
    scores = profile.scores_of(metric)
    kept = threshold_budget(normalize_scores(scores, normalize), threshold)
    budget = bounds.clip(kept, profile.model)
    return Plan(
        teacher=profile.model,
        num_iterations=budget,
        origin="threshold",
        metric=metric,
        threshold=abs(threshold),  # -0.0 is 0
        normalize=cast("Literal['none', 'layer', 'model']", normalize),
        bounds=bounds or None,
        predicted_loss=predicted_loss(scores, budget),
        predicted_loss_error=predicted_loss_error(profile, metric, budget),
        explanation=_explain(threshold, metric, normalize, bounds),
        profile_fingerprint=profile.fingerprint,
    )


def _explain(threshold: float, metric: str, normalize: str, bounds: Bounds) -> str:
    share = "" if normalize == "none" else f" of the largest of its {normalize}"
    clipped = f", clipped to {bounds}" if bounds else ""
    if threshold == 0:
        return f"threshold 0 keeps every iteration{clipped}"
    return (
        f"each layer keeps its iterations up to the last one whose influence by {metric} reaches "
        f"{threshold:.4g}{share}{clipped}"
    )


def _shares(scores: Sequence[float], largest: float) -> list[float]:
    return [score / largest if largest else 0.0 for score in scores]
