"""Leaving in good order: SIGTERM and a limit on the minutes end a run after its step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from transformers import TrainerCallback

from iiad.errors import InputError

from .processes import any_process

__all__ = ["Interruption", "TimeLimit"]


class TimeLimit:
    """So many minutes from now on; None for no limit. Raises InputError for a limit that is not above 0."""

    def __init__(self, max_minutes: float | None = None):
        if max_minutes is not None and not max_minutes > 0:
            raise InputError(f"--max-minutes: must be above 0, found {max_minutes:g}")
        self.minutes = max_minutes
        self.started = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether they have passed."""
        return self.minutes is not None and time.monotonic() - self.started >= 60 * self.minutes


class Interruption(TrainerCallback):
    """Save and stop after the step during which a SIGTERM came, in any process, or the time was over.

    reason: why, once it has happened. `restore` puts the signal's former handler back.
    """

    def __init__(self, limit: TimeLimit):
        self.limit = limit
        self.reason = ""
        self.terminated = False
        self.former: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            self.former = signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: Any) -> None:
        self.terminated = True

    def is_due(self) -> bool:
        """Whether it is time to leave; the same answer in all processes, which must all ask."""
        if any_process(self.terminated or self.limit.over):
            self.reason = f"{self.limit.minutes:g} minutes are over" if self.limit.over else "terminated"
        return bool(self.reason)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave, if it is time."""
        if self.is_due():
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Stop listening."""
        if self.former is not None:
            signal.signal(signal.SIGTERM, self.former)
            self.former = None
