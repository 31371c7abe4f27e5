"""The threshold rule, all plans that it can give, and which of them to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from iiad.errors import InputError
from iiad.influence.profile import Profile

from .plan import Plan

__all__ = ["CurvePoint", "choose_threshold", "plan_by_threshold", "threshold_curve"]


@dataclass(frozen=True)
class CurvePoint:
    """One plan of the threshold rule.

    threshold: gives this plan and lies well inside its range, so that a small error of a score changes nothing.
    above, up_to: the thresholds that give it: above < threshold <= up_to. 0 gives the first point, whatever they
        are; the last point's up_to is infinite.
    num_iterations: r_t for each layer.
    overhead_cut: iterations dropped / iterations of the teacher.
    predicted_loss: sum of the dropped scores, in the metric's unit. By `kl` it is exact within one layer; that
        the layers add up is an assumption (ours).
    """

    threshold: float
    above: float
    up_to: float
    num_iterations: tuple[int, ...]
    overhead_cut: float
    predicted_loss: float


def plan_by_threshold(profile: Profile, threshold: float, metric: str = "kl") -> Plan:
    """Keep of each layer the iterations up to the last one whose influence reaches the threshold (ours).

    Trailing iterations below it are dropped; one that comes before an iteration at or above it stays, because
    iterations run in order. A higher threshold never adds an iteration. Threshold 0 keeps the whole teacher, by
    definition: an iteration that does harm has a score below zero and is dropped by any threshold above 0.

    threshold: at least 0, in the metric's unit. Raises InputError for another one, for NaN and infinity, and for
    a metric that the profile does not hold.
    """
    if not math.isfinite(threshold) or threshold < 0:
        raise InputError(f"threshold: found {threshold}; accepted: a number from 0")
    return Plan(
        teacher=profile.model,
        num_iterations=_budget(profile.scores_of(metric), threshold),
        origin="threshold",
        metric=metric,
        threshold=abs(threshold),  # -0.0 is 0
        profile_fingerprint=profile.fingerprint,
    )


def threshold_curve(profile: Profile, metric: str = "kl") -> list[CurvePoint]:
    """Every plan that the threshold rule can give, each once, from threshold 0 (the teacher) upwards.

    Raises InputError for a metric that the profile does not hold.
    """
    scores = profile.scores_of(metric)
    # An iteration goes when the threshold passes the largest score from it on: there the plan changes.
    changes = {max(layer[i:]) for layer in scores for i in range(len(layer))}
    positive = sorted(change for change in changes if change > 0)
    bounds = [0.0, *positive, math.inf]
    ranges = list(pairwise(bounds))
    if min(changes) > 0:
        ranges = ranges[1:]
        points = [_point(scores, 0.0, 0.0, positive[0])]
    else:  # scores that any threshold above 0 drops
        points = [_point(scores, 0.0, 0.0, 0.0)]
    return points + [_point(scores, _between(above, up_to), above, up_to) for above, up_to in ranges]


def choose_threshold(curve: Sequence[CurvePoint]) -> tuple[float, str]:
    """The threshold at the curve's knee, and one sentence that says why (ours).

    With overhead cut and predicted loss each scaled to [0, 1] over the curve, the knee is the point with the
    largest cut less loss: the one farthest below the chord from the teacher to the plan without iterations, where
    the loss rises from the one to the other. Of equally good points the one that cuts least. Where dropping
    everything is predicted to cost nothing, that is the answer.
    """
    if not curve:
        raise InputError("curve: found no point; accepted: at least one")
    losses = [point.predicted_loss for point in curve]
    low, spread = min(losses), max(losses) - min(losses)
    most = max(point.overhead_cut for point in curve)

    def gain(point: CurvePoint) -> float:
        cut = point.overhead_cut / most if most else 0.0
        return cut - ((point.predicted_loss - low) / spread if spread else 0.0)

    knee = max(curve, key=gain)  # the first of equals
    largest = max(curve, key=lambda point: point.overhead_cut)
    why = (
        f"threshold {knee.threshold:.3g} is the knee of the {len(curve)} plans that a threshold can give: "
        f"an overhead cut of {knee.overhead_cut:.0%} for a predicted loss of {knee.predicted_loss:.3g}, "
        f"where a cut of {largest.overhead_cut:.0%} is predicted to lose {largest.predicted_loss:.3g}"
    )
    return knee.threshold, why


def _budget(scores: Sequence[Sequence[float]], threshold: float) -> list[int]:
    """r_t for each layer: the last iteration at or above the threshold, or 0; all at threshold 0."""
    if threshold == 0:
        return [len(layer) for layer in scores]
    return [max((i for i, score in enumerate(layer, 1) if score >= threshold), default=0) for layer in scores]


def _point(scores: Sequence[Sequence[float]], threshold: float, above: float, up_to: float) -> CurvePoint:
    budget = _budget(scores, threshold)
    whole = sum(len(layer) for layer in scores)
    return CurvePoint(
        threshold=threshold,
        above=above,
        up_to=up_to,
        num_iterations=tuple(budget),
        overhead_cut=(whole - sum(budget)) / whole,
        predicted_loss=math.fsum(s for layer, r in zip(scores, budget, strict=True) for s in layer[r:]),
    )


def _between(above: float, up_to: float) -> float:
    """A threshold between neighbouring scores: their geometric mean; half or twice the one that there is."""
    if math.isinf(up_to):
        return 2 * above if above else 1.0
    middle = math.sqrt(above) * math.sqrt(up_to) if above else up_to / 2
    return middle if above < middle <= up_to else up_to
