"""Search for the best plan that reaches targets, among all plans, not only those that a threshold gives.

Targets on counts and loss pick a point of the Pareto front. Where a latency table has a say, `scipy.optimize.milp`
searches. All definitions here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any

from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.influence.profile import Profile

from .choices import SLACK, Rows, minimise
from .costs import LOSS_UNITS, compute_cut, count_evaluations, dropped_scores, overhead_cut, predicted_loss
from .curve import pareto_front
from .latency import LatencyTable, PhaseLatency, check_latency
from .plan import Plan
from .targets import Bounds, Targets
from .threshold import plan_by_threshold
from .tolerance import choose_stops

__all__ = ["make_plan", "plan_by_target"]

AT_LEAST = ("overhead_cut", "compute_cut", "speedup", "tolerance_for")
"""Targets that are the least of what they name; the others are the most."""


def make_plan(
    profile: Profile,
    threshold: float | None = None,
    targets: Targets | None = None,
    metric: str = "kl",
    normalize: str | None = None,
    bounds: Bounds | None = None,
    latency: LatencyTable | None = None,
) -> Plan:
    """Make the plan by a threshold or by targets, whichever is given.

    Raises InputError for both and for neither, for `normalize` with targets, and as the two functions do.
    """
    if threshold is None and not targets:
        names = ["threshold", *(name for name in Targets.__dataclass_fields__ if name != "phase")]
        options = ", ".join("--" + name.replace("_", "-") for name in names)
        raise InputError(f"targets: expected one of {options}, got none; --curve shows all plans")
    if threshold is not None:
        if targets:
            given = ", ".join(targets.given)
            raise InputError(f"threshold: expected a threshold or targets, got it and {given}")
        return plan_by_threshold(profile, threshold, metric, normalize or "none", bounds)
    if normalize is not None:
        raise InputError(f"normalize: expected a threshold to go with it, got {normalize} and targets")
    assert targets is not None
    return plan_by_target(profile, targets, metric, bounds, latency)


def plan_by_target(
    profile: Profile,
    targets: Targets,
    metric: str = "kl",
    bounds: Bounds | None = None,
    latency: LatencyTable | None = None,
) -> Plan:
    """Make the best plan that reaches all targets.

    With targets of cost alone the best is the least predicted loss, the sum of the dropped scores. With
    `max_score` it is the cheapest: of the fewest evaluations, or of the least seconds of `targets.phase` where a
    latency table is given. Of equals the one of fewest evaluations, then the one that is quicker or loses less.
    Iterations with scores below zero are dropped where that helps. Targets hold up to `SLACK`; the best is
    exact but for the rounding of sums and, where a latency table has a say, up to `SLACK` too.

    With `tolerance_for` layers run at most what the plan of the other targets says, and may have tolerances, by
    `choose_stops`.

    bounds: what each layer may run. Default: up to the teacher's. latency: needed for `max_latency_ms` and
    `speedup`; must be of this teacher.

    Raises InputError for no target, for a latency target without a table, for a table of another model, and for
    targets that cannot be reached, saying what can.
    """
    if not targets:
        raise InputError("targets: expected at least one, got none")
    if targets.limits_latency and latency is None:
        name = "max_latency_ms" if targets.max_latency_ms is not None else "speedup"
        raise InputError(
            f"{name}: expected a latency table with it, as `iiad bench --layers` writes, got none"
        )
    if latency is not None:
        check_latency(latency, profile.model)
    bounds = bounds or Bounds()
    timed = latency is not None and (targets.limits_latency or targets.max_score is not None)
    if latency is not None and timed:
        budget = _search_rows(profile, targets, metric, bounds, latency.phase(targets.phase))
    elif targets.max_cache_bytes is not None and profile.model.num_encoder_layers:
        # Which layers are cut decides, not only how many iterations.
        budget = _search_rows(profile, targets, metric, bounds, None)
    else:
        budget = _search_front(profile, targets, metric, bounds)
    stops: dict[str, Any] = {}
    if targets.tolerance_for is not None:
        limits = bounds.limits(profile.model)
        if len(targets.given) > 1:
            limits = [(low, most) for (low, _), most in zip(limits, budget, strict=True)]
        chosen = choose_stops(profile, metric, limits, targets.tolerance_for)
        budget, tolerances, expected, losses = map(list, zip(*chosen, strict=True))
        if any(tolerances):
            stops = {"tolerance": tolerances, "expected_evaluations": expected}
            stops |= {"predicted_loss": math.fsum(losses), "predicted_loss_error": None}
    return Plan.of(
        profile,
        metric,
        budget,
        bounds,
        origin="target",
        targets=targets,
        latency_fingerprint=latency.fingerprint if latency is not None and timed else None,
        explanation=_explain(targets, metric, bounds.describe(profile.model), timed),
        **stops,
    )


def _search_front(profile: Profile, targets: Targets, metric: str, bounds: Bounds) -> list[int]:
    """The point of the Pareto front that is best under targets on counts and loss."""
    front = pareto_front(profile, metric, bounds)  # from most evaluations and least loss to fewest and most
    counts = [_counts(profile.model, point.num_iterations) for point in front]
    _require_reached(targets, counts[-1], bounds)
    front = [point for point, count in zip(front, counts, strict=True) if _missed(targets, count) is None]
    if targets.max_score is None:
        return list(front[0].num_iterations)
    _require_reached(targets, {"max_score": front[0].predicted_loss}, bounds, f" {LOSS_UNITS[metric]}")
    front = [p for p in front if _missed(targets, {"max_score": p.predicted_loss}) is None]
    return list(front[-1].num_iterations)


def _search_rows(
    profile: Profile, targets: Targets, metric: str, bounds: Bounds, phase: PhaseLatency | None
) -> list[int]:
    """The best plan by what each layer costs: least loss under limits on costs, or least cost under one on loss.

    phase: of a latency table; None: seconds are not asked for.
    """
    teacher, scores = profile.model, profile.scores_of(metric)
    allowed = bounds.limits(teacher)

    def within(rows: Rows) -> list[list[float]]:
        return [list(layer[low : high + 1]) for layer, (low, high) in zip(rows, allowed, strict=True)]

    counts = [list(range(low, high + 1)) for low, high in allowed]
    losses = within(dropped_scores(scores))
    fewest, most = ([limit[side] for limit in allowed] for side in (0, 1))
    _require_reached(targets, _counts(teacher, fewest), bounds)
    totals = range(sum(fewest), sum(most) + 1)
    possible = [n for n in totals if _missed(targets, _totals(teacher, n)) is None]
    limits: list[tuple[Rows, float]] = [(counts, possible[-1])]
    if targets.max_cache_bytes is not None:
        cache = [
            [teacher.layer_cache_bytes(t, r) for r in range(low, high + 1)]
            for t, (low, high) in enumerate(allowed)
        ]
        limits.append((cache, targets.max_cache_bytes))

    def best(*objectives: Rows) -> list[int]:
        steps = minimise(objectives, limits)
        return [low + step for (low, _), step in zip(allowed, steps, strict=True)]

    # The first layer carries what is no layer's, so that totals are of a whole call.
    seconds = [] if phase is None else within(phase.layers)
    if phase is not None:
        seconds[0] = [phase.fixed_seconds + number for number in seconds[0]]
        if targets.limits_latency:
            limits += _limit_seconds(targets, teacher, bounds, phase, seconds, best(seconds))
    if targets.max_score is None:
        return best(losses, counts, *([seconds] if seconds else []))
    least = predicted_loss(scores, best(losses))
    _require_reached(targets, {"max_score": least}, bounds, f" {LOSS_UNITS[metric]}")
    limits.append((losses, max(targets.max_score, least)))
    return best(*([seconds] if seconds else []), counts, losses)


def _limit_seconds(
    targets: Targets,
    teacher: ModelIdentity,
    bounds: Bounds,
    phase: PhaseLatency,
    seconds: Rows,
    quickest: Sequence[int],
) -> list[tuple[Rows, float]]:
    """Return what the targets on latency limit. quickest: of the plans that the other limits leave."""
    whole, least = phase.seconds(teacher.num_iterations), phase.seconds(quickest)
    reached = {"max_latency_ms": 1000 * least, "speedup": whole / least if least else math.inf}
    _require_reached(targets, reached, bounds, f", by the table's seconds of {targets.phase}")
    most = []
    if targets.max_latency_ms is not None:
        most.append(targets.max_latency_ms / 1000)
    if targets.speedup is not None:
        most.append(whole / targets.speedup)
    return [(seconds, max(limit, least)) for limit in most]


def _counts(teacher: ModelIdentity, num_iterations: Sequence[int]) -> dict[str, float]:
    """Values of a plan for the targets on counts."""
    cache = sum(teacher.layer_cache_bytes(t, r) for t, r in enumerate(num_iterations))
    return {**_totals(teacher, sum(num_iterations)), "max_cache_bytes": cache}


def _totals(teacher: ModelIdentity, num_iterations: int) -> dict[str, float]:
    """Values for the targets on counts that follow from the number of iterations in all."""
    evaluations = count_evaluations(teacher, [num_iterations])
    return {
        "overhead_cut": overhead_cut([num_iterations], teacher.num_iterations),
        "compute_cut": compute_cut(evaluations, teacher.num_evaluations),
        "max_evaluations": evaluations,
    }


def _missed(targets: Targets, measured: Mapping[str, float]) -> str | None:
    """The name of the first target that a plan misses, of those that were measured."""
    for name, wanted in targets.given.items():
        value = measured.get(name, wanted)
        missed = value < wanted if name in AT_LEAST else value > wanted
        if missed and not math.isclose(value, wanted, rel_tol=SLACK):
            return name
    return None


def _require_reached(targets: Targets, best: Mapping[str, float], bounds: Bounds, note: str = "") -> None:
    """Raise InputError for a target that even the best values miss, with the best in digits that can be asked for.

    note: unit or source of a value that depends on the other targets too; empty for counts, which do not.
    """
    name = _missed(targets, best)
    if name is None:
        return
    value, wanted = best[name], targets.given[name]
    if not isinstance(value, int):
        rounding = ROUND_FLOOR if name in AT_LEAST else ROUND_CEILING
        value = float(Context(4, rounding).create_decimal(repr(value)))
    word = "most" if name in AT_LEAST else "least"
    within = ["the bounds"] if bounds else []
    within += ["the other targets"] if note and len(targets.given) > 1 else []
    ending = f" within {' and '.join(within)}" if within else ""
    raise InputError(f"{name}: expected at {word} {value}{note}{ending}, got {wanted}")


def _explain(targets: Targets, metric: str, bounds: str, timed: bool) -> str:
    within = f", within bounds: {bounds}" if bounds else ""
    if targets.max_score is None:
        return f"of all plans with {targets}{within}, the one of least predicted loss by {metric}"
    least = f"the least predicted seconds of {targets.phase}" if timed else "the fewest evaluations"
    return f"of all plans with {targets} by {metric}{within}, the one of {least}"
