"""A plan and the model that runs it: read, bound to the model, and the model's identity under it. All ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iiad.artefacts import Coefficients, Tolerances
from iiad.identities import ModelIdentity

from .plan import Plan, check_plan

__all__ = ["AnyPlan", "OwnPlan", "bind_plan", "identify_rows", "read_plan", "truncated_identity"]


@dataclass(frozen=True)
class OwnPlan:
    """A plan that a model's configuration lists: of `bind_plan`, once the model is loaded.

    extrapolation: coefficients of each layer at the plan's stops, by the configuration. tolerance: of each layer.
    """

    name: str
    num_iterations: Sequence[int]
    extrapolation: Sequence[Coefficients]
    tolerance: Tolerances | None = None


def bind_plan(plan: Plan | OwnPlan, identity: ModelIdentity) -> Plan:
    """Return the plan of this model. Raises InputError as `check_plan`, and for one that the model cannot run."""
    if isinstance(plan, Plan):
        check_plan(plan, identity)
        return plan
    made = Plan.explicit(plan.num_iterations, identity)
    found = [list(layer) for layer in plan.extrapolation]
    changes = {
        "extrapolation": found if any(found) else None,
        "tolerance": plan.tolerance,
    }
    return made.model_copy(update=changes)


def read_plan(plan: AnyPlan | None) -> Plan | OwnPlan | None:
    """Read a plan from its file; return anything else as it is. Raises InputError as `Plan.load`."""
    return Plan.load(plan) if isinstance(plan, str | Path) else plan


AnyPlan = Plan | OwnPlan | str | Path
"""A plan, one that the model lists, or a plan's file."""


def truncated_identity(identity: ModelIdentity, plan: Plan) -> ModelIdentity:
    """The same model under the plan. Raises InputError as `check_plan`."""
    check_plan(plan, identity)
    coefficients = plan.coefficients if any(plan.coefficients) else None
    budget = list(plan.num_iterations)
    changes = {"num_iterations": budget, "extrapolation": coefficients, "tolerance": plan.tolerance}
    return identity.model_copy(update=changes)


def identify_rows(
    label: str, identity: ModelIdentity, plan: Plan | OwnPlan | None
) -> list[tuple[str, ModelIdentity]]:
    """Rows of one model in a comparison, each a label and the model under a plan: its own and, if given, `plan`.

    Raises InputError as `bind_plan`.
    """
    rows = [(label, identity)]
    if plan is not None:
        rows.append((_label(label, plan), truncated_identity(identity, bind_plan(plan, identity))))
    return rows


def _label(label: str, plan: Plan | OwnPlan) -> str:
    if isinstance(plan, OwnPlan):
        return f"{label}, {plan.name}"
    if plan.tolerance and plan.num_iterations == plan.teacher.num_iterations:
        return f"{label}, adaptive"
    how = " and extrapolated" if plan.extrapolation else " and adaptive" if plan.tolerance else ""
    return f"{label}, truncated{how}"
