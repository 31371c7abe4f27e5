"""The exact solver: one choice for each layer, least total cost, under limits on steps and on a weight.

A layer's choices are listed by the steps that they take, 0, 1, 2, ...; each is a pair (cost, weight) of whole
numbers. Whole numbers, so that sums are exact and no tolerance decides between two plans. Definitions here are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

__all__ = ["Solution", "best_by_steps", "minimise", "whole_rows"]

Layers = Sequence[Sequence[tuple[int, int]]]
Partial = tuple[int, int, tuple[int, ...]]
"""Weight, cost and steps of the layers decided on so far."""


@dataclass(frozen=True)
class Solution:
    """Total cost, total weight, and the steps of each layer."""

    cost: int
    weight: int
    steps: tuple[int, ...]


def whole_rows(rows: Iterable[Iterable[float]]) -> tuple[list[list[int]], int]:
    """Rows of numbers as whole multiples of 1 / scale, without loss, and the scale."""
    fractions = [[Fraction(value) for value in row] for row in rows]
    scale = lcm(*(fraction.denominator for row in fractions for fraction in row))
    return [[x.numerator * (scale // x.denominator) for x in row] for row in fractions], scale


def best_by_steps(costs: Sequence[Sequence[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """For each total number of steps from 0 the least cost, and the lexicographically first steps that have it.

    costs: for each layer its cost at 0, 1, 2, ... steps.
    """
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for layer in costs:
        reached: dict[int, tuple[int, tuple[int, ...]]] = {}
        for count, (total, steps) in enumerate(best):
            for j, cost in enumerate(layer):
                found = (total + cost, (*steps, j))
                reached[count + j] = min(found, reached.get(count + j, found))
        best = [reached[count] for count in range(len(reached))]
    return best


def minimise(layers: Layers, max_steps: int, max_weight: int) -> Solution | None:
    """The least cost with at most max_steps steps in total and at most max_weight of weight; None if none is.

    Of equal costs the one of fewest steps, then of least weight, then the lexicographically first.

    Dynamic programming over layers: of the partial solutions with equal steps, those that another one beats in
    weight and cost are dropped, and those that a Lagrangian bound shows not to end up best. How many are left
    depends on how closely costs and weights compete: tens to thousands in all for a model's layers.
    """
    bound = _Bound.of(layers, max_steps, max_weight)
    if bound is None:
        return None
    groups: dict[int, list[Partial]] = {0: [(0, 0, ())]}
    for t, choices in enumerate(layers, 1):
        grown: dict[int, list[Partial]] = {}
        for count, group in groups.items():
            for j, (cost, weight) in enumerate(choices[: max_steps - count + 1]):
                longer = [(w + weight, c + cost, (*steps, j)) for w, c, steps in group]
                grown.setdefault(count + j, []).extend(bound.possible(longer, t, max_steps - count - j))
        groups = {count: _undominated(group) for count, group in grown.items()}
    cost, _, weight, steps = min(
        (c, count, w, steps) for count, group in groups.items() for w, c, steps in group
    )
    return Solution(cost, weight, steps)


def _undominated(group: list[Partial]) -> list[Partial]:
    """Those that none of the others beats in weight and cost; of equals the lexicographically first."""
    front: list[Partial] = []
    for partial in sorted(group):
        if not front or partial[1] < front[-1][1]:
            front.append(partial)
    return front


@dataclass(frozen=True)
class _Bound:
    """What a partial solution must not exceed to end up best.

    A solution that costs at most `known` and weighs at most max_weight has
    q cost + p weight <= q known + p max_weight, for any p, q >= 0: so a partial one whose cheapest completion,
    in q cost + p weight, lies above that is none.
    """

    cost_price: int  # q
    weight_price: int  # p
    most: int  # q known + p max_weight
    rest: list[list[int]]  # [t][k]: least q cost + p weight of the layers from t on in at most k steps
    max_weight: int
    lightest: list[list[int]]  # [t][k]: least weight of the layers from t on in at most k steps

    @classmethod
    def of(cls, layers: Layers, max_steps: int, max_weight: int) -> _Bound | None:
        """The tightest bound of its kind; None where no solution is light enough."""
        low, rest = _relaxed(layers, 1, 0, max_steps)  # cheapest, maybe too heavy
        high, lightest = _relaxed(layers, 0, 1, max_steps)
        if high.weight > max_weight:
            return None
        if low.weight <= max_weight:
            return cls(1, 0, low.cost, rest, max_weight, lightest)
        known = high.cost
        while True:  # low is too heavy and high is not: the price at which both are worth the same
            q, p = low.weight - high.weight, high.cost - low.cost
            middle, rest = _relaxed(layers, q, p, max_steps)
            if middle.weight <= max_weight:
                known = min(known, middle.cost)
            if q * middle.cost + p * middle.weight == q * low.cost + p * low.weight:
                return cls(q, p, q * known + p * max_weight, rest, max_weight, lightest)
            if middle.weight <= max_weight:
                high = middle
            else:
                low = middle

    def possible(self, partials: list[Partial], t: int, steps_left: int) -> list[Partial]:
        """Those, of t layers, that may still end up best."""
        q, p = self.cost_price, self.weight_price
        most = self.most - self.rest[t][steps_left]
        heaviest = self.max_weight - self.lightest[t][steps_left]
        return [x for x in partials if x[0] <= heaviest and q * x[1] + p * x[0] <= most]


def _relaxed(layers: Layers, q: int, p: int, max_steps: int) -> tuple[Solution, list[list[int]]]:
    """A solution of least q cost + p weight, whatever it weighs, and [t][k]: the least from layer t on in k steps."""
    values = [[q * cost + p * weight for cost, weight in choices] for choices in layers]
    rest = [[0] * (max_steps + 1)]
    for layer in reversed(values):
        after = rest[0]
        least = [min(v + after[k - j] for j, v in enumerate(layer[: k + 1])) for k in range(max_steps + 1)]
        rest.insert(0, least)
    left, cost, weight, steps = max_steps, 0, 0, []
    for t, layer in enumerate(values):
        j = next(j for j, v in enumerate(layer[: left + 1]) if v + rest[t + 1][left - j] == rest[t][left])
        left -= j
        cost, weight = cost + layers[t][j][0], weight + layers[t][j][1]
        steps.append(j)
    return Solution(cost, weight, tuple(steps)), rest
