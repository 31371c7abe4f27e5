"""What watches a stage of training: log, progress, validation, and the guard against bad gradients."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from iiad.artefacts import write_whole
from iiad.errors import InputError
from iiad.reporting.progress import progress

__all__ = ["FiniteGradients", "StageLog", "StepProgress", "Validation"]


class StageLog(TrainerCallback):
    """log.jsonl: a line whenever something is logged; after a resume, without what will be logged again."""

    def __init__(self, path: Path, stage: str):
        self.path, self.stage = path, stage
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines of other stages, and of this one up to the step that it goes on from."""
        self.started = time.monotonic()
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a kill in the middle of a line
            if entry["stage"] != self.stage or entry["step"] <= state.global_step:
                kept.append(line + "\n")
        write_whole(self.path, "".join(kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any
    ) -> None:
        """Add a line for a training or validation loss."""
        if not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        seconds = time.monotonic() - self.started
        entry = {"stage": self.stage, "step": state.global_step, **logs, "seconds": round(seconds, 3)}
        if hasattr(model.config, "num_iterations"):
            entry["evaluations_per_token"] = model.config.num_hidden_layers
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class StepProgress(TrainerCallback):
    """A bar, or lines, with steps per second and time left. `closing` must be closed when training ends."""

    def __init__(self, stage: str):
        self.stage = stage
        self.closing = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the steps that are left."""
        left = state.max_steps - state.global_step
        self.advance = self.closing.enter_context(progress(self.stage, left, "steps"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step more."""
        self.advance(1)


class Validation(TrainerCallback):
    """Nats per token on held-out text, every so many steps. Draws no random number, so it changes no training."""

    def __init__(self, trainer: Trainer, validate: Callable[[PreTrainedModel], float], steps: int):
        self.trainer, self.validate, self.steps = trainer, validate, steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure and log, if it is time."""
        if state.global_step % self.steps == 0:
            self.trainer.log({"eval_loss": self.validate(model)})


class FiniteGradients(TrainerCallback):
    """Stop before a NaN or infinite gradient gets into the weights, and so into a checkpoint."""

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Raises InputError at a gradient that is not finite."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise InputError(
                f"the gradient is NaN or infinite at step {state.global_step + 1}; the weights are as they were; "
                "checkpoints before it are whole; try a lower learning rate or a longer warm-up"
            )
