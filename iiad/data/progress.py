"""Progress over bytes: shown to people, given to the caller's own function, or neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "report_progress"]

Progress = bool | Callable[[int, int], None]
"""True to report to stderr, False not to, or a function called with bytes done and bytes in all."""


@contextmanager
def report_progress(task: str, total: int, progress: Progress) -> Iterator[Callable[[int], None]]:
    """Report on `task` while the `with` block runs; the block calls what it gets with the bytes done so far."""
    if callable(progress):
        call = progress
        yield lambda done: call(done, total)
    elif not progress:
        yield lambda done: None
    else:
        from iiad.progress import progress as show

        with show(task, total, "B") as advance:
            before = 0

            def report(done: int) -> None:
                nonlocal before
                advance(done - before)
                before = done

            yield report
