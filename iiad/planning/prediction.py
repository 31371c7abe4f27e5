"""What a plan is predicted to lose: the sum of the scores of the iterations that it drops."""

from __future__ import annotations

import math
from collections.abc import Sequence

from iiad.influence.profile import Profile, average

from .exact import whole_rows

__all__ = ["LOSS_UNITS", "dropped_scores", "predicted_loss", "predicted_loss_error"]

LOSS_UNITS: dict[str, str] = {
    "kl": "nats per token",
    "loss": "nats per token",
    "taylor": "nats per token",
    "cosine": "of cosine distance, summed over layers",
    "relative_l2": "of relative change, summed over layers",
}
"""The unit of the predicted loss by each metric. Only the first three are losses of the model's output."""


def predicted_loss(scores: Sequence[Sequence[float]], num_iterations: Sequence[int]) -> float:
    """Sum of the dropped scores, in the metric's unit (ours).

    By `kl` and `loss` it is exact where one layer alone is cut; that layers add up is an assumption.
    """
    return math.fsum(s for layer, r in zip(scores, num_iterations, strict=True) for s in layer[r:])


def predicted_loss_error(profile: Profile, metric: str, num_iterations: Sequence[int]) -> float | None:
    """Standard error of the predicted loss over the profile's batches; None for one batch, which has none.

    It says how far another sample of text would move the prediction, not whether layers add up.
    """
    if len(profile.batches) < 2:
        return None
    losses = [[[predicted_loss(batch.scores[metric], num_iterations)]] for batch in profile.batches]
    _, errors = average(
        [{metric: loss} for loss in losses],
        [batch.num_tokens for batch in profile.batches],
        [batch.data for batch in profile.batches],
    )
    return errors[metric][0][0]


def dropped_scores(scores: Sequence[Sequence[float]]) -> tuple[list[list[int]], int]:
    """For each layer what it loses at 0, 1, ..., R_t iterations, as whole multiples of 1 / scale; and the scale."""
    layers, scale = whole_rows(scores)
    return [[sum(layer[r:]) for r in range(len(layer) + 1)] for layer in layers], scale
