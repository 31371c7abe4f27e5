"""Diagnostics of a profile: convergence of each layer's iteration, and agreement of the metrics.

Needs no torch. All rules and bounds here are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .averages import flatten
from .convergence import FixedPoint
from .profile import Profile

__all__ = [
    "Agreement",
    "Diagnosis",
    "Verdict",
    "advice",
    "agreements",
    "diagnose",
    "rank_correlation",
]

Verdict = Literal["converges", "cycles", "diverges", "stalls", "too few iterations", "at rest"]

CONTRACTS = 0.9
"""Below this ratio of one change to the one before, an iteration converges."""
EXPANDS = 1.1
"""Above this ratio it diverges."""
TURNS_BACK = -0.5
"""Between the two it cycles if the cosine of one change with the one before is below this, else it stalls."""
SMALL = 0.01
"""Residual below which a layer counts as converged: its iteration changes the state by less than 1 %."""


@dataclass(frozen=True)
class Diagnosis:
    """Convergence of one layer's iteration.

    residual: |z(r) - z(r-1)| / |z(r-1)|, the relative change of the state by the last iteration; None for r = 0.
    contraction, turn: the last ratio of one change to the one before, and their cosine; None for r < 2.
    """

    verdict: Verdict
    residual: float | None
    contraction: float | None
    turn: float | None

    def residual_after(self, num_more: int) -> float | None:
        """The residual of the last of `num_more` further iterations, if each contracts as the last one did.

        A geometric series, which assumes that the length of the state stays. None where the layer does not converge.
        """
        if self.verdict != "converges" or self.residual is None or self.contraction is None:
            return None
        return float(self.residual * self.contraction**num_more)


def diagnose(fixed_point: FixedPoint) -> Diagnosis:
    """Judge one layer by its last contraction q = |z(r) - z(r-1)| / |z(r-1) - z(r-2)| and its last turn.

    at rest: all residuals are 0. too few iterations: fewer than two, so there is no q. Else
    converges: q < 0.9. diverges: q > 1.1. cycles: in between, and the cosine of the last two changes is below -0.5.
    stalls: in between otherwise.
    """
    residuals = fixed_point.residuals
    residual, q, turn = (
        numbers[-1] if numbers else None
        for numbers in (residuals, fixed_point.contractions, fixed_point.turns)
    )
    verdict: Verdict
    if residuals and not any(residuals):
        verdict = "at rest"
    elif q is None or turn is None:
        verdict = "too few iterations"
    elif q < CONTRACTS:
        verdict = "converges"
    elif q > EXPANDS:
        verdict = "diverges"
    else:
        verdict = "cycles" if turn < TURNS_BACK else "stalls"
    return Diagnosis(verdict, residual, q, turn)


def advice(profile: Profile) -> str:
    """Sum up in one line which iterations converge, and what follows for a plan.

    Layers whose trailing iterations change the state by less than 1 % count as converged, whatever the ratio of such
    small changes. Layers without iterations are not named.
    """
    converged: dict[int, list[int]] = {}  # first iteration from which on residuals are small -> layers
    others: dict[Verdict, dict[int, Diagnosis]] = {}
    split = profile.model.num_encoder_layers
    num_small = 0
    for number, layer in enumerate(profile.fixed_point, 1):
        diagnosis, residuals = diagnose(layer), layer.residuals
        last_large = max((i for i, residual in enumerate(residuals, 1) if residual >= SMALL), default=0)
        if not residuals:
            continue
        if last_large < len(residuals) and diagnosis.verdict != "at rest":
            converged.setdefault(last_large + 1, []).append(number)
            num_small += len(residuals) - last_large
        else:
            others.setdefault(diagnosis.verdict, {})[number] = diagnosis
    clauses = [
        f"{_layers(layers, split)} converged from iteration {first} on"
        for first, layers in sorted(converged.items())
    ]
    if clauses:
        total = sum(profile.model.num_iterations)
        clauses[-1] += f" (residual below {_percent(SMALL)}): {num_small} of {total} iterations to drop"
    return "; ".join(
        clauses + [_clause(verdict, others[verdict], split) for verdict in _CLAUSES if verdict in others]
    )


_CLAUSES: dict[Verdict, str] = {
    "at rest": "at rest: drop all iterations",
    "converges": "converging (contraction {ratio}), change by the last iteration {last}, by one more {after}: "
    "go by the scores",
    "stalls": "stalling (contraction {ratio}): go by the scores",
    "cycles": "cycling, each change undoes much of the one before: drop iterations in pairs",
    "diverges": "diverging (contraction {ratio}): add no iterations, check before distilling",
    "too few iterations": "with one iteration: too few to tell",
}


def _clause(verdict: Verdict, layers: dict[int, Diagnosis], split: int) -> str:
    """The layers of one verdict and its words; of several layers the largest changes."""
    found = layers.values()
    ratios = [f"{pick(d.contraction or 0.0 for d in found):.2f}" for pick in (min, max)]
    last, after = max(d.residual or 0.0 for d in found), max(d.residual_after(1) or 0.0 for d in found)
    words = _CLAUSES[verdict].format(
        ratio=" to ".join(dict.fromkeys(ratios)), last=_percent(last), after=_percent(after)
    )
    return f"{_layers(layers, split)} {words}"


def _layers(numbers: Iterable[int], split: int = 0) -> str:
    """'layer 3', 'layers 1, 3-5, 8' or, by the number of an encoder's, 'encoder 1-2, decoder 1'.

    numbers: ascending.
    """
    if not split:
        runs = _runs(numbers)
        several = len(runs.split(", ")) > 1 or "-" in runs
        return f"layer{'s' if several else ''} {runs}"
    numbers = list(numbers)
    halves = {
        "encoder": [number for number in numbers if number <= split],
        "decoder": [number - split for number in numbers if number > split],
    }
    return ", ".join(f"{name} {_runs(own)}" for name, own in halves.items() if own)


def _runs(numbers: Iterable[int]) -> str:
    """'1, 3-5, 8'; numbers: ascending."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"


@dataclass(frozen=True)
class Agreement:
    """Similarity of the orders in which a metric and a reference rank all iterations of a model.

    A cheap metric that ranks the iterations as the exact one does gives the same plans.
    spearman, kendall: rank correlations (Kendall's is tau-b), from -1 to 1.
    overlap: share of the reference's top half of the iterations that is in the metric's top half too, from 0 to 1;
        0.5 by chance. An odd number's half is rounded up; of equal scores the earlier iteration of the earlier layer
        comes first.
    All are None where ranks mean nothing: fewer than three iterations, or scores that are all equal.
    """

    metric: str
    reference: str
    spearman: float | None
    kendall: float | None
    overlap: float | None


def agreements(profile: Profile, reference: str = "kl") -> list[Agreement]:
    """Compare each other metric of a profile with a reference, in the profile's order.

    Raises InputError for a reference that the profile does not hold.
    """
    wanted = flatten(profile.scores_of(reference))
    found = []
    for metric in profile.scores:
        scores = flatten(profile.scores[metric])
        if metric == reference:
            continue
        tau = overlap = None
        if _have_ranks(scores) and _have_ranks(wanted):
            from scipy.stats import kendalltau  # takes a second to import

            tau, overlap = float(kendalltau(scores, wanted).statistic), _overlap(scores, wanted)
        found.append(Agreement(metric, reference, rank_correlation(scores, wanted), tau, overlap))
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two sequences of the same length, from -1 to 1; equal numbers share a rank.

    None where ranks mean nothing: fewer than three numbers, or all equal ones.
    """
    if not _have_ranks(first) or not _have_ranks(second):
        return None
    from scipy.stats import spearmanr  # takes a second to import

    return float(spearmanr(first, second).statistic)


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    half = (len(first) + 1) // 2
    tops = [sorted(range(len(scores)), key=lambda i: -scores[i])[:half] for scores in (first, second)]
    return len(set(tops[0]) & set(tops[1])) / half


def _have_ranks(scores: Sequence[float]) -> bool:
    return len(scores) >= 3 and len(set(scores)) > 1
