"""The trade-off between cut and predicted loss: what a threshold can give, what is best, and where the knee is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

from iiad.errors import InputError
from iiad.influence.profile import Profile

from .bounds import Bounds
from .exact import best_by_steps
from .prediction import dropped_scores, predicted_loss
from .threshold import normalize_scores, threshold_budget

__all__ = [
    "CurvePoint",
    "FrontPoint",
    "choose_threshold",
    "find_knee",
    "pareto_front",
    "shortest_threshold",
    "threshold_curve",
]


class TradeOff(Protocol):
    """Anything with a cut and a predicted loss."""

    @property
    def overhead_cut(self) -> float: ...
    @property
    def predicted_loss(self) -> float: ...


Point = TypeVar("Point", bound=TradeOff)


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


@dataclass(frozen=True)
class FrontPoint:
    """A plan that no other one beats: none loses less, by prediction, in as few evaluations.

    num_iterations: r_t for each layer. num_evaluations: block evaluations per token. overhead_cut: iterations
    dropped / iterations of the teacher. predicted_loss: sum of the dropped scores, in the metric's unit.
    """

    num_iterations: tuple[int, ...]
    num_evaluations: int
    overhead_cut: float
    predicted_loss: float


def threshold_curve(
    profile: Profile, metric: str = "kl", normalize: str = "none", bounds: Bounds | None = None
) -> list[CurvePoint]:
    """Every plan that the threshold rule can give, each once, from threshold 0 (the teacher) upwards.

    normalize, bounds: as for `plan_by_threshold`. Raises InputError for a metric that the profile does not hold.
    """
    raw = profile.scores_of(metric)
    scores = normalize_scores(raw, normalize)
    bounds = bounds or Bounds()
    # An iteration goes when the threshold passes the largest score from it on: there the plan changes.
    changes = {max(layer[i:]) for layer in scores for i in range(len(layer))}
    edges = [0.0, *sorted(change for change in changes if change > 0), math.inf]
    ranges = list(pairwise(edges))
    if min(changes) <= 0:  # scores that any threshold above 0 drops
        ranges.insert(0, (0.0, 0.0))
    curve: list[CurvePoint] = []
    for above, up_to in ranges:
        threshold = _between(above, up_to) if curve else 0.0
        budget = tuple(bounds.clip(threshold_budget(scores, threshold), profile.model))
        if curve and curve[-1].num_iterations == budget:  # bounds may make neighbours equal
            before = curve.pop()
            above, threshold = before.above, _between(before.above, up_to) if curve else 0.0
        cut = _overhead_cut(raw, budget)
        curve.append(CurvePoint(threshold, above, up_to, budget, cut, predicted_loss(raw, budget)))
    return curve


def pareto_front(profile: Profile, metric: str = "kl", bounds: Bounds | None = None) -> list[FrontPoint]:
    """Every best trade of evaluations for predicted loss within the bounds, exactly, from most evaluations down.

    Each point loses less, by prediction, than any plan of fewer evaluations and no more than any of as many: of
    several such plans the lexicographically first. Where iterations have scores below zero, the teacher itself is
    none of them. Raises InputError for a metric that the profile does not hold.
    """
    scores, teacher = profile.scores_of(metric), profile.model
    limits = (bounds or Bounds()).limits(teacher)
    losses, _ = dropped_scores(scores)
    within = [layer[least : most + 1] for layer, (least, most) in zip(losses, limits, strict=True)]
    front: list[FrontPoint] = []
    best: int | None = None
    for loss, steps in best_by_steps(within):
        if best is None or loss < best:
            best = loss
            budget = tuple(least + j for (least, _), j in zip(limits, steps, strict=True))
            evaluations = sum(budget) + teacher.num_start_evaluations * len(budget)
            cut = _overhead_cut(scores, budget)
            front.append(FrontPoint(budget, evaluations, cut, predicted_loss(scores, budget)))
    return front[::-1]


def shortest_threshold(point: CurvePoint) -> str:
    """The point's threshold in as few digits as give its plan."""
    if not point.threshold:
        return "0"
    for digits in range(2, 17):
        text = f"{point.threshold:.{digits}g}"
        if point.above < float(text) <= point.up_to:
            return text
    return repr(point.threshold)


def find_knee(points: Sequence[Point]) -> Point:
    """The point with the best balance of cut and predicted loss (ours).

    With overhead cut and predicted loss each scaled to [0, 1] over the points, the knee is the one with the
    largest cut less loss: the one farthest below the chord from the plan that cuts least to the one that cuts
    most, where the loss rises from the one to the other. Of equally good points the first. Where cutting most is
    predicted to cost nothing, that is the answer. Raises InputError for no point.
    """
    if not points:
        raise InputError("curve: found no point; accepted: at least one")
    losses = [point.predicted_loss for point in points]
    cuts = [point.overhead_cut for point in points]

    def gain(point: Point) -> float:
        return _share(point.overhead_cut, cuts) - _share(point.predicted_loss, losses)

    return max(points, key=gain)  # the first of equals


def choose_threshold(curve: Sequence[CurvePoint]) -> tuple[float, str]:
    """The threshold at the curve's knee, and one sentence that says why (ours); of equals the one that cuts least."""
    knee = find_knee(curve)
    largest = max(curve, key=lambda point: point.overhead_cut)
    why = (
        f"threshold {knee.threshold:.3g} is the knee of the {len(curve)} plans that a threshold can give: "
        f"an overhead cut of {knee.overhead_cut:.0%} for a predicted loss of {knee.predicted_loss:.3g}, "
        f"where a cut of {largest.overhead_cut:.0%} is predicted to lose {largest.predicted_loss:.3g}"
    )
    return knee.threshold, why


def _overhead_cut(scores: Sequence[Sequence[float]], budget: Sequence[int]) -> float:
    whole = sum(len(layer) for layer in scores)
    return (whole - sum(budget)) / whole


def _share(value: float, values: Sequence[float]) -> float:
    """Where a value lies between the least and the largest of all, 0 to 1; 0 where they are the same."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0


def _between(above: float, up_to: float) -> float:
    """A threshold between neighbouring scores: their geometric mean; half or twice the one that there is."""
    if math.isinf(up_to):
        return 2 * above if above else 1.0
    middle = math.sqrt(above) * math.sqrt(up_to) if above else up_to / 2
    return middle if above < middle <= up_to else up_to
