"""Progress with rate and time left: a rich bar on a terminal, a plain line now and then elsewhere; sizes, times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = [
    "BINARY_UNITS",
    "Progress",
    "console",
    "format_duration",
    "format_size",
    "print_status",
    "progress",
    "report_progress",
    "silenced",
]

# On stderr, so that stdout holds nothing but results; of several processes, from the first one alone.
console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")

SECONDS_BETWEEN_LINES = 15.0
_MEASURED_FOR = 2.0
"""Seconds of work before a task says how long it will take."""
_LONG = 10.0
"""Seconds left from which it says so; a first amount that takes as long is measured by, too."""

BINARY_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

Progress = bool | Callable[[int, int], None]
"""True to show progress, False not to, or a function called with the bytes done and the bytes in all."""

Note = str | Callable[[], str]


def print_status(message: str) -> None:
    """Print a remark on stderr."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what other code prints on stdout and stderr to itself while the block runs; ours is shown."""
    console.file = console.file  # the stream as it is now
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        console.file = None  # type: ignore[assignment]  # whatever stderr is


@contextmanager
def progress(
    description: str, total: float, unit: str = "", share: float = 1.0
) -> Iterator[Callable[..., None]]:
    """Show progress: yield a function to call with each amount done, and a note or a function that makes one.

    total and the amounts are in `unit`, which is shown with the rate. share: of the command's whole work. Says in its
    first seconds how long it will take, if that is long. Where stderr is no terminal, prints a plain line every 15
    seconds.
    """
    pace = _Pace(total)
    if not console.is_terminal:
        yield _line_printer(description, pace, unit, share)
        return
    with _bar() as bar:
        task = bar.add_task(description, total=total, rate="", note="")

        def advance(amount: float, note: Note = "") -> None:
            pace.add(amount)
            pace.announce(description, share)
            bar.update(
                task, advance=amount, rate=pace.rate(unit), note=note if isinstance(note, str) else note()
            )

        yield advance


class _Pace:
    """Speed of a task so far, and what is left by it.

    The first amount is not measured by, where there are others: it waits for whatever is set up only once.
    """

    def __init__(self, total: float):
        self.total, self.done, self.started = total, 0.0, time.monotonic()
        self.first: tuple[float, float] | None = None
        self.announced = False

    def add(self, amount: float) -> None:
        self.done += amount
        if self.first is None:
            self.first = (time.monotonic(), self.done)

    def seconds_left(self) -> float:
        """Seconds that the rest will take, once something is done."""
        assert self.first is not None
        since, before = self.first if self.done > self.first[1] else (self.started, 0.0)
        return (time.monotonic() - since) * (self.total - self.done) / max(self.done - before, 1e-9)

    def rate(self, unit: str) -> str:
        """Rate as in "5.2 MB/s" and "3.1 k tokens/s"; empty without a unit."""
        if not unit:
            return ""
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        size, prefix = next(((s, p) for s, p in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if rate >= s), (1.0, ""))
        gap = " " if prefix and unit != "B" else ""
        return f"{rate / size:.1f} {prefix}{gap}{unit}/s"

    def announce(self, description: str, share: float) -> None:
        """Say once how long the task will take, and the command with it, if that is long."""
        taken = time.monotonic() - self.started
        measured = self.first is not None and (self.done > self.first[1] or taken >= _LONG)
        if self.announced or not measured or taken < _MEASURED_FOR:
            return
        self.announced = True
        whole = taken + self.seconds_left()
        if whole - taken >= _LONG:
            command = f", the whole command about {format_duration(whole / share)}" if share < 1 else ""
            print_status(f"{description}: will take about {format_duration(whole)}{command}")


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


def _line_printer(description: str, pace: _Pace, unit: str, share: float) -> Callable[..., None]:
    last = time.monotonic()

    def advance(amount: float, note: Note = "") -> None:
        nonlocal last
        pace.add(amount)
        pace.announce(description, share)
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            left = f"{format_duration(pace.seconds_left())} left"
            shown = note if isinstance(note, str) else note()
            parts = [f"{100 * pace.done / pace.total:.0f} %", pace.rate(unit), left, shown]
            print_status(f"{description}: {', '.join(filter(None, parts))}")

    return advance


def format_duration(seconds: float) -> str:
    """Return a time in the unit that suits it: "45 s", "3 min", "1.5 hours", "12 days", "3 years"."""
    for unit, scale in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:,.{1 if seconds < 10 * scale and unit != 'min' else 0}f} {unit}"
    return f"{seconds:.0f} s"


def format_size(size: float) -> str:
    """Return a number of bytes in binary units: "512 B", "1.5 GiB", "300 KiB"."""
    for unit, scale in BINARY_UNITS.items():
        if size < 1000 * scale or unit == "GiB":
            return f"{size / scale:.{0 if unit == 'B' or size >= 100 * scale else 1}f} {unit}"
    raise AssertionError
