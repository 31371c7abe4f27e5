"""How far two metrics agree on which iterations matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .averages import Scores
from .profile import Profile

__all__ = ["Agreement", "agreements", "rank_agreement", "rank_correlation"]


@dataclass(frozen=True)
class Agreement:
    """How far a metric ranks the iterations of a model as the reference does (ours).

    spearman, kendall: rank correlations (Kendall's is tau-b), from -1 to 1.
    overlap: share of the reference's top half of the iterations that is in the metric's top half too, from 0 to 1;
        by chance alone it would be a half. An odd number's half is rounded up; of equal scores the earlier
        iteration of the earlier layer comes first.
    All are None where ranks mean nothing: fewer than three iterations, or scores that are all equal.
    """

    metric: str
    reference: str
    spearman: float | None
    kendall: float | None
    overlap: float | None


def agreements(profile: Profile, reference: str = "kl") -> list[Agreement]:
    """How far each other metric of a profile agrees with a reference, in the profile's order.

    Raises InputError for a reference that the profile does not hold.
    """
    wanted = _flat(profile.scores_of(reference))
    found = []
    for metric in profile.scores:
        scores = _flat(profile.scores_of(metric))
        if metric == reference:
            continue
        if not _ranked(scores) or not _ranked(wanted):
            found.append(Agreement(metric, reference, None, None, None))
            continue
        from scipy.stats import kendalltau  # takes a second to import

        tau = float(kendalltau(scores, wanted).statistic)
        overlap = _overlap(scores, wanted)
        found.append(Agreement(metric, reference, rank_correlation(scores, wanted), tau, overlap))
    return found


def rank_agreement(profile: Profile, metric: str, reference: str = "kl") -> float | None:
    """Spearman's rank correlation of two metrics over all iterations of all layers (ours), from -1 to 1.

    A cheap metric that ranks the iterations as the exact one does gives the same plans. None where ranks mean
    nothing: fewer than three iterations, or scores that are all equal.
    Raises InputError for a metric that the profile does not hold.
    """
    return rank_correlation(_flat(profile.scores_of(metric)), _flat(profile.scores_of(reference)))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two sequences of the same length, from -1 to 1; equal numbers share a rank.

    None where ranks mean nothing: fewer than three numbers, or all equal ones.
    """
    if not _ranked(first) or not _ranked(second):
        return None
    from scipy.stats import spearmanr  # takes a second to import

    return float(spearmanr(first, second).statistic)


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    half = (len(first) + 1) // 2
    tops = [sorted(range(len(scores)), key=lambda i: -scores[i])[:half] for scores in (first, second)]
    return len(set(tops[0]) & set(tops[1])) / half


def _ranked(scores: Sequence[float]) -> bool:
    return len(scores) >= 3 and len(set(scores)) > 1


def _flat(scores: Scores) -> list[float]:
    return [score for layer in scores for score in layer]
