"""The plan: how many iterations each layer may run, for which teacher, and how that was decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from iiad.artefacts import Artefact, ModelIdentity
from iiad.errors import InputError

__all__ = ["Plan", "check_plan"]


class Plan(Artefact):
    """A budget of iterations for each layer of a teacher.

    Refused as invalid: a budget of another length than the teacher's layers, below 0 or above the teacher's own;
    a threshold plan that does not say by which metric, threshold and profile, an explicit one that does.
    """

    kind: Literal["plan"] = "plan"
    teacher: ModelIdentity
    num_iterations: list[int] = Field(description="the budget: r_t for each layer")
    origin: Literal["threshold", "explicit"] = Field(description="the rule that made it, or written by hand")
    metric: str | None = Field(
        default=None, description="the influence that was compared; threshold plans only"
    )
    threshold: float | None = Field(
        default=None, ge=0, description="in the metric's unit; threshold plans only"
    )
    profile_fingerprint: str | None = Field(
        default=None, description="sha256 of the profile's file; threshold plans only"
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
        whole = sum(self.teacher.num_iterations)
        return (whole - sum(self.num_iterations)) / whole if whole else 0.0

    @property
    def compute_cut(self) -> float:
        """Block evaluations dropped / block evaluations of the teacher, in [0, 1)."""
        return 1 - self.num_evaluations / self.teacher.num_evaluations

    @property
    def num_evaluations(self) -> int:
        """Block evaluations per token under the plan, sum over t of (start evaluations + r_t)."""
        return sum(self.teacher.num_start_evaluations + r for r in self.num_iterations)

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values that decoding keeps under the plan, bytes per token: one slot an evaluation."""
        return self.num_evaluations * self.teacher.cache_bytes_per_slot

    @field_validator("num_iterations")
    @classmethod
    def _fits_teacher(cls, num_iterations: list[int], info: ValidationInfo) -> list[int]:
        if "teacher" in info.data:  # else it is at fault itself, and reported first
            _require_fit(num_iterations, info.data["teacher"])
        return num_iterations

    @model_validator(mode="after")
    def _origin_is_complete(self) -> Self:
        for name in ("metric", "threshold", "profile_fingerprint"):
            if (getattr(self, name) is None) != (self.origin == "explicit"):
                accepted = "null" if self.origin == "explicit" else "a value"
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; accepted in a plan of origin {self.origin!r}: {accepted}"
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


def _require_fit(num_iterations: Sequence[int], teacher: ModelIdentity) -> None:
    most = teacher.num_iterations
    if len(num_iterations) != len(most):
        raise InputError(f"found {len(num_iterations)} layers; accepted: {len(most)}, as the teacher has")
    for number, (r, highest) in enumerate(zip(num_iterations, most, strict=True), 1):
        if not 0 <= r <= highest:
            raise InputError(f"found {r} for layer {number}; accepted: 0 to {highest}, the teacher's")


def _short(fingerprint: str) -> str:
    return fingerprint[:12]
