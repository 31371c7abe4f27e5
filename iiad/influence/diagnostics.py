"""Whether each layer's iteration runs towards its fixed point, by its residuals, and what to make of it.

Needs no torch. All rules and bounds here are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .profile import FixedPoint, Profile

__all__ = ["Diagnosis", "Verdict", "advice", "diagnose"]

Verdict = Literal["converges", "cycles", "diverges", "stalls", "too few iterations", "at rest"]

CONTRACTS = 0.9
"""Below this ratio of one change to the one before, an iteration converges."""
EXPANDS = 1.1
"""Above this ratio it diverges."""
TURNS_BACK = -0.5
"""Below this cosine between one change and the one before, an iteration that does neither goes back and forth."""
SMALL = 0.01
"""The residual below which a layer counts as converged: its iteration changes the state by less than 1 %."""


@dataclass(frozen=True)
class Diagnosis:
    """How one layer's iteration runs.

    residual: |z(r) - z(r-1)| / |z(r-1)|, the share by which the last iteration changes the state; None for r = 0.
    contraction, turn: the last ratio of one change to the one before, and their cosine; None for r < 2.
    """

    verdict: Verdict
    residual: float | None
    contraction: float | None
    turn: float | None

    def residual_after(self, num_more: int) -> float | None:
        """The residual of the last of `num_more` further iterations, if each contracts as the last one did.

        A geometric series: it supposes that the length of the state stays. None where the layer does not converge.
        """
        if self.verdict != "converges" or self.residual is None or self.contraction is None:
            return None
        return float(self.residual * self.contraction**num_more)


def diagnose(fixed_point: FixedPoint) -> Diagnosis:
    """The verdict on one layer, by its last contraction q = |z(r) - z(r-1)| / |z(r-1) - z(r-2)| and last turn.

    at rest: all residuals are 0. too few iterations: fewer than two, so that there is no q. Else
    converges: q < 0.9. diverges: q > 1.1. Between: cycles where the cosine between the last two changes is below
    -0.5, and stalls where it is not.
    """
    residuals = fixed_point.residuals
    residual = residuals[-1] if residuals else None
    q = fixed_point.contractions[-1] if fixed_point.contractions else None
    turn = fixed_point.turns[-1] if fixed_point.turns else None
    return Diagnosis(_verdict(residuals, q, turn), residual, q, turn)


def advice(profile: Profile) -> str:
    """What the fixed-point iterations of all layers say to whoever plans, in one line.

    The same profile gives the same line. Layers whose trailing iterations change the state by less than 1 % are
    named as converged, whatever the ratio of such small changes says. Layers without iterations are not named.
    """
    plan = profile.model.num_iterations
    converged: dict[
        int, list[int]
    ] = {}  # first iteration with a small residual, and so all after it -> layers
    others: dict[Verdict, dict[int, Diagnosis]] = {}
    for number, layer in enumerate(profile.fixed_point, 1):
        diagnosis = diagnose(layer)
        first = _first_small(layer.residuals)
        if not layer.residuals:
            continue
        if diagnosis.verdict != "at rest" and first <= len(layer.residuals):
            converged.setdefault(first, []).append(number)
        else:
            others.setdefault(diagnosis.verdict, {})[number] = diagnosis
    clauses = [_on_converged(converged, plan)] if converged else []
    clauses += [_clause(verdict, others[verdict], len(plan)) for verdict in _ORDER if verdict in others]
    return "; ".join(clauses)


_ORDER: tuple[Verdict, ...] = ("at rest", "converges", "stalls", "cycles", "diverges", "too few iterations")


def _verdict(residuals: Sequence[float], q: float | None, turn: float | None) -> Verdict:
    if residuals and not any(residuals):
        return "at rest"
    if q is None or turn is None:
        return "too few iterations"
    if q < CONTRACTS:
        return "converges"
    if q > EXPANDS:
        return "diverges"
    return "cycles" if turn < TURNS_BACK else "stalls"


def _first_small(residuals: Sequence[float]) -> int:
    """The iteration from which on every residual is small; r + 1 where the last one is not."""
    first = len(residuals) + 1
    while first > 1 and residuals[first - 2] < SMALL:
        first -= 1
    return first


def _on_converged(converged: Mapping[int, Sequence[int]], plan: Sequence[int]) -> str:
    parts: list[str] = []
    for first, layers in sorted(converged.items()):
        have = "" if parts else "have converged " if len(layers) > 1 else "has converged "
        parts.append(f"{_layers(layers, len(plan))} {have}from iteration {first} on")
    small = sum(plan[t - 1] - first + 1 for first, layers in converged.items() for t in layers)
    candidates = "is a candidate" if small == 1 else "are candidates"
    return (
        f"{_listed(parts)} (residual below {_percent(SMALL)}): "
        f"{small} of {sum(plan)} iterations {candidates} to drop"
    )


def _clause(verdict: Verdict, layers: Mapping[int, Diagnosis], num_layers: int) -> str:
    who, many = _layers(layers, num_layers), len(layers) > 1
    its, it, s = ("their", "them", "") if many else ("its", "it", "s")
    ratio = f"(contraction {_range(layer.contraction for layer in layers.values())})"
    if verdict == "at rest":
        return f"{who} {'are' if many else 'is'} at rest: {its} iterations change nothing, drop them"
    if verdict == "converges":
        last = max(layer.residual or 0.0 for layer in layers.values())
        after = max(layer.residual_after(1) or 0.0 for layer in layers.values())
        most = "up to " if many else ""
        return (
            f"{who} converge{s} {ratio} but the last iteration still changes the state by {most}{_percent(last)}, "
            f"one more would by {most}{_percent(after)}: go by the scores"
        )
    if verdict == "stalls":
        return f"{who} stall{s} {ratio}: {its} changes hardly shrink, go by the scores"
    if verdict == "cycles":
        return f"{who} cycle{s}, each change undoing much of the one before: drop {its} iterations in pairs"
    if verdict == "diverges":
        return f"{who} diverge{s} {ratio}: do not add iterations to {it}, and check {it} before distilling"
    return f"{who} {'have' if many else 'has'} one iteration, too few to tell"


def _layers(layers: Iterable[int], num_layers: int) -> str:
    """Layers in words: 'layer 3', 'layers 1, 3-5 and 8', 'all 12 layers'."""
    numbers = sorted(layers)
    if len(numbers) == num_layers > 1:
        return "both layers" if num_layers == 2 else f"all {num_layers} layers"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(number) for number in run])
    ]
    return f"layer{'s' if len(numbers) > 1 else ''} {_listed(parts)}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _range(values: Iterable[float | None]) -> str:
    """The smallest and the largest to two decimals, or one number where they look the same."""
    known = [value for value in values if value is not None]
    ends = [f"{value:.2f}" for value in (min(known, default=0.0), max(known, default=0.0))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
