"""Trust in a profile's scores: all that its report shows beside them."""

from __future__ import annotations

from dataclasses import dataclass

from iiad.influence.diagnostics import Agreement, Diagnosis, advice, agreements, diagnose
from iiad.influence.profile import Profile

from .curve import choose_threshold, threshold_curve
from .stability import Stability, keep_frequency, measure_stability

__all__ = ["Trust", "assess_trust"]

REFERENCE = "kl"
"""The metric that the others are compared with, where it was measured; else the profile's first."""


@dataclass(frozen=True)
class Trust:
    """Convergence of the layers, agreement of the metrics and stability over the text.

    agreements: of the other metrics with the reference. kept: for each layer and iteration the share of bootstrap
    samples that keep it at the threshold on the reference; None for one batch.
    """

    diagnoses: list[Diagnosis]
    advice: str
    reference: str
    agreements: list[Agreement]
    threshold: float
    kept: list[list[float]] | None
    stabilities: list[Stability]


def assess_trust(profile: Profile, threshold: float | None = None, seed: int = 0) -> Trust:
    """Compute a profile's trust. threshold: default: that of the curve's knee. seed: of the bootstrap.

    Raises InputError for a threshold below 0 or not finite.
    """
    reference = REFERENCE if REFERENCE in profile.scores else next(iter(profile.scores))
    if threshold is None:
        threshold, _ = choose_threshold(threshold_curve(profile, reference))
    return Trust(
        diagnoses=[diagnose(layer) for layer in profile.fixed_point],
        advice=advice(profile),
        reference=reference,
        agreements=agreements(profile, reference),
        threshold=threshold,
        kept=keep_frequency(profile, reference, threshold, seed=seed),
        stabilities=[measure_stability(profile, metric, seed=seed) for metric in profile.scores],
    )
