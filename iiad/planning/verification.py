"""The verification: what plans truly cost the untrained, truncated teacher, beside what was predicted.

Needs no torch; `iiad.evaluation.plan_trials` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from iiad.artefacts import Artefact, DataIdentity, ModelIdentity, Record
from iiad.influence.profile import Profile

from .baselines import baseline_plans
from .bounds import Bounds
from .costs import overhead_cut
from .curve import pareto_front, shortest_threshold, threshold_curve
from .planner import plan_by_target
from .prediction import predicted_loss
from .targets import Targets

__all__ = [
    "Candidate",
    "Verification",
    "VerificationSettings",
    "VerifiedPlan",
    "additivity",
    "candidates",
    "verified",
]

Kind = Literal["plan", "threshold", "front", "metric", "baseline"]


class Candidate(Record):
    """A plan that is to be verified, and where it comes from."""

    kind: Kind = Field(
        description="the plan itself, a point of the threshold's curve or of the Pareto front, the best plan of as "
        "many evaluations by another metric, or a baseline"
    )
    name: str = Field(description="what tables call it")
    num_iterations: list[int]


class VerifiedPlan(Candidate):
    """What a plan is predicted to lose and what it loses, untrained; means over tokens, in nats."""

    overhead_cut: float = Field(description="iterations dropped / iterations of the teacher")
    predicted: float = Field(description="sum of the dropped scores, in the metric's unit")
    kl: float = Field(description="KL(teacher || truncated teacher)")
    kl_error: float | None = Field(description="standard error over the batches; null for one batch")
    loss: float = Field(description="growth of the loss on the text")
    loss_error: float | None = Field(description="standard error over the batches; null for one batch")


class VerificationSettings(Record):
    """How the text was drawn and the model run."""

    block_size: int = Field(ge=2)
    batch_size: int = Field(ge=1)
    max_tokens: int | None = Field(ge=1)
    seed: int
    dtype: str
    device: str


class Verification(Artefact):
    """Plans of one teacher run on it, untrained."""

    kind: Literal["verification"] = "verification"
    model: ModelIdentity
    data: list[DataIdentity]
    settings: VerificationSettings
    metric: str = Field(description="whose scores the predictions add up")
    profile_fingerprint: str
    loss: float = Field(description="of the full teacher on this text, nats per predicted token")
    plans: list[VerifiedPlan] = Field(min_length=1)

    @field_validator("plans")
    @classmethod
    def _plan_first(cls, plans: list[VerifiedPlan]) -> list[VerifiedPlan]:
        if any(plan.kind == "plan" for plan in plans[1:]):
            raise ValueError("found the plan itself behind others; accepted: first or not at all")
        return plans

    @property
    def points(self) -> list[VerifiedPlan]:
        """The plan and the points of curve and front, each different one once."""
        different: dict[tuple[int, ...], VerifiedPlan] = {}
        for plan in self.plans:
            if plan.kind in ("plan", "threshold", "front"):
                different.setdefault(tuple(plan.num_iterations), plan)
        return list(different.values())

    def true_loss(self, plan: VerifiedPlan) -> float:
        """What the metric predicts, measured: the loss for `loss` and `taylor`, the KL for the others."""
        return plan.loss if self.metric in ("loss", "taylor") else plan.kl


def candidates(
    profile: Profile,
    metric: str,
    num_iterations: Sequence[int] | None = None,
    *,
    normalize: str = "none",
    bounds: Bounds | None = None,
    num_points: int = 12,
    num_random: int = 5,
    seed: int = 0,
) -> list[Candidate]:
    """The plans that say whether predictions can be trusted, and whether influence beats choosing without it.

    The plan (num_iterations) itself; points of the threshold's curve and, where no threshold gives them, of the
    Pareto front, at most num_points of each, evenly thinned; the best plan by each other metric of the profile, of
    at most as many iterations as the plan, or as the middle of the curve where there is none, and baselines of as
    many. All keep to the bounds. The teacher is left out.
    """
    curve = threshold_curve(profile, metric, normalize, bounds)
    ruled = {point.num_iterations for point in curve}
    others = [point for point in pareto_front(profile, metric, bounds) if point.num_iterations not in ruled]
    found: list[tuple[Kind, str, Sequence[int]]] = []
    if num_iterations is not None:
        found.append(("plan", "plan", num_iterations))
    points, rest = _thinned(curve, num_points), _thinned(others, num_points)
    found += [
        ("threshold", f"threshold {shortest_threshold(point)}", point.num_iterations) for point in points
    ]
    found += [("front", f"best of {point.num_evaluations}", point.num_iterations) for point in rest]
    middle = num_iterations if num_iterations is not None else curve[len(curve) // 2].num_iterations
    evaluations = sum(middle) + profile.model.num_start_evaluations * profile.model.num_layers
    for other in profile.scores:
        if other != metric:
            plan = plan_by_target(profile, Targets(max_evaluations=evaluations), other, bounds)
            found.append(("metric", f"by {other}", plan.num_iterations))
    for name, baseline in baseline_plans(profile.model, sum(middle), num_random, seed, bounds):
        found.append(("baseline", name, baseline))
    return [
        Candidate(kind=kind, name=name, num_iterations=list(budget))
        for kind, name, budget in found
        if list(budget) != profile.model.num_iterations
    ]


def additivity(verification: Verification) -> float | None:
    """True loss / predicted loss, over all points of curve and front together (ours); 1: scores add up.

    None for a metric whose scores are no losses, and where nothing was predicted to be lost.
    """
    if verification.metric not in ("kl", "loss", "taylor"):
        return None
    predicted = sum(plan.predicted for plan in verification.points)
    return sum(map(verification.true_loss, verification.points)) / predicted if predicted > 0 else None


def verified(candidate: Candidate, profile: Profile, metric: str, **measured: float | None) -> VerifiedPlan:
    """A candidate with what was predicted of it and what was measured."""
    return VerifiedPlan(
        **candidate.model_dump(),
        overhead_cut=overhead_cut(candidate.num_iterations, profile.model.num_iterations),
        predicted=predicted_loss(profile.scores_of(metric), candidate.num_iterations),
        **measured,
    )


def _thinned(points: Sequence[Any], most: int) -> list[Any]:
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]
