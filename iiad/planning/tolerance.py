"""Tolerances: how little a token's state may move for its iterations to stop by themselves. All of it is ours."""

from __future__ import annotations

from collections.abc import Sequence

from iiad.artefacts import check_fields
from iiad.errors import InputError
from iiad.influence.convergence import TOLERANCES
from iiad.influence.profile import Profile

from .costs import overhead_cut
from .plan import Plan, check_plan

__all__ = ["expected_evaluations", "find_tolerance", "with_tolerance"]

STEPS = 60
"""Halvings of the interval that the tolerance is in: as fine as a float is."""


def expected_evaluations(profile: Profile, num_iterations: Sequence[int], tolerance: float) -> list[float]:
    """Return each layer's mean evaluations of a token at most at r_t iterations: start + sum_i P(still going).

    Of the profiled text, and as if no layer before had stopped early. Raises InputError for a profile without what
    that takes.
    """
    if not profile.settling:
        got = profile.model.cache_policy
        why = (
            "an older one; measure again" if got == "shared" else f"one of a model with cache_policy {got!r}"
        )
        raise InputError(f"profile: expected one that holds `settling`, of a shared cache, got {why}")
    start = profile.model.num_start_evaluations
    return [
        start + min(r, 1) + sum(1 - layer.stopped(i, tolerance) for i in range(1, r))
        for r, layer in zip(num_iterations, profile.settling, strict=True)
    ]


def find_tolerance(profile: Profile, num_iterations: Sequence[int], cut: float) -> float:
    """Return the least tolerance at which tokens are expected to drop that share of all of the model's iterations.

    num_iterations: r_t, the most of each layer. Raises InputError for a cut that no tolerance reaches, or that the
    plan reaches without one.
    """
    start, whole = profile.model.num_start_evaluations, sum(profile.model.num_iterations)

    def dropped(tolerance: float) -> float:
        run = expected_evaluations(profile, num_iterations, tolerance)
        return 1 - sum(each - start for each in run) / whole

    low, high = TOLERANCES[0], TOLERANCES[-1]
    least, most = overhead_cut(num_iterations, profile.model.num_iterations), dropped(high)
    if not least < cut <= most:
        expected = f"above {least:.4g} and at most {most:.4g}, as every token runs one iteration of a layer"
        raise InputError(f"tolerance_for: expected a cut {expected}, got {cut:.4g}")
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if dropped(middle) >= cut else (middle, high)
    return high


def with_tolerance(plan: Plan, profile: Profile, cut: float) -> Plan:
    """Return the plan with the tolerance of `find_tolerance`, and the evaluations that it is expected to take.

    Raises InputError as `find_tolerance`, and for a profile of another teacher.
    """
    check_plan(plan, profile.model)
    tolerance = find_tolerance(profile, plan.num_iterations, cut)
    expected = expected_evaluations(profile, plan.num_iterations, tolerance)
    made = {"tolerance": tolerance, "expected_evaluations": expected}
    return check_fields(Plan, {**plan.model_dump(), **made}, "plan")
