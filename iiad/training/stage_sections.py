"""What a recipe says of optimization: the same fields for teachers and for every stage of distillation.

Names are Hugging Face's TrainingArguments' where those cover them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from .section import Section, check

__all__ = ["OptimizationSection", "Scheduler", "StageSection", "TrainingSection"]

Scheduler = Literal["linear", "cosine", "constant_with_warmup", "warmup_stable_decay"]


class OptimizationSection(Section):
    """How to optimize, whatever the stage."""

    per_device_train_batch_size: int = Field(
        8, ge=1, le=2**20, description="blocks in a batch of one process"
    )
    gradient_accumulation_steps: int = Field(1, ge=1, le=2**20)
    lr_scheduler_type: Scheduler = "cosine"
    min_lr_ratio: float = Field(
        0.0, ge=0, lt=1, description="the schedule's end, as a share of learning_rate"
    )
    decay_steps: int | None = Field(
        None, ge=1, description="of warmup_stable_decay: its last steps; default: a tenth of max_steps"
    )
    weight_decay: float = Field(0.1, ge=0, lt=1, description="on matrices alone")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0: no clipping")
    max_skipped_steps: int = Field(
        10, ge=0, description="steps in a row with a NaN or infinite loss or gradient that are skipped"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="average the weights, with this decay a step; the average is the result"
    )
    bf16: bool = Field(False, description="autocast to bfloat16, on CPU as on GPU")
    gradient_checkpointing: bool | Literal["layer", "evaluation"] = Field(
        False,
        description="recompute in the backward pass: each layer (true means that too) or each evaluation",
    )
    torch_compile: bool = Field(False, description="compile the model, not its head and loss")
    torch_compile_backend: str = Field("inductor", min_length=1)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = Field(
        None, description="how attention is computed while training; default: transformers' choice"
    )
    fsdp: bool = Field(
        False, description="several processes: shard weights, gradients and optimizer (FSDP2); default: DDP"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    save_steps: int = Field(500, ge=1)
    save_total_limit: int | None = Field(
        2, ge=1, description="checkpoints to keep besides the best; null: all"
    )
    logging_steps: int = Field(10, ge=1)
    eval_steps: int | None = Field(
        None, ge=1, description="validation loss this often; default: at the end alone"
    )
    report_to: list[str] = Field([], description="tensorboard, wandb, ...")

    def misplaced_decay_steps(self, schedules: Iterable[Scheduler]) -> str | None:
        """What is wrong with decay_steps where these are all the schedules that there are."""
        found = sorted(set(schedules))
        if self.decay_steps is None or not found or "warmup_stable_decay" in found:
            return None
        return f"decay_steps is for lr_scheduler_type warmup_stable_decay, found {', '.join(found)}"

    def misplaced_min_lr_ratio(self, schedules: Iterable[Scheduler]) -> str | None:
        """What is wrong with min_lr_ratio where these are all the schedules that there are."""
        if not self.min_lr_ratio or set(schedules) != {"constant_with_warmup"}:
            return None
        return "min_lr_ratio is for an lr_scheduler_type with an end, found constant_with_warmup"


class TrainingSection(OptimizationSection):
    """Training from scratch, or on from a model that is there."""

    max_steps: int = Field(ge=1, description="optimizer steps", examples=[1000])
    learning_rate: float = Field(3e-4, gt=0, lt=10)
    warmup_steps: int = Field(100, ge=0)
    iterations_start: float = Field(
        0.75,
        ge=0,
        le=1,
        description="iterations start after this share of the steps (paper: the last quarter)",
    )
    smooth_start: bool = Field(
        True, description="iterations start as identities; false: at their initial values"
    )

    @check
    def _warmup_fits(self) -> str | None:
        return _warmup_problem(self.warmup_steps, self.max_steps)

    @check
    def _decay_steps_have_their_schedule(self) -> str | None:
        return self.misplaced_decay_steps([self.lr_scheduler_type])

    @check
    def _min_lr_ratio_has_its_schedule(self) -> str | None:
        return self.misplaced_min_lr_ratio([self.lr_scheduler_type])

    @check
    def _decay_fits(self) -> str | None:
        room = self.max_steps - self.warmup_steps
        if self.decay_steps is None or self.decay_steps <= room or room < 0:
            return None
        return f"decay_steps must be at most max_steps less warmup_steps ({room}), found {self.decay_steps}"


class StageSection(Section):
    """One stage of distillation: its length, learning rate and schedule."""

    max_steps: int = Field(1000, ge=0, description="optimizer steps; 0 leaves the stage out")
    learning_rate: float = Field(1e-4, gt=0, lt=10)
    warmup_steps: int = Field(50, ge=0)
    lr_scheduler_type: Scheduler | None = Field(None, description="default: training.lr_scheduler_type")

    @check
    def _warmup_fits(self) -> str | None:
        return _warmup_problem(self.warmup_steps, self.max_steps) if self.max_steps else None


def _warmup_problem(warmup_steps: int, max_steps: int) -> str | None:
    if warmup_steps <= max_steps:
        return None
    return f"warmup_steps must be at most max_steps ({max_steps}), found {warmup_steps}"
