"""Trust in a profile's scores: all that its report shows beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from iiad.influence.averages import flatten
from iiad.influence.diagnostics import Agreement, Diagnosis, advice, agreements, diagnose
from iiad.influence.profile import Profile

from .costs import NEGLIGIBLE, predicted_loss
from .curve import choose_threshold, threshold_curve
from .stability import Stability, keep_frequency, measure_stability
from .threshold import threshold_budget

__all__ = ["Trust", "assess_trust"]

LEAST = 0.05
"""Share of the samples below which, or above one less it, an iteration counts as decided."""
REFERENCE = "kl"
"""The metric that the others are compared with, where it was measured; else the profile's first."""


@dataclass(frozen=True)
class Trust:
    """Convergence of the layers, agreement of the metrics and stability over the text.

    guess: loss of a uniform guess, which a teacher must beat; None where the vocabulary is unknown. largest: absolute
    score by the reference. agreements: of the other metrics with the reference. budget:
    of the threshold's plan, and its predicted loss. kept: for each layer and iteration the share of bootstrap samples
    that keep it at the threshold on the reference; None for one batch.
    """

    guess: float | None
    largest: float

    diagnoses: list[Diagnosis]
    advice: str
    reference: str
    agreements: list[Agreement]
    threshold: float
    budget: list[int]
    predicted_loss: float
    kept: list[list[float]] | None
    stabilities: list[Stability]

    @property
    def contributes(self) -> bool:
        """False where no iteration has a score worth the name."""
        return self.largest >= NEGLIGIBLE[self.reference]

    @property
    def num_undecided(self) -> int:
        """Iterations that some samples of the text keep and others drop."""
        return sum(LEAST <= share <= 1 - LEAST for layer in self.kept or [] for share in layer)


def assess_trust(profile: Profile, threshold: float | None = None, seed: int = 0) -> Trust:
    """Compute a profile's trust. threshold: default: that of the curve's knee. seed: of the bootstrap.

    Raises InputError for a threshold below 0 or not finite.
    """
    reference = REFERENCE if REFERENCE in profile.scores else next(iter(profile.scores))
    if threshold is None:
        threshold, _ = choose_threshold(threshold_curve(profile, reference))
    scores = profile.scores_of(reference)
    budget = threshold_budget(scores, threshold)
    return Trust(
        guess=None if profile.model.shape is None else math.log(profile.model.shape.vocab_size),
        largest=max(map(abs, flatten(scores))),
        diagnoses=[diagnose(layer) for layer in profile.fixed_point],
        advice=advice(profile),
        reference=reference,
        agreements=agreements(profile, reference),
        threshold=threshold,
        budget=budget,
        predicted_loss=predicted_loss(scores, budget),
        kept=keep_frequency(profile, reference, threshold, seed=seed),
        stabilities=[measure_stability(profile, metric, seed=seed) for metric in profile.scores],
    )
