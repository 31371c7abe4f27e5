"""Progress with rate and time left: a rich bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["console", "progress", "say"]

# Progress and remarks go to stderr, so that stdout holds nothing but results.
console = Console(stderr=True, highlight=False)

SECONDS_BETWEEN_LINES = 15.0


def say(message: str) -> None:
    """One remark on what is going on."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Show how far something is: yields a function to be called with the amount just done.

    total and the amounts are in `unit` (shown with the rate). Where stderr is no terminal, a plain line is
    printed every 15 seconds and none for work that is done sooner.
    """
    if console.is_terminal:
        with _bar(unit) as bar:
            task = bar.add_task(description, total=total, rate="")
            started = time.monotonic()

            def advance(amount: float) -> None:
                bar.advance(task, amount)
                bar.update(task, rate=_rate(bar.tasks[task].completed, started))

            yield advance
    else:
        yield _line_printer(description, total, unit)


def _bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[rate]} " + f"{unit}/s" if unit else ""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _rate(done: float, started: float) -> str:
    rate = done / max(time.monotonic() - started, 1e-9)
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.1f} {suffix}"
    return f"{rate:.1f}"


def _line_printer(description: str, total: float, unit: str) -> Callable[[float], None]:
    started = last = time.monotonic()
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > 0:
            last = now
            left = (now - started) * (total - done) / done
            rate = f", {_rate(done, started)} {unit}/s" if unit else ""
            say(f"{description}: {100 * done / total:.0f} %{rate}, {left:.0f} s left")

    return advance
