"""SIGTERM and a limit on the minutes: end a run after its step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Self

from iiad.errors import InputError

from .processes import any_process

__all__ = ["Interruption"]


class Interruption:
    """The end of a run's minutes, counted from now (None: no end), or SIGTERM inside of a `with` block.

    reason: once `is_due` has found one. Raises InputError unless the minutes are above 0.
    """

    def __init__(self, max_minutes: float | None = None):
        if max_minutes is not None and not max_minutes > 0:
            raise InputError(f"--max-minutes: expected a number above 0, got {max_minutes:g}")
        self.minutes, self.started = max_minutes, time.monotonic()
        self.terminated, self.reason = False, ""
        self.former: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other can listen
            self.former = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *error: object) -> None:
        if self.former is not None:
            signal.signal(signal.SIGTERM, self.former)

    def _terminate(self, number: int, frame: Any) -> None:
        self.terminated = True

    def is_due(self) -> bool:
        """True in all processes if it is time to leave in any. Collective."""
        over = self.minutes is not None and time.monotonic() - self.started >= 60 * self.minutes
        if any_process(self.terminated or over):
            self.reason = f"{self.minutes:g} minutes are over" if over else "terminated"
        return bool(self.reason)
