"""The plan: how many iterations each layer may run, for which teacher, and how that was decided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from iiad.artefacts import Artefact, ModelIdentity
from iiad.errors import InputError

from .bounds import Bounds
from .costs import compute_cut, overhead_cut
from .targets import Targets

__all__ = ["Plan", "check_plan", "identify_rows", "read_plan", "truncated_identity"]


_REQUIRED: dict[str, set[str]] = {
    "explicit": set(),
    "threshold": {"metric", "threshold", "profile_fingerprint"},
    "target": {"metric", "targets", "profile_fingerprint", "predicted_loss", "explanation"},
}
"""Of the fields that say how a plan came about, those that one of each origin must have."""

_OPTIONAL: dict[str, set[str]] = {
    "explicit": set(),
    "threshold": {"normalize", "bounds", "predicted_loss", "predicted_loss_error", "explanation"},
    "target": {"bounds", "predicted_loss_error", "latency_fingerprint"},
}
"""And those that it may have."""

_PROVENANCE = set().union(*_REQUIRED.values(), *_OPTIONAL.values())


class Plan(Artefact):
    """A budget of iterations for each layer of a teacher, and how it came about.

    Refused as invalid: a budget of another length than the teacher's layers, below 0 or above the teacher's own;
    a threshold plan that does not say by which metric, threshold and profile, a target plan without its targets,
    an explicit one that says any of it.
    """

    kind: Literal["plan"] = "plan"
    teacher: ModelIdentity
    num_iterations: list[int] = Field(description="the budget: r_t for each layer")
    origin: Literal["threshold", "target", "explicit"] = Field(
        description="the rule or the target that made it, or written by hand: then all below is null"
    )
    metric: str | None = Field(default=None, description="the influence that was compared")
    threshold: float | None = Field(
        default=None, ge=0, description="in the metric's unit or, normalized, a share; threshold plans only"
    )
    normalize: Literal["none", "layer", "model"] | None = Field(
        default=None,
        description="what scores were divided by before the threshold; null in a threshold plan: none",
    )
    targets: Targets | None = Field(default=None, description="what it had to reach; target plans only")
    bounds: Bounds | None = Field(
        default=None, description="what it could give each layer; null: as the teacher"
    )
    predicted_loss: float | None = Field(
        default=None, description="sum of the dropped scores, in the metric's unit"
    )
    predicted_loss_error: float | None = Field(
        default=None, ge=0, description="its standard error over the profile's batches; null for one batch"
    )
    explanation: str | None = Field(default=None, description="how it came about, in one sentence")
    profile_fingerprint: str | None = Field(default=None, description="sha256 of the profile's file")
    latency_fingerprint: str | None = Field(
        default=None, description="sha256 of the latency table's file, if it had a part in the plan"
    )

    @classmethod
    def explicit(cls, num_iterations: Sequence[int], teacher: ModelIdentity) -> Self:
        """A plan written by hand: r_t for each layer of the teacher. Raises InputError where it does not fit."""
        _require_fit(num_iterations, teacher)
        return cls(teacher=teacher, num_iterations=list(num_iterations), origin="explicit")

    @property
    def overhead_cut(self) -> float:
        """Iterations dropped / iterations of the teacher, in [0, 1]: what the paper's 55 % is compared with.

        0 for a teacher without iterations.
        """
        return overhead_cut(self.num_iterations, self.teacher.num_iterations)

    @property
    def compute_cut(self) -> float:
        """Block evaluations dropped / block evaluations of the teacher, in [0, 1)."""
        return compute_cut(self.num_evaluations, self.teacher.num_evaluations)

    @property
    def num_evaluations(self) -> int:
        """Block evaluations per token under the plan, sum over t of (start evaluations + r_t)."""
        return sum(self.teacher.num_start_evaluations + r for r in self.num_iterations)

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values that decoding keeps under the plan, bytes per token."""
        return self.teacher.cache_bytes_at(self.num_evaluations)

    @field_validator("num_iterations")
    @classmethod
    def _fits_teacher(cls, num_iterations: list[int], info: ValidationInfo) -> list[int]:
        if "teacher" in info.data:  # else it is at fault itself, and reported first
            _require_fit(num_iterations, info.data["teacher"])
        return num_iterations

    @model_validator(mode="after")
    def _origin_is_complete(self) -> Self:
        required, optional = _REQUIRED[self.origin], _OPTIONAL[self.origin]
        if self.targets is not None and self.targets.limits_latency:
            required = required | {"latency_fingerprint"}
        for name in type(self).model_fields:
            value = getattr(self, name)
            missing = value is None and name in required
            if missing or (value is not None and name in _PROVENANCE - required - optional):
                accepted = "a value" if missing else "null"
                raise ValueError(
                    f"{name} is {value!r}; accepted in a plan of origin {self.origin!r}: {accepted}"
                )
        return self


def check_plan(plan: Plan, identity: ModelIdentity) -> None:
    """Raise InputError, in one line, unless the plan was made for this teacher and fits it."""
    if plan.teacher.fingerprint != identity.fingerprint:
        raise InputError(
            f"plan: was made for teacher {plan.teacher.name} ({_short(plan.teacher.fingerprint)}); "
            f"found {identity.name} ({_short(identity.fingerprint)}), which has other weights or configuration"
        )
    try:
        _require_fit(plan.num_iterations, identity)
    except InputError as error:
        raise InputError(f"plan: num_iterations: {error}") from None


def read_plan(plan: Plan | str | Path | None) -> Plan | None:
    """A plan, read from its file if it is not one already; None stays None. Raises InputError as Plan.load."""
    if not isinstance(plan, str | Path):
        return plan
    return Plan.load(plan)


def truncated_identity(identity: ModelIdentity, plan: Plan) -> ModelIdentity:
    """The same model under the plan. Raises InputError where the plan is not one for this model."""
    check_plan(plan, identity)
    return identity.model_copy(update={"num_iterations": list(plan.num_iterations)})


def identify_rows(label: str, identity: ModelIdentity, plan: Plan | None) -> list[tuple[str, ModelIdentity]]:
    """The rows that one model makes in a comparison: itself and, with a plan, itself truncated to that.

    Each is a label, and the model under the plan that the row runs. Raises InputError as `truncated_identity`.
    """
    rows = [(label, identity)]
    if plan is not None:
        rows.append((f"{label}, truncated", truncated_identity(identity, plan)))
    return rows


def _require_fit(num_iterations: Sequence[int], teacher: ModelIdentity) -> None:
    most = teacher.num_iterations
    if len(num_iterations) != len(most):
        raise InputError(f"found {len(num_iterations)} layers; accepted: {len(most)}, as the teacher has")
    for number, (r, highest) in enumerate(zip(num_iterations, most, strict=True), 1):
        if not 0 <= r <= highest:
            raise InputError(f"found {r} for layer {number}; accepted: 0 to {highest}, the teacher's")


def _short(fingerprint: str) -> str:
    return fingerprint[:12]
