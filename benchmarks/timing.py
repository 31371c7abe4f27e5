"""What the benchmarks share: seconds of a piece of work, figures beside their bounds, and the options of all."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from iiad.evaluation.timing import now

__all__ = ["Row", "make_parser", "print_rows", "ratio_in_turns", "time_of"]


class Row(NamedTuple):
    """One figure that must not be above its bound."""

    name: str
    figure: float
    bound: float


def time_of(work: Callable[[], Any], device: str) -> float:
    """Seconds of one run."""
    started = now(torch.device(device))
    work()
    return now(torch.device(device)) - started


def ratio_in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int, device: str) -> float:
    """Median over the rounds of the seconds of the first, as a multiple of the second's right beside it."""
    ratios = []
    for number in range(rounds + 1):
        # Neither is always the one that comes first.
        pair = (first, second) if number % 2 else (second, first)
        seconds = {work: time_of(work, device) for work in pair}
        ratios.append(seconds[first] / seconds[second])
    return median(ratios[1:])  # without the first round, which warms up


def print_rows(rows: Sequence[Row]) -> bool:
    """Each figure beside its bound. Returns whether all are kept."""
    for name, figure, bound in rows:
        verdict = "kept" if figure <= bound else "MISSED"
        print(f"{name:56}{figure:8.3f}   at most {bound:<6g} {verdict}", flush=True)
    return all(row.figure <= row.bound for row in rows)


def make_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A command line with what all of them take: the width, and how often and where it is timed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser
