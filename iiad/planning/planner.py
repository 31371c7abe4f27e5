"""Plans that reach a target: the best of all budgets, not only of those that a threshold can give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iiad.artefacts import ModelIdentity
from iiad.errors import InputError
from iiad.influence.profile import Profile

from .bounds import Bounds
from .exact import Solution, minimise, whole_rows
from .latency import LatencyTable, PhaseLatency, check_latency
from .limits import largest_total, limits_of_iterations, limits_of_loss, limits_of_seconds
from .plan import Plan
from .prediction import LOSS_UNITS, dropped_scores, predicted_loss, predicted_loss_error
from .targets import Targets
from .threshold import plan_by_threshold

__all__ = ["load_latency", "make_plan", "plan_by_target"]


def make_plan(
    profile: Profile,
    threshold: float | None = None,
    targets: Targets | None = None,
    metric: str = "kl",
    normalize: str | None = None,
    bounds: Bounds | None = None,
    latency: LatencyTable | None = None,
) -> Plan:
    """The plan by a threshold or by targets, whichever is given.

    Raises InputError for both and for neither, for `normalize` with targets, and as the two functions do.
    """
    if threshold is None and not targets:
        names = ["threshold", *Targets.__dataclass_fields__]
        options = ", ".join("--" + name.replace("_", "-") for name in names if name != "phase")
        raise InputError(
            f"found neither a threshold nor a target; accepted: {options}; --curve shows all plans"
        )
    if threshold is not None:
        if targets:
            raise InputError(
                f"threshold: found beside {', '.join(targets.given)}; accepted: a threshold or targets, not both"
            )
        return plan_by_threshold(profile, threshold, metric, normalize or "none", bounds)
    if normalize is not None:
        raise InputError(
            "normalize: found beside targets; accepted with a threshold, which it is the unit of"
        )
    assert targets is not None
    return plan_by_target(profile, targets, metric, bounds, latency)


def load_latency(
    path: str | Path | None,
    teacher: ModelIdentity,
    phase: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    context: int | None = None,
) -> LatencyTable | None:
    """The latency table of a file, if one is named, checked to be of this teacher and as asked for.

    None takes what the table has. Raises InputError for a table of anything else, and where no file is named for
    what only a table has: phase, device and dtype.
    """
    if path is None:
        for name, value in {"phase": phase, "device": device, "dtype": dtype}.items():
            if value is not None:
                raise InputError(f"{name}: found {value} without a latency table; accepted with --latency")
        return None
    table = LatencyTable.load(path)
    check_latency(table, teacher, device, dtype, batch_size, context)
    return table


def plan_by_target(
    profile: Profile,
    targets: Targets,
    metric: str = "kl",
    bounds: Bounds | None = None,
    latency: LatencyTable | None = None,
) -> Plan:
    """The best plan that reaches all targets, exactly: none of the other budgets is better (ours).

    With targets of cost alone the best is the least predicted loss, which is the sum of the dropped scores. With
    `max_score` it is the cheapest: of the fewest evaluations, or of the least seconds of `targets.phase` where a
    latency table is given. Of equals the one of fewest evaluations, then the quicker or the one that loses less,
    then the lexicographically first. Iterations below zero are dropped where that helps.

    bounds: what each layer may run. Default: up to the teacher's. latency: needed for `max_latency_ms` and
    `speedup`; must be of this teacher.

    Raises InputError for no target, for a latency target without a table, for a table of another model, and for
    targets that cannot be reached, saying what can.
    """
    if not targets:
        raise InputError("targets: found none; accepted: at least one")
    if targets.limits_latency and latency is None:
        name = "max_latency_ms" if targets.max_latency_ms is not None else "speedup"
        raise InputError(
            f"{name}: found no latency table; accepted with one, as `iiad bench --layers` measures it"
        )
    if latency is not None:
        check_latency(latency, profile.model)
    bounds = bounds or Bounds()
    problem = _Problem(profile, targets, metric, bounds, latency)
    budget = problem.solve()
    scores = profile.scores_of(metric)
    loss = predicted_loss(scores, budget)
    timed = latency is not None and (targets.limits_latency or targets.max_score is not None)
    return Plan(
        teacher=profile.model,
        num_iterations=budget,
        origin="target",
        metric=metric,
        targets=targets,
        bounds=bounds or None,
        predicted_loss=loss,
        predicted_loss_error=predicted_loss_error(profile, metric, budget),
        profile_fingerprint=profile.fingerprint,
        latency_fingerprint=latency.fingerprint if latency is not None and timed else None,
        explanation=_explain(targets, metric, loss, bounds, timed),
    )


def _explain(targets: Targets, metric: str, loss: float, bounds: Bounds, timed: bool) -> str:
    within = f", within bounds: {bounds}" if bounds else ""
    if targets.max_score is None:
        return f"of all plans with {targets}{within}, the one of least predicted loss by {metric}"
    least = f"the least predicted seconds of {targets.phase}" if timed else "the fewest evaluations"
    return f"of all plans with {targets} by {metric}{within}, the one of {least}"


class _Problem:
    """One question to the solver.

    A layer's choices are its budgets from the least that the bounds allow on, counted in steps above it; losses
    and seconds are whole multiples of 1 / loss_scale and 1 / second_scale.
    """

    def __init__(
        self,
        profile: Profile,
        targets: Targets,
        metric: str,
        bounds: Bounds,
        latency: LatencyTable | None,
    ):
        self.teacher, self.targets, self.metric = profile.model, targets, metric
        self.limits = bounds.limits(profile.model)
        self.within = " within the bounds" if bounds else ""
        losses, self.loss_scale = dropped_scores(profile.scores_of(metric))
        self.losses = self._allowed(losses)
        self.nothing = [[0] * len(layer) for layer in self.losses]
        self.phase: PhaseLatency | None = getattr(latency, targets.phase) if latency else None
        if self.phase is not None:
            rows = [[self.phase.fixed_seconds], *self.phase.layers]
            [[self.fixed], *seconds], self.second_scale = whole_rows(rows)
            self.seconds = self._allowed(seconds)

    def solve(self) -> list[int]:
        """The best budget. Raises InputError where there is none."""
        least, most = (sum(limit[side] for limit in self.limits) for side in (0, 1))
        count = limits_of_iterations(self.targets, self.teacher)
        steps = largest_total(count, least, most, self.within) - least
        # A limit on iterations can always be kept, by the least of all plans; the others only beside it.
        within = self.within + (" and the other targets" if self.within else " within the other targets")
        within = within if len(self.targets.given) > 1 else self.within
        if self.targets.limits_latency:
            best = self._minimise(self.losses, self.seconds, steps, self._slowest(steps, within))
        else:
            best = self._minimise(self.losses, self.nothing, steps, 0)
        if self.targets.max_score is not None:
            # What is cheapest is no slower than the plan just found, so that it keeps the limit on seconds too.
            limits = limits_of_loss(self.targets, self.loss_scale, LOSS_UNITS[self.metric])
            worst = largest_total(limits, best.cost, sum(map(max, self.losses)), within)
            costs = self.nothing if self.phase is None else self.seconds
            best = self._minimise(costs, self.losses, steps, worst)
        return [low + j for (low, _), j in zip(self.limits, best.steps, strict=True)]

    def _slowest(self, steps: int, within: str) -> int:
        """The most seconds of all layers that the targets allow."""
        assert self.phase is not None
        quickest = self._minimise(self.seconds, self.nothing, steps, 0).cost
        limits = limits_of_seconds(self.targets, self.teacher, self.phase, self.fixed, self.second_scale)
        return largest_total(limits, quickest, sum(map(max, self.seconds)), within)

    def _allowed(self, layers: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        return [layer[low : high + 1] for layer, (low, high) in zip(layers, self.limits, strict=True)]

    @staticmethod
    def _minimise(
        costs: Sequence[Sequence[int]], weights: Sequence[Sequence[int]], steps: int, heaviest: int
    ) -> Solution:
        pairs = [list(zip(*layer, strict=True)) for layer in zip(costs, weights, strict=True)]
        found = minimise(pairs, steps, heaviest)
        assert found is not None  # the limits were set by what is possible
        return found
