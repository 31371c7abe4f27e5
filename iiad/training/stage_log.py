"""Figures of a stage as it runs: log.jsonl, the trackers that the recipe names, the note beside the bar."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from iiad.errors import InputError
from iiad.files import append_line, parse_json, write_text
from iiad.progress import print_status

from .checkpointing import StageState

__all__ = ["StageLog"]

_SHOWN = {
    "loss": "loss {:.4f}",
    "eval_loss": "validation {:.4f}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "generation_share": "{:.0%} of the time generating",
}


class StageLog:
    """Add a line to log.jsonl, and to accelerate's trackers, for each training or validation loss.

    path: of log.jsonl; lines of this stage after the state's step, from which it goes on, are removed: they will be
    logged again. state: counts the lines, so that a remark is made on lost ones. tokens_per_step: of all processes,
    for the rate.
    """

    def __init__(
        self, path: Path, stage: str, state: StageState, tokens_per_step: int, accelerator: Accelerator
    ):
        self.path, self.stage, self.tokens_per_step = path, stage, tokens_per_step
        self.state, self.accelerator = state, accelerator
        self.shown: dict[str, str] = {}
        self.last_step, self.started = state.step, time.monotonic()
        self.last_time = self.started
        if accelerator.is_main_process:
            self._take_up()

    @property
    def note(self) -> str:
        """The newest figures."""
        return ", ".join(self.shown[name] for name in _SHOWN if name in self.shown)

    def _take_up(self) -> None:
        """Keep the lines that the stage goes on from."""
        if os.path.lexists(self.path) and not self.path.is_file():
            raise InputError(f"{self.path}: expected a file; remove it to go on without its lines")
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        kept = [(line, self._stage_of(line)) for line in text.splitlines(keepends=True)]
        if text:
            write_text(self.path, "".join(line for line, stage in kept if stage is not None))
        logged = [stage for _, stage in kept].count(self.stage)
        if logged < self.state.logged:
            print_status(
                f"{self.path}: {self.state.logged - logged} lines of {self.stage} are lost; going on"
            )
        self.state.logged = logged

    def _stage_of(self, line: str) -> str | None:
        """Return the stage of a line that is kept, None for another line."""
        try:
            entry = parse_json(line, self.path)
            kept = entry["stage"] != self.stage or entry["step"] <= self.last_step
            return str(entry["stage"]) if kept else None
        except (ValueError, KeyError, TypeError):  # a kill in the middle of a line
            return None

    def write(self, step: int, figures: dict[str, Any], model: PreTrainedModel) -> None:
        """Log the figures of a step."""
        if not self.accelerator.is_main_process:
            return
        now = time.monotonic()
        entry = {"stage": self.stage, "step": step, **figures}
        if "loss" in figures:
            tokens = (step - self.last_step) * self.tokens_per_step
            entry["tokens_per_second"] = round(tokens / max(now - self.last_time, 1e-9), 1)
            self.last_time, self.last_step = now, step
        entry |= {"memory_bytes": _peak_memory(), "seconds": round(now - self.started, 3)}
        if hasattr(model.config, "num_iterations"):
            entry["evaluations_per_token"] = model.config.num_evaluations
        self.shown |= {
            name: _SHOWN[name].format(entry[name]) for name in _SHOWN if entry.get(name) is not None
        }
        append_line(self.path, json.dumps(entry), "; make room and continue with --resume")
        self.state.logged += 1
        numbers = {f"{self.stage}/{name}": value for name, value in entry.items() if _is_number(value)}
        self.accelerator.log(numbers, step=step)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _peak_memory() -> int:
    """Most bytes that this process has held: on its GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
