"""The family: nested plans of one teacher, from the largest to the smallest, that one student learns at once.

Each plan is contained in the one before: no layer's budget grows while another's shrinks, and no tolerance shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from iiad.artefacts import (
    Artefact,
    Coefficients,
    Iterations,
    Number,
    Record,
    Share,
    Tolerances,
    check_fields,
    without_empty,
)
from iiad.errors import InputError, shorten
from iiad.files import read_json
from iiad.identities import ModelIdentity
from iiad.influence.profile import Metric, Profile

from .baselines import spread_evenly
from .choices import SLACK
from .costs import overhead_cut, predicted_loss
from .curve import front_within
from .plan import Plan
from .targets import Bounds
from .tolerance import choose_stops

__all__ = [
    "DEFAULT_CUTS",
    "Family",
    "FamilyPlan",
    "even_family",
    "make_adaptive_family",
    "make_family",
    "read_budget",
    "read_cuts",
    "require_nested",
]

DEFAULT_CUTS = (0.0, 0.3, 0.55, 0.75, 1.0)
MOST_PLANS = 64


class FamilyPlan(Record):
    """One plan of a family."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9.-]{0,39}$")] = Field(
        description="by which --plan finds it: full, or cut- and the percentage that was asked for"
    )
    cut: Share = Field(
        description="share of the teacher's iterations that it drops; with tolerances that of the profiled tokens"
    )
    num_iterations: list[Iterations] = Field(description="r_t for each layer")
    predicted_loss: Number | None = Field(
        default=None, description="in the metric's unit, see Plan; null without a profile"
    )
    extrapolation: list[Coefficients] | None = Field(
        default=None, description="coefficients of each layer at its budget; not written where there is none"
    )
    tolerance: Tolerances | None = Field(
        default=None, description="of each layer; not written where none has one"
    )

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "extrapolation", "tolerance")


class Family(Artefact):
    """Nested plans of a teacher, the largest first.

    Invalid: a plan that does not fit the teacher, is not contained in the one before or equals it; a name twice; a
    cut that is not the plan's.
    """

    kind: Literal["family"] = "family"
    teacher: ModelIdentity
    metric: Metric | None = Field(default=None, description="the influence that was compared; null: none")
    profile_fingerprint: str | None = Field(default=None, description="sha256 of the profile's file")
    plans: list[FamilyPlan] = Field(min_length=1, max_length=MOST_PLANS)

    @property
    def members(self) -> list[Plan]:
        """Its plans as plans by hand. Raises InputError for one that does not fit the teacher."""
        fields = (
            {
                "teacher": self.teacher.model_dump(),
                "num_iterations": each.num_iterations,
                "origin": "explicit",
                "extrapolation": each.extrapolation,
                "tolerance": each.tolerance,
            }
            for each in self.plans
        )
        return [check_fields(Plan, one, f"plans.{number}") for number, one in enumerate(fields)]

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        names = [each.name for each in self.plans]
        for number, (each, plan) in enumerate(zip(self.plans, self.members, strict=True)):
            own = plan.overhead_cut
            if each.cut < own - 1e-6 or (each.cut > own + 1e-6 and not each.tolerance):
                least = "at least " if each.tolerance else ""
                raise ValueError(f"plans.{number}.cut: expected {least}the plan's {own:.6g}, got {each.cut}")
            if each.name in names[:number]:
                raise ValueError(f"plans.{number}.name: expected each once, got {each.name} twice")
        require_nested(self.plans, self.teacher)
        return self


def read_budget(plan: Plan | Family | str | Path | None) -> Plan | Family | None:
    """Read a plan or a family from its file; return either, or None, as it is. Raises InputError for another file."""
    if isinstance(plan, str | Path) and read_json(plan).get("kind") == "family":
        return Family.load(plan)
    return Plan.load(plan) if isinstance(plan, str | Path) else plan


def require_nested(plans: Sequence[FamilyPlan], teacher: ModelIdentity) -> None:
    """Raise InputError unless each plan is contained in the one before, and smaller.

    Contained: no layer runs more iterations, and where it may run several its tolerance is not below the other's.
    """
    for number, (before, plan) in enumerate(pairwise(plans), 1):
        for layer, (most, r) in enumerate(zip(before.num_iterations, plan.num_iterations, strict=True)):
            name = teacher.layer_name(layer)
            if r > most:
                expected = f"at most {most} iterations of {name}, as in {before.name} before it"
                raise InputError(f"plans.{number}: expected {expected}, got {r}")
            least, own = (each.tolerance[layer] if each.tolerance else None for each in (before, plan))
            if r > 1 and least is not None and (own is None or own < least):
                expected = f"a tolerance of at least {least:.4g} in {name}, as in {before.name} before it"
                raise InputError(f"plans.{number}: expected {expected}, got {own}")
        if (before.num_iterations, before.tolerance) == (plan.num_iterations, plan.tolerance):
            raise InputError(
                f"plans.{number}: expected fewer iterations than {before.name}, got the same plan twice"
            )


def read_cuts(text: str) -> list[float]:
    """Parse cuts of the command line, "0,0.3,1". Raises InputError for anything but shares, each once."""
    try:
        cuts = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"cuts: expected shares from 0 to 1, as in 0,0.3,1, got {shorten(text)}") from None
    return check_cuts(cuts)


def check_cuts(cuts: Sequence[float]) -> list[float]:
    """Return the cuts in order. Raises InputError for none, too many, one out of range or one that is there twice."""
    if not 1 <= len(cuts) <= MOST_PLANS:
        raise InputError(f"cuts: expected 1 to {MOST_PLANS}, got {len(cuts)}")
    for cut in cuts:
        if not 0 <= cut <= 1:
            raise InputError(f"cuts: expected shares from 0 to 1, got {cut}")
    found = sorted(cuts)
    for before, cut in pairwise(found):
        if before == cut:
            raise InputError(f"cuts: expected each once, got {cut:g} twice")
    return found


def make_family(
    profile: Profile,
    cuts: Sequence[float] = DEFAULT_CUTS,
    metric: str = "kl",
    bounds: Bounds | None = None,
    extrapolate: bool = False,
) -> Family:
    """Make nested plans that drop at least these shares of the iterations, each of the least predicted loss (ours).

    The best plans of all need not be nested. So each is the best of those that the plan before contains: the first is
    that of `plan_by_target`, and where a layer's scores fall from iteration to iteration all of them are. A cut of 0
    is every iteration within the bounds; a cut whose plan is that of the one before adds none.

    Raises InputError for cuts out of range, twice, or that the bounds do not allow, and for a metric, or sums to
    extrapolate by, that the profile does not hold.
    """
    scores, teacher = profile.scores_of(metric), profile.model
    limits = (bounds or Bounds()).limits(teacher)
    found: list[tuple[float, list[int]]] = []
    for cut in check_cuts(cuts):
        plan = [most for _, most in limits]
        if cut > 0:
            front = front_within(profile, metric, limits)
            reached = [point for point in front if point.overhead_cut >= cut * (1 - SLACK)]
            if not reached:
                most_cut = f"{front[-1].overhead_cut:.4g} within the bounds"
                raise InputError(f"cuts: expected at most {most_cut}, got {cut:g}")
            plan = list(reached[0].num_iterations)
        found.append((cut, plan))
        limits = [(least, r) for (least, _), r in zip(limits, plan, strict=True)]
    plans = [
        FamilyPlan(
            name=name,
            cut=overhead_cut(plan, teacher.num_iterations),
            num_iterations=plan,
            predicted_loss=predicted_loss(scores, plan),
            extrapolation=profile.coefficients(plan) if extrapolate else None,
        )
        for name, plan in _named(found, teacher)
    ]
    return Family(teacher=teacher, metric=metric, profile_fingerprint=profile.fingerprint, plans=plans)


def make_adaptive_family(
    profile: Profile,
    cuts: Sequence[float] = DEFAULT_CUTS,
    metric: str = "kl",
    bounds: Bounds | None = None,
) -> Family:
    """Make nested plans with tolerances: tokens drop at least these shares of the iterations in the mean (ours).

    Each is the best by `choose_stops` of those that the plan before contains. Raises InputError as `make_family` and
    as that.
    """
    teacher, scores = profile.model, profile.scores_of(metric)
    limits, least, dropped = (bounds or Bounds()).limits(teacher), None, -1.0
    start, whole = teacher.num_start_evaluations * teacher.num_layers, sum(teacher.num_iterations)
    plans: list[FamilyPlan] = []
    for cut in check_cuts(cuts):
        if cut * (1 - SLACK) <= dropped:
            continue
        plan, tolerances = [most for _, most in limits], None
        lost, dropped = predicted_loss(scores, plan), overhead_cut(plan, teacher.num_iterations)
        if cut > dropped:
            if cut > (most := overhead_cut([fewest for fewest, _ in limits], teacher.num_iterations)):
                raise InputError(f"cuts: expected at most {most:.4g} within the bounds, got {cut:g}")
            stops = choose_stops(profile, metric, limits, cut, least)
            plan, least = [stop.num_iterations for stop in stops], [stop.tolerance for stop in stops]
            tolerances = least if any(least) else None
            lost = math.fsum(stop.predicted_loss for stop in stops)
            dropped = (start + whole - sum(stop.expected_evaluations for stop in stops)) / whole
        name = f"cut-{100 * cut:.6g}" if plans or dropped > 0 else "full"
        plans.append(
            FamilyPlan(name=name, cut=dropped, num_iterations=plan, predicted_loss=lost, tolerance=tolerances)
        )
        limits = [(fewest, r) for (fewest, _), r in zip(limits, plan, strict=True)]
    return Family(teacher=teacher, metric=metric, profile_fingerprint=profile.fingerprint, plans=plans)


def even_family(teacher: ModelIdentity, cuts: Sequence[float] = DEFAULT_CUTS) -> Family:
    """Make nested plans without a profile: iterations are spread evenly over the layers, the first ones first (ours).

    Raises InputError for cuts out of range or twice, and for a teacher without iterations.
    """
    whole = teacher.num_iterations
    if not any(whole):
        raise InputError(f"cuts: expected a teacher with iterations, got a {teacher.model_type} without")
    kept = [(cut, math.floor(sum(whole) * (1 - cut) + SLACK)) for cut in check_cuts(cuts)]
    found = [(cut, spread_evenly(whole, number)) for cut, number in kept]
    plans = [
        FamilyPlan(name=name, cut=overhead_cut(plan, whole), num_iterations=plan)
        for name, plan in _named(found, teacher)
    ]
    return Family(teacher=teacher, plans=plans)


def _named(found: Sequence[tuple[float, list[int]]], teacher: ModelIdentity) -> list[tuple[str, list[int]]]:
    """Name each plan by its cut; a plan that is there already is left out."""
    named: list[tuple[str, list[int]]] = []
    for cut, plan in found:
        if not named or plan != named[-1][1]:
            name = "full" if plan == teacher.num_iterations else f"cut-{100 * cut:.6g}"
            named.append((name, plan))
    return named
