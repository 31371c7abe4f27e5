"""What a recipe says of distillation: how the student starts, what it learns from, and in which stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .section import Section, check
from .stage_sections import StageSection

__all__ = ["STAGES", "DistillationSection", "StudentSection"]

STAGES = ("layerwise", "distill", "recover")
"""In the order in which they are run."""


class StudentSection(Section):
    """What the student is when it begins to learn. Its plan is given apart from the recipe."""

    init: str = Field(
        "teacher", min_length=1, description="teacher: its weights; random; or a model folder of that shape"
    )
    start_norm: Literal["start", "update"] = Field(
        "start",
        description="where all iterations of a layer go: the norm of its state; update: that of the teacher's last",
    )
    predictor_stages: int | None = Field(
        None, ge=1, le=4, description="pcformer: stages of its predictor to keep; takes the plan's place"
    )
    cache_policy: Literal["exact", "shared"] | None = Field(
        None,
        description="shared: all evaluations of a layer attend to keys and values of its first, in one cache slot; "
        "no plan is needed then; default: as the teacher",
    )

    @check
    def _norms_are_the_teachers(self) -> str | None:
        if self.start_norm == "start" or self.init == "teacher":
            return None
        return f"start_norm: update moves the teacher's norms; it is for init: teacher, found {self.init}"


class DistillationSection(Section):
    """Stage by stage: layerwise from the teacher's inputs and outputs, distill from teacher and text, recover."""

    ce_weight: float = Field(
        1.0, ge=0, description="weight of the cross-entropy on the text in stage distill"
    )
    kl_weight: float = Field(1.0, ge=0, description="weight of T^2 times the divergence in stage distill")
    divergence: Literal["forward", "reverse", "jsd"] = Field(
        "forward", description="KL(teacher || student), KL(student || teacher) or Jensen-Shannon"
    )
    temperature: float = Field(1.0, gt=0, le=100, description="T, softens both distributions")
    hidden_weight: float = Field(0.0, ge=0, description="weight of the hidden-state loss in stage distill")
    hidden_loss: Literal["mse", "smooth_l1", "cosine"] = "mse"
    hidden_layers: list[int] | None = Field(
        None,
        min_length=1,
        description="which hidden states, 0 (embeddings) to L (after the norm); default: all",
    )
    layerwise: StageSection = StageSection(max_steps=0)
    distill: StageSection = StageSection()
    recover: StageSection = StageSection()
    signals: str | None = Field(
        None, description="folder that `iiad capture` wrote, in place of a live teacher in stage distill"
    )
    retain: float | None = Field(
        None,
        gt=0,
        le=1,
        description="stop when this share of the teacher's accuracy on data.validation is there",
    )
    check_teacher: bool = Field(
        True, description="refuse a teacher that predicts the text no better than word counts do"
    )

    @check
    def _something_to_do(self) -> str | None:
        if any(getattr(self, stage).max_steps for stage in STAGES):
            return None
        names = ", ".join(f"{stage}.max_steps" for stage in STAGES)
        return f"{names} are all 0: nothing to do"

    @check
    def _something_to_learn(self) -> str | None:
        if not self.distill.max_steps or self.ce_weight or self.kl_weight or self.hidden_weight:
            return None
        return "ce_weight, kl_weight and hidden_weight are all 0: stage distill has no loss"

    @check
    def _hidden_layers_are_layers(self) -> str | None:
        layers = self.hidden_layers
        if layers is None or (min(layers) >= 0 and len(set(layers)) == len(layers)):
            return None
        return f"hidden_layers must be different numbers from 0 on, found {layers}"
