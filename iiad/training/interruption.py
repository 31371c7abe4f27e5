"""SIGTERM and a limit on the minutes: end a run after its step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Self

from iiad.errors import InputError

from .processes import any_process

__all__ = ["Interruption", "TimeLimit"]


class TimeLimit:
    """A number of minutes from now on; None for no limit. Raises InputError unless it is above 0."""

    def __init__(self, max_minutes: float | None = None):
        if max_minutes is not None and not max_minutes > 0:
            raise InputError(f"--max-minutes: must be above 0, found {max_minutes:g}")
        self.minutes = max_minutes
        self.started = time.monotonic()

    @property
    def over(self) -> bool:
        """True once they have passed."""
        return self.minutes is not None and time.monotonic() - self.started >= 60 * self.minutes


class Interruption:
    """Watch for SIGTERM and the end of the time inside of a `with` block.

    reason: of the interruption, once `is_due` has found one.
    """

    def __init__(self, limit: TimeLimit):
        self.limit = limit
        self.reason = ""
        self.terminated = False
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
        if any_process(self.terminated or self.limit.over):
            self.reason = f"{self.limit.minutes:g} minutes are over" if self.limit.over else "terminated"
        return bool(self.reason)
