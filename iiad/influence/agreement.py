"""How far two metrics agree on which iterations matter."""

from __future__ import annotations

from .profile import Profile

__all__ = ["rank_agreement"]


def rank_agreement(profile: Profile, metric: str, reference: str = "kl") -> float | None:
    """Spearman's rank correlation of two metrics over all iterations of all layers (ours), from -1 to 1.

    A cheap metric that ranks the iterations as the exact one does gives the same plans. None where ranks mean
    nothing: fewer than three iterations, or scores that are all equal.
    Raises InputError for a metric that the profile does not hold.
    """
    first = [score for layer in profile.scores_of(metric) for score in layer]
    second = [score for layer in profile.scores_of(reference) for score in layer]
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy.stats import spearmanr  # takes a second to import

    return float(spearmanr(first, second).statistic)
