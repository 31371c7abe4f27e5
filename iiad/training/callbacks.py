"""What watches a stage of training: log, progress, validation."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from iiad.files import write_text
from iiad.progress import print_status, progress

from .checkpointing import notes_of
from .processes import any_process, is_first_process
from .scoring import TokenScore

__all__ = ["StageLog", "StepProgress", "Validation"]


class StageLog(TrainerCallback):
    """log.jsonl: a line whenever something is logged; after a resume, without what will be logged again.

    tokens_per_step: of all processes together, for the rate.
    """

    def __init__(self, path: Path, stage: str, tokens_per_step: int):
        self.path, self.stage, self.tokens_per_step = path, stage, tokens_per_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines of other stages, and of this one up to the step that it goes on from."""
        self.started = self.last_time = time.monotonic()
        self.last_step = state.global_step
        if not is_first_process() or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a kill in the middle of a line
            if entry["stage"] != self.stage or entry["step"] <= state.global_step:
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any
    ) -> None:
        """Add a line for a training or validation loss."""
        if not is_first_process() or not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        now = time.monotonic()
        entry = {"stage": self.stage, "step": state.global_step, **logs}
        if "loss" in logs:
            tokens = (state.global_step - self.last_step) * self.tokens_per_step
            entry["tokens_per_second"] = round(tokens / max(now - self.last_time, 1e-9), 1)
            self.last_time, self.last_step = now, state.global_step
        entry |= {"memory_bytes": _peak_memory(), "seconds": round(now - self.started, 3)}
        if hasattr(model.config, "num_iterations"):
            entry["evaluations_per_token"] = model.config.num_evaluations
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _peak_memory() -> int:
    """Bytes that this process has held at most: on its GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class StepProgress(TrainerCallback):
    """A bar, or lines, with loss, steps per second and time left. `closing` must be closed when training ends."""

    def __init__(self, stage: str):
        self.stage = stage
        self.closing = ExitStack()
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the steps that are left."""
        left = state.max_steps - state.global_step
        self.advance = self.closing.enter_context(progress(self.stage, left, "steps"))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take up the newest figures."""
        shown = [("loss", "loss", ".4f"), ("eval_loss", "validation", ".4f"), ("learning_rate", "lr", ".2e")]
        parts = [
            f"{label} {logs[name]:{form}}"
            for name, label, form in shown
            if (logs or {}).get(name) is not None
        ]
        self.note = ", ".join(parts) or self.note

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step more."""
        self.advance(1, self.note)


class Validation(TrainerCallback):
    """Scores on held-out text every so many steps; the best checkpoint, and the end when enough is retained.

    score: what to measure the model with; draws no random number, so that it changes no training. log: the
    Trainer's. retain: the stage is over once this share of the teacher's accuracy is there; teacher: its score.
    """

    def __init__(
        self,
        score: Callable[[], TokenScore],
        log: Callable[[dict[str, float]], None],
        steps: int,
        retain: float | None = None,
        teacher: TokenScore | None = None,
    ):
        self.score, self.log, self.steps = score, log, steps
        self.retain, self.teacher = retain, teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and log, if it is time. Comes after the Trainer's own callback, which decides on saving."""
        if state.global_step % self.steps:
            return
        found = self.score()
        logs = {"eval_loss": found.nll, "eval_accuracy": found.accuracy}
        notes = notes_of(state)
        retained = None if self.teacher is None else found.retained(self.teacher)
        if retained is not None:
            logs["retained"] = retained
            # Decided together: one process that stops alone would leave the others waiting for ever.
            if self.retain is not None and any_process(retained >= self.retain):
                notes["stopped"] = f"retains {100 * logs['retained']:.2f} % of the teacher's accuracy"
                print_status(
                    f"step {state.global_step}: {notes['stopped']}; {100 * self.retain:g} % were asked for"
                )
                control.should_save = control.should_training_stop = True
        improved = found.nll < notes.get("best", {}).get("eval_loss", float("inf"))
        # The best of the checkpoints; made for it alone only where that is no more often than others are made.
        if improved and (control.should_save or self.steps >= args.save_steps):
            control.should_save = True
            notes["best"] = {"step": state.global_step, "eval_loss": found.nll}
        logging = control.should_log
        self.log(logs)
        control.should_log = logging  # logging takes it back, and the step's training loss would be lost
