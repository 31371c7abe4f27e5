"""The threshold rule: drop a layer's trailing iterations whose scores stay below a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from iiad.errors import InputError
from iiad.influence.profile import Profile

from .plan import Plan
from .targets import Bounds

__all__ = ["normalize_scores", "plan_by_threshold", "require_threshold", "threshold_budget"]

NORMALIZATIONS = ("none", "layer", "model")
"""Divisors of scores before a threshold is applied: 1, the largest of the layer, the largest of the model (ours)."""


def normalize_scores(scores: Sequence[Sequence[float]], how: str) -> list[list[float]]:
    """Divide scores by the largest absolute one of their layer or of the model; "none" leaves them (ours).

    scores: for each layer one number for each of its iterations. Where the largest is 0 the scores stay 0.
    Raises InputError for a `how` that is not in `NORMALIZATIONS`.
    """
    if how not in NORMALIZATIONS:
        raise InputError(f"normalize: expected one of {', '.join(NORMALIZATIONS)}, got {how!r}")
    if how == "none":
        return [list(layer) for layer in scores]
    largest = [max(map(abs, layer), default=0.0) for layer in scores]
    if how == "model":
        largest = [max(largest)] * len(largest)
    return [
        [score / most if most else 0.0 for score in layer]
        for layer, most in zip(scores, largest, strict=True)
    ]


def require_threshold(threshold: float) -> None:
    """Raise InputError unless the threshold is a finite number from 0."""
    if not math.isfinite(threshold) or threshold < 0:
        raise InputError(f"threshold: expected a number from 0, got {threshold}")


def threshold_budget(scores: Sequence[Sequence[float]], threshold: float) -> list[int]:
    """r_t for each layer: the last iteration whose score is at least the threshold, or 0 where none is (ours).

    Trailing iterations below it are dropped; one that comes before an iteration at or above it stays, because
    iterations run in order. A higher threshold never adds an iteration. Threshold 0 keeps every iteration, by
    definition, even one that does harm, whose score is below 0.
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
    """Make the plan of the threshold rule, see `threshold_budget` (ours).

    threshold: from 0, in the metric's unit or, where scores are normalized, a share of the largest.
    normalize: none, layer or model.
    bounds: each layer's budget is then clipped to them, at threshold 0 too. Default: none.

    Raises InputError for a value that is not accepted, and for a metric that the profile does not hold.
    """
    require_threshold(threshold)
    bounds = bounds or Bounds()
    kept = threshold_budget(normalize_scores(profile.scores_of(metric), normalize), threshold)
    return Plan.of(
        profile,
        metric,
        bounds.clip(kept, profile.model),
        bounds,
        origin="threshold",
        threshold=abs(threshold),  # -0.0 is 0
        normalize=normalize,
        explanation=_explain(threshold, metric, normalize, bounds.describe(profile.model)),
    )


def _explain(threshold: float, metric: str, normalize: str, bounds: str) -> str:
    share = "" if normalize == "none" else f" of the largest of its {normalize}"
    clipped = f", clipped to {bounds}" if bounds else ""
    if threshold == 0:
        return f"threshold 0 keeps every iteration{clipped}"
    return (
        f"each layer keeps its iterations up to the last one whose influence by {metric} reaches "
        f"{threshold:.4g}{share}{clipped}"
    )
