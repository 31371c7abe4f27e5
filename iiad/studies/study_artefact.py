"""study.json: what the runs of a study gave, with intervals over seeds. Needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from iiad.artefacts import Amount, Artefact, Count, Fields, Number, Record, Share, Size

from .estimation import Estimate

__all__ = ["ArmResult", "PlanKind", "SeedFigures", "StudentResult", "StudyResult"]


PlanKind = Literal["influence", "uniform", "random", "latency"]
"""Origin of a student's plan: by influence, or one to compare with."""


class SeedFigures(Record):
    """One model's figures on the validation data."""

    seed: Count
    nll: Number = Field(description="mean negative log likelihood of a token that is asked for, in nats")
    accuracy: Share
    seconds: Amount | None = Field(
        description="of training, from its logged tokens per second; null if not logged"
    )
    texts: dict[str, Amount] = Field(
        default={}, description="scores of its texts, 0 to 100: bleu, chrf, rouge1, rouge2, rougeL"
    )


class ArmResult(Record):
    """An arm: one recipe, several seeds."""

    name: str
    learning_rate: Amount
    tried: dict[str, Number] = Field(description="learning rate -> nats per token, for the first seed")
    parameters: Count
    evaluations_per_token: Count
    tokens: Count = Field(description="that each model learned from")
    training_flops: Amount = Field(description="estimated, of one model")
    runs: list[SeedFigures]
    nll: Estimate
    accuracy: Estimate
    nll_difference: Estimate | None = Field(description="to the reference, paired by seed; null for itself")
    accuracy_difference: Estimate | None
    texts: dict[str, Estimate] = Field(default={}, description="scores of texts, 0 to 100")
    text_differences: dict[str, Estimate] = Field(
        default={}, description="of these scores, to the reference, paired by seed; none for itself"
    )


class StudentResult(Record):
    """Models at one cut, one a seed; retained is the accuracy as a share of the teacher's of that seed."""

    cut: Share = Field(description="share of the iterations that was to be dropped")
    plan: PlanKind
    training: Literal["none", "distilled", "from scratch"]
    overhead_cut: Share = Field(description="mean share that the plans drop")
    evaluations_per_token: Number = Field(description="mean over seeds")
    runs: list[SeedFigures]
    nll: Estimate
    accuracy: Estimate
    texts: dict[str, Estimate] = Field(default={}, description="scores of texts, 0 to 100")
    text_differences: dict[str, Estimate] = Field(
        default={}, description="of these scores, to the teachers, paired by seed"
    )
    retained: Estimate | None = Field(description="null where a teacher has no accuracy")
    to_influence: Estimate | None = Field(
        default=None,
        description="accuracy less that by influence at this seed, cut and training; null for itself",
    )


class StudyResult(Artefact):
    """Arms and students of a study, as far as their runs ended well."""

    kind: Literal["study"] = "study"
    definition: Fields = Field(description="the study's file")
    iiad_version: str
    reference: str
    arms: list[ArmResult]
    students: list[StudentResult]
    failed: dict[str, str] = Field(description="runs that did not end well, each with its last line")
    answer: str = Field(description="one sentence, no stronger than the intervals")
    num_runs: Size
