"""Progress with rate and time left: a rich bar on a terminal, a plain line now and then elsewhere; sizes in words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = [
    "BINARY_UNITS",
    "Progress",
    "console",
    "format_size",
    "print_status",
    "progress",
    "report_progress",
]

# On stderr, so that stdout holds nothing but results; of several processes, from the first one alone.
console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")

SECONDS_BETWEEN_LINES = 15.0

BINARY_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

Progress = bool | Callable[[int, int], None]
"""True to show progress, False not to, or a function called with the bytes done and the bytes in all."""


def print_status(message: str) -> None:
    """Print a remark on stderr."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, total: float, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show progress: yield a function to call with each amount done, and a note if any.

    total and the amounts are in `unit`, which is shown with the rate. Where stderr is no terminal, print a plain line
    every 15 seconds.
    """
    if console.is_terminal:
        with _bar() as bar:
            task = bar.add_task(description, total=total, rate="", note="")
            started = time.monotonic()

            def advance(amount: float, note: str = "") -> None:
                bar.advance(task, amount)
                bar.update(task, rate=_rate(bar.tasks[task].completed, started, unit), note=note)

            yield advance
    else:
        yield _line_printer(description, total, unit)


@contextmanager
def report_progress(task: str, total: int, progress_to: Progress) -> Iterator[Callable[[int], None]]:
    """Report on a task of `total` bytes: yield a function to call with the bytes done so far."""
    if callable(progress_to):
        yield lambda done: progress_to(done, total)
    elif not progress_to:
        yield lambda done: None
    else:
        with progress(task, total, "B") as advance:
            before = 0

            def report(done: int) -> None:
                nonlocal before
                advance(done - before)
                before = done

            yield report


def _bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


def _rate(done: float, started: float, unit: str) -> str:
    """Format a rate, as in "5.2 MB/s" and "3.1 k tokens/s"; empty without a unit."""
    if not unit:
        return ""
    rate = done / max(time.monotonic() - started, 1e-9)
    size, prefix = next(((s, p) for s, p in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if rate >= s), (1.0, ""))
    gap = " " if prefix and unit != "B" else ""
    return f"{rate / size:.1f} {prefix}{gap}{unit}/s"


def _line_printer(description: str, total: float, unit: str) -> Callable[..., None]:
    started = last = time.monotonic()
    done = 0.0

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > 0:
            last = now
            left = (now - started) * (total - done) / done
            parts = [f"{100 * done / total:.0f} %", _rate(done, started, unit), f"{left:.0f} s left", note]
            print_status(f"{description}: {', '.join(filter(None, parts))}")

    return advance


def format_size(size: float) -> str:
    """Return a number of bytes in binary units: "512 B", "1.5 GiB", "300 KiB"."""
    for unit, scale in BINARY_UNITS.items():
        if size < 1000 * scale or unit == "GiB":
            return f"{size / scale:.{0 if unit == 'B' or size >= 100 * scale else 1}f} {unit}"
    raise AssertionError
