"""The sections of a distillation's recipe: the student before it learns, and the stages with their losses."""

from __future__ import annotations

from operator import mul
from typing import Literal

from pydantic import Field

from .problems import Conflicts, Section
from .sections import StageSection, Weight

__all__ = ["STAGES", "DistillationSection", "ElasticSection", "OnPolicySection", "StudentSection"]

STAGES = ("layerwise", "distill", "recover", "onpolicy")
"""Stages of distillation, in order."""


class StudentSection(Section):
    """The student before it learns. Its plan is given apart from the recipe."""

    init: str = Field("teacher", min_length=1, description="weights: teacher, random, or a model folder")
    start_norm: Literal["start", "update"] = Field(
        "start", description="norm of every iteration of a layer: its start's, or the teacher's last one's"
    )
    predictor_stages: int | None = Field(
        None, ge=1, le=4, description="pcformer: stages of its predictor to keep; replaces the plan"
    )
    cache_policy: Literal["exact", "shared"] | None = Field(
        None,
        description="shared: all evaluations of a layer attend to the keys and values of its first, in one cache "
        "slot; no plan is needed then; default: the teacher's",
    )

    def conflicts(self) -> Conflicts:
        """Norms that can be moved."""
        if self.start_norm == "update" and self.init != "teacher":
            yield "start_norm", "start with init other than teacher: update moves the teacher's norms"


class ElasticSection(Section):
    """One student for several nested plans. They are those of `iiad plan --family`, or of `cuts`."""

    cuts: list[float] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="without a profile: shares of iterations to drop, evenly over the layers; null: plans are given, "
        "or one alone",
    )
    rule: Literal["sandwich", "single"] = Field(
        "sandwich",
        description="plans of a step; sandwich: the largest, the smallest and num_between of those between; single: "
        "one of all, so that the same evaluations make more steps",
    )
    num_between: int = Field(
        1, ge=0, le=62, description="plans between the largest and the smallest to draw in each step"
    )
    weights: list[Weight] | None = Field(
        None,
        description="how likely each plan is to be drawn, in their order; sandwich: each between; default: all alike",
    )
    teacher: Literal["teacher", "self"] = Field(
        "teacher",
        description="stage distill: who teaches the plans; self: the student's own largest plan, which then learns "
        "from the text alone, teaches the others",
    )
    largest: Literal["stage", "text"] = Field(
        "stage",
        description="stage distill: loss of the largest plan: the stage's, or cross-entropy on the text",
    )
    loss_weights: list[Weight] | None = Field(
        None, description="weight of each plan's loss, the largest plan first; default: all 1"
    )

    def conflicts(self) -> Conflicts:
        """Cuts that are shares, each once; weights that are not all 0; what goes with rule single."""
        cuts = self.cuts or []
        if not all(0 <= cut <= 1 for cut in cuts) or len(set(cuts)) < len(cuts):
            yield "cuts", "different shares from 0 to 1"
        if self.loss_weights is not None and not any(self.loss_weights):
            yield "loss_weights", "a number above 0 among them"
        if self.rule == "single":
            if self.num_between != 1:
                yield "num_between", "1 with elastic.rule single"
            if self.weights is not None:
                losses = self.loss_weights or [1.0] * len(self.weights)
                if not any(map(mul, self.weights, losses)):
                    yield "weights", "a number above 0 among them, for a plan whose loss has one, too"
            if self.teacher == "self":
                yield (
                    "teacher",
                    "teacher with elastic.rule single, whose steps do not all run the largest plan",
                )


class OnPolicySection(StageSection):
    """Stage onpolicy: the student goes on from prompts of the data, and learns what the teacher says of its tokens
    (GKD, Agarwal et al. 2024).
    """

    max_steps: int = Field(0, ge=0, le=2**40, description="optimizer steps; 0 leaves the stage out")
    fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the steps, evenly spaced, that learn from the student's own continuations; the others "
        "are those of stage distill",
    )
    prompt_length: int | None = Field(
        None,
        ge=1,
        le=2**24,
        description="tokens of a block of text to go on from; default: half of them. Rows and pairs have prompts of "
        "their own",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=2**24,
        description="tokens to go on with, at most; default: what the longest row of the batch has after its prompt",
    )
    temperature: float = Field(1.0, ge=0.01, le=100, description="of the sampling")

    @property
    def generates(self) -> bool:
        """True where the stage runs, and in some steps on the student's own tokens."""
        return bool(self.max_steps and self.fraction)


class DistillationSection(Section):
    """Stages: layerwise on the teacher's layer inputs and outputs, distill on teacher and text, recover on text,
    onpolicy on the teacher and the student's own tokens.
    """

    ce_weight: Weight = Field(1.0, description="stage distill: weight of the cross-entropy on the text")
    kl_weight: Weight = Field(1.0, description="stage distill: weight of T^2 times the divergence")
    divergence: Literal["forward", "reverse", "jsd"] = Field(
        "forward", description="KL(teacher || student), KL(student || teacher) or Jensen-Shannon"
    )
    temperature: float = Field(1.0, ge=0.01, le=100, description="T, softens both distributions")
    hidden_weight: Weight = Field(0.0, description="stage distill: weight of the hidden-state loss")
    hidden_loss: Literal["mse", "smooth_l1", "cosine"] = "mse"
    hidden_layers: list[int] | None = Field(
        None, min_length=1, description="hidden states, 0 (embeddings) to L (after the norm); default: all"
    )
    layerwise: StageSection = StageSection(max_steps=0)
    distill: StageSection = StageSection()
    recover: StageSection = StageSection()
    onpolicy: OnPolicySection = OnPolicySection()
    elastic: ElasticSection = ElasticSection()
    signals: str | None = Field(
        None, description="folder written by `iiad capture`; replaces the teacher in stage distill"
    )
    retain: float | None = Field(
        None, gt=0, le=1, description="stop at this share of the teacher's accuracy on data.validation"
    )
    check_teacher: bool = Field(True, description="refuse a teacher no better than word counts on the text")

    def stages(self) -> dict[str, StageSection]:
        """Return the stages that run, by name."""
        every: dict[str, StageSection] = {name: getattr(self, name) for name in STAGES}
        return {name: stage for name, stage in every.items() if stage.max_steps}

    def conflicts(self) -> Conflicts:
        """A stage to run, a loss to learn from, layers that differ."""
        if not self.stages():
            yield "distill.max_steps", "above 0 in at least one stage"
        for name in ("distill", "onpolicy"):
            weights = self.ce_weight, self.kl_weight, self.hidden_weight
            if self.stages().get(name) and not any(weights):
                yield "ce_weight", f"above 0, or kl_weight or hidden_weight: stage {name} needs a loss"
        if self.onpolicy.generates and not (self.kl_weight or self.hidden_weight):
            yield "kl_weight", "above 0, or hidden_weight: stage onpolicy learns from the teacher"
        if self.onpolicy.max_steps and self.signals is not None:
            yield "signals", "null with stage onpolicy, whose tokens no capture has seen"
        if self.signals is not None and not (
            self.distill.max_steps and (self.kl_weight or self.hidden_weight)
        ):
            yield (
                "signals",
                "null where stage distill does not run, or has neither kl_weight nor hidden_weight",
            )
        if self.elastic.teacher == "self":
            if self.signals is not None:
                yield "signals", "null with elastic.teacher self: the student teaches itself"
            if not (self.kl_weight or self.hidden_weight):
                yield (
                    "elastic.teacher",
                    "teacher, where stage distill has neither kl_weight nor hidden_weight",
                )
        layers = self.hidden_layers
        if layers and (min(layers) < 0 or max(layers) > 2**12 or len(set(layers)) < len(layers)):
            yield "hidden_layers", "different numbers from 0 on"
