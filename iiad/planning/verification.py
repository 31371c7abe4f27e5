"""The verification: true loss of plans on the untrained, truncated teacher, beside the predicted loss.

`iiad.evaluation.plan_trials` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from iiad.artefacts import (
    Amount,
    Artefact,
    Coefficients,
    Count,
    Iterations,
    Number,
    Record,
    Share,
    Size,
    without_empty,
)
from iiad.identities import DataIdentity, ModelIdentity
from iiad.influence.diagnostics import rank_correlation
from iiad.influence.profile import Metric, Profile

from .baselines import baseline_plans
from .costs import count_evaluations, overhead_cut, predicted_loss
from .curve import TradeOff, thin
from .search import plan_by_target
from .targets import Targets

__all__ = ["Candidate", "Verification", "VerificationSettings", "VerifiedPlan", "candidates", "verified"]

Kind = Literal["plan", "threshold", "front", "metric", "baseline"]


class Candidate(Record):
    """A plan to verify, and where it comes from."""

    kind: Kind = Field(
        description="the plan itself, a point of the threshold's curve or of the Pareto front, the best plan of as "
        "many evaluations by another metric, or a baseline"
    )
    name: str = Field(description="row label")
    num_iterations: list[Iterations]
    extrapolation: list[Coefficients] | None = Field(
        default=None, description="coefficients of each layer; null: none; not written then"
    )

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "extrapolation")


class VerifiedPlan(Candidate):
    """Predicted and true loss of a plan, untrained; means over tokens, in nats."""

    overhead_cut: Share = Field(description="iterations dropped / iterations of the teacher")
    predicted: Number = Field(description="sum of the dropped scores, in the metric's unit")
    kl: Number = Field(description="KL(teacher || truncated teacher)")
    kl_error: Amount | None = Field(description="standard error over the batches; null for one batch")
    loss: Number = Field(description="growth of the loss on the text")
    loss_error: Amount | None = Field(description="standard error over the batches; null for one batch")


class VerificationSettings(Record):
    """Settings of the text and the run."""

    block_size: Size
    batch_size: Size
    max_tokens: Size | None
    seed: Count
    dtype: str
    device: str


class Verification(Artefact):
    """Plans of one teacher run on it, untrained."""

    kind: Literal["verification"] = "verification"
    model: ModelIdentity
    data: list[DataIdentity]
    settings: VerificationSettings
    metric: Metric = Field(description="metric of the profile that the predictions are sums of")
    profile_fingerprint: str
    loss: Number = Field(description="of the full teacher on this text, nats per predicted token")
    plans: list[VerifiedPlan] = Field(min_length=1)

    @field_validator("plans")
    @classmethod
    def _plan_first(cls, plans: list[VerifiedPlan]) -> list[VerifiedPlan]:
        if any(plan.kind == "plan" for plan in plans[1:]):
            raise ValueError("expected the plan itself first or not at all, got it behind others")
        return plans

    @property
    def points(self) -> list[VerifiedPlan]:
        """The plan and the points of curve and front, each budget once."""
        return self._different("plan", "threshold", "front")

    @property
    def equal_cost(self) -> list[VerifiedPlan]:
        """The plan and those of as many iterations, or nearly, each budget once."""
        return self._different("plan", "metric", "baseline")

    def true_loss(self, plan: VerifiedPlan) -> float:
        """Measured value of what the metric predicts: the loss for `loss` and `taylor`, the KL for the others."""
        return plan.loss if self.metric in ("loss", "taylor") else plan.kl

    def rank_correlation(self, plans: Sequence[VerifiedPlan]) -> float | None:
        """Spearman's rank correlation of predicted and true loss over plans; None for fewer than three."""
        return rank_correlation([plan.predicted for plan in plans], [self.true_loss(plan) for plan in plans])

    @property
    def largest_loss(self) -> float:
        """Largest loss of all plans, predicted where it is a loss, or true."""
        predicted = [plan.predicted for plan in self.plans if self.metric in ("kl", "loss", "taylor")]
        return max(map(abs, [*predicted, *map(self.true_loss, self.plans)]))

    @property
    def additivity(self) -> float | None:
        """True loss / predicted loss, over all points of curve and front together (ours); 1: scores add up.

        None for a metric whose scores are no losses, and where nothing was predicted to be lost.
        """
        if self.metric not in ("kl", "loss", "taylor"):
            return None
        predicted = sum(plan.predicted for plan in self.points)
        return sum(map(self.true_loss, self.points)) / predicted if predicted > 0 else None

    def _different(self, *kinds: Kind) -> list[VerifiedPlan]:
        different: dict[tuple[int, ...], VerifiedPlan] = {}
        for plan in self.plans:
            if plan.kind in kinds:
                different.setdefault(tuple(plan.num_iterations), plan)
        return list(different.values())


def candidates(
    profile: Profile,
    curves: TradeOff,
    num_iterations: Sequence[int] | None = None,
    *,
    num_points: int = 12,
    num_random: int = 5,
    seed: int = 0,
    extrapolate: bool = False,
) -> list[Candidate]:
    """Choose plans that test the predictions, and plans chosen without influence to compare with.

    num_iterations: the plan itself. curves: of the profile, by the plan's metric and within its bounds. num_points:
    most points of the threshold's curve, and most of the Pareto front where no threshold gives them, evenly thinned.

    Added are the best plan by each other metric of the profile, of at most as many iterations as the plan, or as the
    middle of the curve where there is none, and baselines of as many, num_random of them random. The teacher is left
    out. extrapolate: every plan has its stops extrapolated, and the plan itself is also run without.
    """
    teacher, ruled = profile.model, {point.num_iterations for point in curves.thresholds}
    others = [point for point in curves.front if point.num_iterations not in ruled]
    found: list[tuple[Kind, str, Sequence[int]]] = []
    if num_iterations is not None:
        found.append(("plan", "plan", num_iterations))
    found += [
        ("threshold", f"threshold {point.threshold:.16g}", point.num_iterations)
        for point in thin(curves.thresholds, num_points)
    ]
    found += [
        ("front", f"best of {point.num_evaluations}", point.num_iterations)
        for point in thin(others, num_points)
    ]
    middle = num_iterations or curves.thresholds[len(curves.thresholds) // 2].num_iterations
    evaluations = count_evaluations(teacher, middle)
    for other in profile.scores:
        if other != curves.metric:
            plan = plan_by_target(profile, Targets(max_evaluations=evaluations), other, curves.bounds)
            found.append(("metric", f"by {other}", plan.num_iterations))
    for name, baseline in baseline_plans(teacher, sum(middle), num_random, seed, curves.bounds):
        found.append(("baseline", name, baseline))
    chosen = [
        Candidate(
            kind=kind,
            name=name,
            num_iterations=list(budget),
            extrapolation=profile.coefficients(budget) if extrapolate else None,
        )
        for kind, name, budget in found
        if list(budget) != teacher.num_iterations
    ]
    if extrapolate and chosen and chosen[0].kind == "plan":
        plain = {"kind": "baseline", "name": "plan, not extrapolated", "extrapolation": None}
        chosen.append(chosen[0].model_copy(update=plain))
    return chosen


def verified(candidate: Candidate, profile: Profile, metric: str, **measured: float | None) -> VerifiedPlan:
    """Join a candidate with its predicted loss and what was measured of it."""
    return VerifiedPlan(
        **candidate.model_dump(),
        overhead_cut=overhead_cut(candidate.num_iterations, profile.model.num_iterations),
        predicted=predicted_loss(profile.scores_of(metric), candidate.num_iterations),
        **measured,
    )
