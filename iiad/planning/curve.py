"""The trade-off of cut and predicted loss: plans that a threshold gives, the best of all plans, and the knees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.influence.profile import Profile

from .costs import count_evaluations, dropped_scores, overhead_cut, predicted_loss
from .targets import Bounds
from .threshold import normalize_scores, threshold_budget

__all__ = [
    "CurvePoint",
    "FrontPoint",
    "Point",
    "TradeOff",
    "choose_threshold",
    "find_knee",
    "front_within",
    "pareto_front",
    "thin",
    "threshold_curve",
    "trade_off",
]


@dataclass(frozen=True)
class Point:
    """A plan on a trade-off: r_t for each layer, and the predicted loss in the metric's unit."""

    num_iterations: tuple[int, ...]
    overhead_cut: float
    predicted_loss: float


@dataclass(frozen=True)
class CurvePoint(Point):
    """A plan of the threshold rule.

    threshold: gives this plan, in few digits, and lies well inside its range, so that a small error of a score
        changes nothing.
    above, up_to: the thresholds that give it: above < threshold <= up_to. 0 gives the first point, whatever they
        are; the last point's up_to is infinite.
    """

    threshold: float
    above: float
    up_to: float


@dataclass(frozen=True)
class FrontPoint(Point):
    """A plan of which no other loses less, by prediction, in as few block evaluations per token."""

    num_evaluations: int


AnyPoint = TypeVar("AnyPoint", bound=Point)
Item = TypeVar("Item")


@dataclass(frozen=True)
class TradeOff:
    """`pareto_front` and `threshold_curve` with their knees, computed once for reports, pictures and verification."""

    teacher: ModelIdentity
    metric: str
    normalize: str
    bounds: Bounds
    front: list[FrontPoint]
    front_knee: FrontPoint
    thresholds: list[CurvePoint]
    threshold_knee: CurvePoint


def trade_off(
    profile: Profile, metric: str = "kl", normalize: str = "none", bounds: Bounds | None = None
) -> TradeOff:
    """Compute the Pareto front, the threshold curve and their knees within the bounds.

    normalize: for the thresholds, as of `plan_by_threshold`. Raises InputError as that does.
    """
    front = pareto_front(profile, metric, bounds)
    curve = threshold_curve(profile, metric, normalize, bounds)
    asked = (profile.model, metric, normalize, bounds or Bounds())
    return TradeOff(*asked, front, find_knee(front), curve, find_knee(curve))


def threshold_curve(
    profile: Profile, metric: str = "kl", normalize: str = "none", bounds: Bounds | None = None
) -> list[CurvePoint]:
    """Every plan that the threshold rule can give, each once, from threshold 0 (the teacher) upwards.

    normalize, bounds: as of `plan_by_threshold`. Raises InputError for a metric that the profile does not hold.
    """
    raw, teacher, bounds = profile.scores_of(metric), profile.model, bounds or Bounds()
    scores = normalize_scores(raw, normalize)
    # An iteration goes when the threshold passes the largest score from it on: there the plan changes.
    changes = {max(layer[i:]) for layer in scores for i in range(len(layer))}
    edges = [0.0, *sorted(change for change in changes if change > 0), math.inf]
    ranges = list(pairwise(edges))
    if min(changes) <= 0:  # scores that any threshold above 0 drops
        ranges.insert(0, (0.0, 0.0))
    curve: list[CurvePoint] = []
    for above, up_to in ranges:
        threshold = _between(above, up_to) if curve else 0.0
        budget = tuple(bounds.clip(threshold_budget(scores, threshold), teacher))
        if curve and curve[-1].num_iterations == budget:  # bounds may make neighbours equal
            above = curve.pop().above
            threshold = _between(above, up_to) if curve else 0.0
        cut = overhead_cut(budget, teacher.num_iterations)
        curve.append(CurvePoint(budget, cut, predicted_loss(raw, budget), threshold, above, up_to))
    return curve


def pareto_front(profile: Profile, metric: str = "kl", bounds: Bounds | None = None) -> list[FrontPoint]:
    """Every best trade of evaluations for predicted loss within the bounds, from most evaluations down.

    Each point loses less, by prediction, than any plan of fewer evaluations and no more than any of as many: of
    several such plans the lexicographically first, up to the rounding of sums. Where iterations have scores below
    zero, the teacher itself is none of them. Raises InputError for a metric that the profile does not hold.
    """
    return front_within(profile, metric, (bounds or Bounds()).limits(profile.model))


def front_within(profile: Profile, metric: str, limits: Sequence[tuple[int, int]]) -> list[FrontPoint]:
    """Compute `pareto_front` with limits of its own, fewest and most, for each layer."""
    scores, teacher = profile.scores_of(metric), profile.model
    # Dynamic programme over layers: total iterations -> least loss so far, and the budgets that have it.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for losses, (least, most) in zip(dropped_scores(scores), limits, strict=True):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for count, (loss, budget) in best.items():
            for r in range(least, most + 1):
                found = (loss + losses[r], (*budget, r))
                longer[count + r] = min(found, longer.get(count + r, found))
        best = longer
    front: list[FrontPoint] = []
    for _, (_, budget) in sorted(best.items()):
        loss = predicted_loss(scores, budget)
        if not front or loss < front[-1].predicted_loss:
            cut = overhead_cut(budget, teacher.num_iterations)
            front.append(FrontPoint(budget, cut, loss, count_evaluations(teacher, budget)))
    return front[::-1]


def find_knee(points: Sequence[AnyPoint]) -> AnyPoint:
    """The point with the best balance of cut and predicted loss (ours).

    With overhead cut and predicted loss each scaled to [0, 1] over the points, the knee is the one with the
    largest cut less loss: the one farthest below the chord from the plan that cuts least to the one that cuts
    most, where the loss rises from the one to the other. Of equally good points the first. Where cutting most is
    predicted to cost nothing, that is the answer. Raises InputError for no point.
    """
    if not points:
        raise InputError("curve: expected at least one point, got none")
    cuts = _shares([point.overhead_cut for point in points])
    losses = _shares([point.predicted_loss for point in points])
    gains = [cut - loss for cut, loss in zip(cuts, losses, strict=True)]
    return points[gains.index(max(gains))]


def choose_threshold(curve: Sequence[CurvePoint]) -> tuple[float, str]:
    """The threshold at the curve's knee, and one sentence that says why (ours)."""
    knee = find_knee(curve)
    largest = max(curve, key=lambda point: point.overhead_cut)
    why = (
        f"threshold {knee.threshold:.3g} is the knee of the {len(curve)} plans that a threshold can give: "
        f"an overhead cut of {knee.overhead_cut:.0%} for a predicted loss of {knee.predicted_loss:.3g}, "
        f"where a cut of {largest.overhead_cut:.0%} is predicted to lose {largest.predicted_loss:.3g}"
    )
    return knee.threshold, why


def thin(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def _shares(values: Sequence[float]) -> list[float]:
    """Position of each value between the least and the largest, 0 to 1; 0 where they are the same."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def _between(above: float, up_to: float) -> float:
    """A threshold of few digits near the geometric mean of neighbours, or half or twice the only one."""
    if math.isinf(up_to):
        middle = 2 * above if above else 1.0
    else:
        middle = math.sqrt(above) * math.sqrt(up_to) if above else up_to / 2
    digits = (float(f"{middle:.{digits}g}") for digits in range(2, 17))
    return next((threshold for threshold in digits if above < threshold <= up_to), up_to)
