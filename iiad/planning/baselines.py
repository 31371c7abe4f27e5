"""Plans that look at no score: what a plan by influence has to beat. All definitions here are ours."""

from __future__ import annotations

import random
from collections.abc import Sequence

from iiad.artefacts import ModelIdentity
from iiad.errors import InputError

from .bounds import Bounds

__all__ = ["baseline_plans"]


def baseline_plans(
    teacher: ModelIdentity, num_kept: int, num_random: int, seed: int, bounds: Bounds | None = None
) -> list[tuple[str, list[int]]]:
    """Plans of num_kept iterations in all, each with its name: r_t for each layer.

    uniform: as even as the teacher's own budgets allow; what does not divide goes to the first layers.
    last layers first: drops whole layers' iterations from the last layer downwards, the last one in part.
    first layers first: the same from the first layer upwards.
    random 1, 2, ...: num_random different plans, each drawn uniformly from all plans of so many iterations; where
        there are no more than num_random, all of them.

    bounds: what each layer may run, in all of them. Raises InputError where num_kept is not from 0 to the teacher's
    iterations, or within the bounds, and for num_random below 0.
    """
    limits = (bounds or Bounds()).limits(teacher)
    least = [low for low, _ in limits]
    most = [high - low for low, high in limits]  # beside the least
    lowest, highest = sum(least), sum(least) + sum(most)
    if not lowest <= num_kept <= highest:
        whose = "the teacher's" if not bounds else "within the bounds"
        raise InputError(f"num_kept: found {num_kept}; accepted: {lowest} to {highest}, {whose}")
    num_kept -= lowest
    if num_random < 0:
        raise InputError(f"num_random: found {num_random}; accepted: a whole number from 0")
    drawn = _random_plans(most, num_kept, num_random, random.Random(seed))
    plans = [
        ("uniform", _uniform(most, num_kept)),
        ("last layers first", _fill(most, num_kept)),
        ("first layers first", _fill(most[::-1], num_kept)[::-1]),
        *((f"random {number}", plan) for number, plan in enumerate(drawn, 1)),
    ]
    return [(name, [low + r for low, r in zip(least, plan, strict=True)]) for name, plan in plans]


def _uniform(most: Sequence[int], num_kept: int) -> list[int]:
    """One iteration to each layer that may have more, in turns from the first layer, until all are given."""
    plan = [0] * len(most)
    while num_kept:
        for t, highest in enumerate(most):
            if plan[t] < highest and num_kept:
                plan[t] += 1
                num_kept -= 1
    return plan


def _fill(most: Sequence[int], num_kept: int) -> list[int]:
    """Each layer as much as it may have, from the first on, until all are given."""
    plan = []
    for highest in most:
        plan.append(min(highest, num_kept))
        num_kept -= plan[-1]
    return plan


def _random_plans(
    most: Sequence[int], num_kept: int, num_random: int, generator: random.Random
) -> list[list[int]]:
    """Different plans, uniformly from all of their sum: each plan has a number, and numbers are drawn."""
    ways = _count(most, num_kept)
    total = ways[0][num_kept]
    if total <= num_random:
        numbers = list(range(total))
    else:
        drawn: dict[int, None] = {}  # in the order of the draw
        while len(drawn) < num_random:
            drawn[generator.randrange(total)] = None
        numbers = list(drawn)
    return [_plan_of(number, most, num_kept, ways) for number in numbers]


def _count(most: Sequence[int], num_kept: int) -> list[list[int]]:
    """[t][k]: in how many ways the layers from t on can run k iterations in all."""
    ways = [[1] + [0] * num_kept]
    for highest in reversed(most):
        after = ways[0]
        ways.insert(0, [sum(after[k - r] for r in range(min(highest, k) + 1)) for k in range(num_kept + 1)])
    return ways


def _plan_of(number: int, most: Sequence[int], num_kept: int, ways: Sequence[Sequence[int]]) -> list[int]:
    """The plan of that number, in lexicographic order."""
    plan = []
    for t, highest in enumerate(most):
        for r in range(min(highest, num_kept) + 1):
            if number < ways[t + 1][num_kept - r]:
                break
            number -= ways[t + 1][num_kept - r]
        plan.append(r)
        num_kept -= r
    return plan
