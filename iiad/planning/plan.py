"""The plan: the number of iterations of each layer of a teacher, and how it was decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from iiad.artefacts import (
    Amount,
    Artefact,
    Coefficients,
    Iterations,
    Number,
    Tolerances,
    check_fields,
    without_empty,
)
from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.influence.profile import Metric, Profile

from .costs import (
    PlanCost,
    compute_cut,
    cost_of,
    count_evaluations,
    overhead_cut,
    predicted_loss,
    predicted_loss_error,
)
from .latency import LatencyTable
from .targets import Bounds, Targets

__all__ = ["Plan", "check_plan"]


_PROVENANCE: dict[str, tuple[set[str], set[str]]] = {
    "explicit": (set(), set()),
    "threshold": (
        {"metric", "threshold", "profile_fingerprint"},
        {"normalize", "bounds", "predicted_loss", "predicted_loss_error", "explanation"},
    ),
    "target": (
        {"metric", "targets", "profile_fingerprint", "predicted_loss", "explanation"},
        {"bounds", "predicted_loss_error", "latency_fingerprint"},
    ),
}
"""Origin -> fields on how a plan came about that it must have, and others that it may have."""


class Plan(Artefact):
    """A budget of iterations for each layer of a teacher, how it came about, and how its stops are extrapolated.

    Invalid: a budget of another length than the teacher's layers, below 0 or above the teacher's own; a threshold
    plan without its metric, threshold or profile, a target plan without its targets, an explicit plan with any.
    """

    kind: Literal["plan"] = "plan"
    teacher: ModelIdentity
    num_iterations: list[Iterations] = Field(description="the budget: r_t for each layer")
    origin: Literal["threshold", "target", "explicit"] = Field(
        description="made by the rule, by targets, or by hand: then all below is null"
    )
    metric: Metric | None = Field(default=None, description="the influence that was compared")
    threshold: float | None = Field(
        default=None, ge=0, description="in the metric's unit or, normalized, a share; threshold plans only"
    )
    normalize: Literal["none", "layer", "model"] | None = Field(
        default=None, description="divisor of the scores before the threshold; null in a threshold plan: none"
    )
    targets: Targets | None = Field(default=None, description="requirements; target plans only")
    bounds: Bounds | None = Field(
        default=None, description="limits of each layer's iterations; null: the teacher's"
    )
    predicted_loss: Number | None = Field(
        default=None,
        description="sum of the dropped scores and, with tolerances, of the shares of the others that stopped tokens "
        "lose, in the metric's unit",
    )
    predicted_loss_error: Amount | None = Field(
        default=None, description="its standard error over the profile's batches; null for one batch"
    )
    extrapolation: list[Coefficients] | None = Field(
        default=None, description="coefficients of each layer at its budget; null: none; not written then"
    )
    tolerance: Tolerances | None = Field(
        default=None,
        description="of each layer: how little a token's state moves where it stops by itself; null: none does; not "
        "written then",
    )
    expected_evaluations: list[Amount] | None = Field(
        default=None,
        description="of each layer under the tolerance, mean of a token; not written without one",
    )
    explanation: str | None = Field(default=None, description="how it came about, in one sentence")
    profile_fingerprint: str | None = Field(default=None, description="sha256 of the profile's file")
    latency_fingerprint: str | None = Field(
        default=None, description="sha256 of the latency table's file, if the plan depends on it"
    )

    @classmethod
    def explicit(cls, num_iterations: Sequence[int], teacher: ModelIdentity) -> Self:
        """Make a plan by hand: r_t for each layer of the teacher. Raises InputError where it does not fit."""
        _require_fit(num_iterations, teacher)
        return cls(teacher=teacher, num_iterations=list(num_iterations), origin="explicit")

    @classmethod
    def of(
        cls, profile: Profile, metric: str, num_iterations: Sequence[int], bounds: Bounds, **made: Any
    ) -> Self:
        """Make a plan from a profile, with what it is predicted to lose. made: the other fields;
        they override the predicted loss.
        """
        return cls(
            teacher=profile.model,
            num_iterations=list(num_iterations),
            metric=metric,
            bounds=bounds or None,
            profile_fingerprint=profile.fingerprint,
            **{
                "predicted_loss": predicted_loss(profile.scores_of(metric), num_iterations),
                "predicted_loss_error": predicted_loss_error(profile, metric, num_iterations),
                **made,
            },
        )

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "extrapolation", "tolerance", "expected_evaluations")

    @property
    def coefficients(self) -> list[Coefficients]:
        """Of each layer at its budget: the plan's, else the teacher's own where a layer runs in full, else none."""
        return self.extrapolation or _coefficients_at(self.num_iterations, self.teacher)

    @property
    def overhead_cut(self) -> float:
        """Iterations dropped / iterations of the teacher, in [0, 1]; 0 for a teacher without iterations."""
        return overhead_cut(self.num_iterations, self.teacher.num_iterations)

    @property
    def compute_cut(self) -> float:
        """Block evaluations dropped / block evaluations of the teacher, in [0, 1)."""
        return compute_cut(count_evaluations(self.teacher, self.num_iterations), self.teacher.num_evaluations)

    def costs(
        self,
        context: int | None = None,
        batch_size: int | None = None,
        latency: LatencyTable | None = None,
        target_tokens: int | None = None,
    ) -> tuple[PlanCost, PlanCost]:
        """Costs of the teacher in full and under the plan, see `cost_of`."""
        whole, cost = (
            cost_of(self.teacher, plan, context, batch_size, latency, target_tokens)
            for plan in (self.teacher.num_iterations, self.num_iterations)
        )
        return whole, cost

    def extrapolated(self, profile: Profile) -> Self:
        """The plan with its stops extrapolated by the profile's least squares.

        Raises InputError for a profile of another teacher, or without what that takes.
        """
        check_plan(self, profile.model)
        found = profile.coefficients(self.num_iterations)
        return check_fields(type(self), {**self.model_dump(), "extrapolation": found}, "profile")

    @field_validator("num_iterations")
    @classmethod
    def _fits_teacher(cls, num_iterations: list[int], info: ValidationInfo) -> list[int]:
        if "teacher" in info.data:  # otherwise reported itself
            _require_fit(num_iterations, info.data["teacher"])
        return num_iterations

    @field_validator("extrapolation")
    @classmethod
    def _fits_stops(cls, found: list[Coefficients] | None, info: ValidationInfo) -> list[Coefficients] | None:
        if found is None or not {"teacher", "num_iterations"} <= info.data.keys():  # reported themselves
            return found
        teacher, budget = info.data["teacher"], info.data["num_iterations"]
        if len(found) != len(budget):
            raise ValueError(f"expected {len(budget)} lists, one a layer, got {len(found)}")
        for layer, (own, whole) in enumerate(zip(found, _coefficients_at(budget, teacher), strict=True)):
            r, name = budget[layer], teacher.layer_name(layer)
            if r in (0, teacher.num_iterations[layer]) and own != whole:
                raise ValueError(
                    f"expected {whole} for {name}, which runs {'all' if r else 'no'} iterations, got {own}"
                )
            if len(own) > r + 1:
                raise ValueError(f"expected at most {r + 1} numbers for {name}, one a step, got {len(own)}")
        return found

    @field_validator("tolerance")
    @classmethod
    def _stops_safely(cls, tolerance: Tolerances | None, info: ValidationInfo) -> Tolerances | None:
        if tolerance is None or not {"teacher", "extrapolation"} <= info.data.keys():
            return tolerance
        if len(tolerance) != (size := info.data["teacher"].num_layers):
            raise ValueError(f"expected {size} entries, one a layer, got {len(tolerance)}")
        if info.data["teacher"].cache_policy != "shared":
            raise ValueError(f"expected null for a teacher without a shared cache, got {tolerance}")
        if any(info.data["extrapolation"] or []):
            raise ValueError(f"expected null in a plan that is extrapolated, got {tolerance}")
        return tolerance

    @field_validator("expected_evaluations")
    @classmethod
    def _are_of_layers(cls, expected: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if expected is None or not {"num_iterations", "tolerance"} <= info.data.keys():
            return expected
        if info.data["tolerance"] is None or len(expected) != len(info.data["num_iterations"]):
            raise ValueError(f"expected a tolerance and a number for each layer, got {len(expected)} numbers")
        return expected

    @model_validator(mode="after")
    def _origin_is_complete(self) -> Self:
        required, optional = _PROVENANCE[self.origin]
        if self.targets is not None and self.targets.limits_latency:
            required = required | {"latency_fingerprint"}
        known = set().union(*(names for both in _PROVENANCE.values() for names in both))
        for name in type(self).model_fields:
            value = getattr(self, name)
            if (value is None and name in required) or (
                value is not None and name in known - required - optional
            ):
                wanted = f"{'null' if value is not None else 'a value'} in a plan of origin {self.origin!r}"
                raise ValueError(f"{name}: expected {wanted}, got {value!r}")
        return self


def check_plan(plan: Plan, identity: ModelIdentity) -> None:
    """Raise InputError unless the plan was made for this teacher and fits it."""
    if plan.teacher.fingerprint != identity.fingerprint:
        raise InputError(
            f"plan: expected one for teacher {identity.name} ({identity.fingerprint[:12]}), got one for "
            f"{plan.teacher.name} ({plan.teacher.fingerprint[:12]}), of other weights or configuration"
        )
    try:
        _require_fit(plan.num_iterations, identity)
    except InputError as error:
        raise InputError(f"plan: num_iterations: {error}") from None


def _coefficients_at(num_iterations: Sequence[int], teacher: ModelIdentity) -> list[Coefficients]:
    """The teacher's own coefficients of the layers that run in full, none of the others."""
    pairs = zip(num_iterations, teacher.num_iterations, teacher.coefficients, strict=True)
    return [own if r == most else [] for r, most, own in pairs]


def _require_fit(num_iterations: Sequence[int], teacher: ModelIdentity) -> None:
    most = teacher.num_iterations
    if len(num_iterations) != len(most):
        raise InputError(f"expected {len(most)} layers, as the teacher has, got {len(num_iterations)}")
    for layer, (r, highest) in enumerate(zip(num_iterations, most, strict=True)):
        if not 0 <= r <= highest:
            name = teacher.layer_name(layer)
            raise InputError(f"expected 0 to {highest} for {name}, the teacher's, got {r}")
