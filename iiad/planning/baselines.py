"""Baseline plans that look at no score, for a plan by influence to beat. All definitions are ours."""

from __future__ import annotations

import random
from collections.abc import Sequence

from iiad.errors import InputError
from iiad.identities import ModelIdentity

from .targets import Bounds

__all__ = ["baseline_plans", "spread_evenly"]


def baseline_plans(
    teacher: ModelIdentity, num_kept: int, num_random: int, seed: int, bounds: Bounds | None = None
) -> list[tuple[str, list[int]]]:
    """Make plans of num_kept iterations in all, each with its name: r_t for each layer.

    uniform: as even as the teacher's own budgets allow; a remainder goes to the first layers.
    last layers first: drops whole layers' iterations from the last layer downwards, the last one in part.
    first layers first: the same from the first layer upwards.
    random 1, 2, ...: num_random different plans, each drawn uniformly from all plans of so many iterations; where
        there are no more than num_random, all of them.

    bounds: limits of each layer, in all of them. Raises InputError where num_kept is not from 0 to the teacher's
    iterations, or not within the bounds, and for num_random below 0.
    """
    limits = (bounds or Bounds()).limits(teacher)
    least = [low for low, _ in limits]
    most = [high - low for low, high in limits]  # beside the least
    lowest, highest = sum(least), sum(least) + sum(most)
    if not lowest <= num_kept <= highest:
        whose = "the teacher's" if not bounds else "within the bounds"
        raise InputError(f"num_kept: expected {lowest} to {highest}, {whose}, got {num_kept}")
    if num_random < 0:
        raise InputError(f"num_random: expected a whole number from 0, got {num_random}")
    num_kept -= lowest
    drawn = _random_plans(most, num_kept, num_random, seed)
    plans = [
        ("uniform", spread_evenly(most, num_kept)),
        ("last layers first", _fill(most, num_kept)),
        ("first layers first", _fill(most[::-1], num_kept)[::-1]),
        *((f"random {number}", plan) for number, plan in enumerate(drawn, 1)),
    ]
    return [(name, [low + r for low, r in zip(least, plan, strict=True)]) for name, plan in plans]


def spread_evenly(most: Sequence[int], num_kept: int) -> list[int]:
    """Give one iteration to each layer that may have more, in turns from the first layer, until none is left."""
    plan = [0] * len(most)
    while num_kept:
        for t, highest in enumerate(most):
            if plan[t] < highest and num_kept:
                plan[t] += 1
                num_kept -= 1
    return plan


def _fill(most: Sequence[int], num_kept: int) -> list[int]:
    """Give each layer as many as it may have, from the first on, until none is left."""
    plan = []
    for highest in most:
        plan.append(min(highest, num_kept))
        num_kept -= plan[-1]
    return plan


def _random_plans(most: Sequence[int], num_kept: int, num_random: int, seed: int) -> list[list[int]]:
    """Draw different plans, each uniformly from all of num_kept iterations; at most as many as there are."""
    generator = random.Random(seed)
    # ways[t][k]: number of plans of k iterations in all for the layers from t on
    ways = [[1] + [0] * num_kept]
    for highest in reversed(most):
        after = ways[0]
        ways.insert(0, [sum(after[k - r] for r in range(min(highest, k) + 1)) for k in range(num_kept + 1)])
    drawn: dict[tuple[int, ...], None] = {}  # in the order of the draw
    while len(drawn) < min(num_random, ways[0][num_kept]):
        plan, left = [], num_kept
        for highest, after in zip(most, ways[1:], strict=True):
            choices = range(min(highest, left) + 1)
            plan += generator.choices(choices, [after[left - r] for r in choices])
            left -= plan[-1]
        drawn[tuple(plan)] = None
    return [list(plan) for plan in drawn]
