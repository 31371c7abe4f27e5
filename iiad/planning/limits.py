"""Targets as limits on what a plan sums up to: iterations, seconds and losses as whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

from iiad.artefacts import ModelIdentity
from iiad.errors import InputError

from .latency import PhaseLatency
from .targets import Targets

__all__ = ["Limit", "largest_total", "limits_of_iterations", "limits_of_loss", "limits_of_seconds"]


@dataclass(frozen=True)
class Limit:
    """A target on a quantity that only gets worse as a total grows.

    measure: the quantity as users see it, rounded as they see it, of a total. at_least: whether the quantity must
    be at least `wanted`, and falls with the total, or at most, and grows. note: what the target goes by.
    """

    name: str
    wanted: float
    measure: Callable[[int], float]
    at_least: bool = False
    note: str = ""

    def holds(self, total: int) -> bool:
        """Whether a plan of that total reaches the target."""
        value = self.measure(total)
        return value >= self.wanted if self.at_least else value <= self.wanted

    def refusal(self, total: int, within: str) -> InputError:
        """What to say where a total is the least possible and still does not hold: the most that can be asked."""
        shown = _reachable(self.measure(total), self.at_least)
        word = "most" if self.at_least else "least"
        return InputError(f"{self.name}: found {self.wanted}; accepted: at {word} {shown}{self.note}{within}")


def largest_total(limits: Sequence[Limit], low: int, high: int, within: str) -> int:
    """The largest total from low to high that all limits hold for; InputError where low is too much for one.

    within: ends the message, as in " within the bounds".
    """
    for limit in limits:
        if not limit.holds(low):
            raise limit.refusal(low, within)
    while low < high:
        middle = (low + high + 1) // 2
        if all(limit.holds(middle) for limit in limits):
            low = middle
        else:
            high = middle - 1
    return low


def limits_of_iterations(targets: Targets, teacher: ModelIdentity) -> list[Limit]:
    """Of the sum of all r_t."""
    start = teacher.num_start_evaluations * teacher.num_layers
    iterations, evaluations = sum(teacher.num_iterations), teacher.num_evaluations
    measures: dict[str, Callable[[int], float]] = {
        "overhead_cut": lambda n: (iterations - n) / iterations,
        "compute_cut": lambda n: (evaluations - start - n) / evaluations,
        "max_evaluations": lambda n: start + n,
        "max_cache_bytes": lambda n: teacher.cache_bytes_at(start + n),
    }
    return [
        Limit(name, targets.given[name], measure, at_least=name.endswith("cut"))
        for name, measure in measures.items()
        if name in targets.given
    ]


def limits_of_seconds(
    targets: Targets, teacher: ModelIdentity, phase: PhaseLatency, fixed: int, scale: int
) -> list[Limit]:
    """Of the sum of all layers' seconds, in 1 / scale; `fixed` is what is no layer's."""
    whole = phase.seconds(teacher.num_iterations)
    note = f", by the table's seconds of {targets.phase}"

    def speedup(total: int) -> float:
        seconds = (total + fixed) / scale
        return whole / seconds if seconds else float("inf")

    limits = []
    if targets.max_latency_ms is not None:
        limits.append(
            Limit("max_latency_ms", targets.max_latency_ms, lambda n: 1000 * ((n + fixed) / scale), note=note)
        )
    if targets.speedup is not None:
        limits.append(Limit("speedup", targets.speedup, speedup, at_least=True, note=note))
    return limits


def limits_of_loss(targets: Targets, scale: int, unit: str) -> list[Limit]:
    """Of the sum of all layers' losses, in 1 / scale."""
    if targets.max_score is None:
        return []
    return [Limit("max_score", targets.max_score, lambda n: n / scale, note=f" {unit}")]


def _reachable(value: float, at_least: bool) -> float:
    """A value in four digits, rounded to the side that can be reached, so that what is shown can be asked for."""
    if isinstance(value, int):
        return value
    near = float(f"{value:.4g}")
    if near <= value if at_least else near >= value:
        return near
    return float(Context(4, ROUND_FLOOR if at_least else ROUND_CEILING).create_decimal(value))
