"""The plan that `--plan` names: a file's, or one of those that an elastic student lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from iiad.errors import InputError, shorten

if TYPE_CHECKING:
    from iiad.planning.binding import OwnPlan
    from iiad.planning.plan import Plan

__all__ = ["resolve_plan"]


def resolve_plan(plan: str | None, model: str) -> Plan | OwnPlan | None:
    """Return the plan of a file or, of an elastic student's own, the one with that name or cut.

    A cut is the least share of iterations to drop, of the largest plan's or, where plans have tolerances, of the
    teacher's. Says if a file's plan is none of those that the model was trained for. Raises InputError for anything
    else.
    """
    if plan is None:
        return None
    from iiad.checkpoints.configs import load_config
    from iiad.planning.binding import OwnPlan, read_plan
    from iiad.planning.plan import Plan
    from iiad.progress import print_status

    config = load_config(model)
    plans = getattr(config, "plans", None) or []
    names = ", ".join(each["name"] for each in plans)
    if Path(plan).is_file():
        found = read_plan(plan)
        assert isinstance(found, Plan)
        own = (found.num_iterations, found.tolerance)
        if plans and all((each["num_iterations"], each.get("tolerance")) != own for each in plans):
            print_status(f"plan: none of those that {model} was trained for, {names}")
        return found
    wanted = _find_own(plans, plan)
    if wanted is None:
        others = f", or one of {names}, or a cut up to {_cuts(plans)[-1]:.4g}" if plans else ""
        raise InputError(f"plan: expected a file{others}, got {shorten(plan)}")
    at = load_config(model, **config.split_plan(wanted["num_iterations"]))
    tolerance = config.tolerances if config.is_adaptive else None
    if any("tolerance" in each for each in plans):
        tolerance = wanted.get("tolerance")
    return OwnPlan(wanted["name"], wanted["num_iterations"], at.stop_extrapolation, tolerance)


def _find_own(plans: list[dict[str, Any]], text: str) -> dict[str, Any] | None:
    """Return the listed plan of that name, or the largest that drops at least so much; None where there is none."""
    named = [plan for plan in plans if plan["name"] == text]
    try:
        cut = float(text)
    except ValueError:
        return next(iter(named), None)
    reached = [plan for plan, own in zip(plans, _cuts(plans), strict=True) if own >= cut - 1e-6 and cut >= 0]
    return next(iter(named + reached), None)


def _cuts(plans: list[dict[str, Any]]) -> list[float]:
    from iiad.planning.costs import overhead_cut

    dropped = (overhead_cut(plan["num_iterations"], plans[0]["num_iterations"]) for plan in plans)
    return [plan.get("cut", cut) for plan, cut in zip(plans, dropped, strict=True)]
