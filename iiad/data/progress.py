"""Progress over bytes: a bar on a terminal, two plain lines elsewhere, or the caller's own function."""

from __future__ import annotations

import sys
import time
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
    elif sys.stderr.isatty():
        yield from _bar(task, total)
    else:
        yield from _lines(task, total)


def _bar(task: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task_id = bar.add_task(task, total=total)
        yield lambda done: bar.update(task_id, completed=done)


def _lines(task: str, total: int) -> Iterator[Callable[[int], None]]:
    megabytes = total / 1e6
    print(f"{task}: {megabytes:.1f} MB", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield lambda done: None
    seconds = max(time.monotonic() - started, 1e-9)
    print(
        f"{task}: done in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s",
        file=sys.stderr,
        flush=True,
    )
