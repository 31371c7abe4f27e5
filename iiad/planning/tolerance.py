"""Tolerances: how little a token's state may move for its iterations to stop by themselves. All of it is ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from iiad.errors import InputError
from iiad.influence.convergence import TOLERANCES, Settling
from iiad.influence.profile import Profile

from .choices import minimise
from .costs import dropped_scores, overhead_cut

__all__ = ["LayerStop", "choose_stops"]


class LayerStop(NamedTuple):
    """A stop of one layer: r_t iterations or, with a tolerance, as many as each token needs, at most r_t.

    expected_evaluations: mean of a token. predicted_loss: in the metric's unit.
    """

    num_iterations: int
    tolerance: float | None
    expected_evaluations: float
    predicted_loss: float


def choose_stops(
    profile: Profile,
    metric: str,
    limits: Sequence[tuple[int, int]],
    cut: float,
    least: Sequence[float | None] | None = None,
) -> list[LayerStop]:
    """Choose a stop for each layer: the least predicted loss at which tokens drop that share of all iterations.

    What tokens drop is expected from the profiled text, as if no layer before had stopped early. limits: fewest and
    most iterations of each layer; one that may not run a single one has no tolerance, as its tokens might. least: the
    least tolerance of each layer where it may run several iterations; None: any, or none.
    Raises InputError for a profile without what that takes, for one of extrapolated stops, and for a cut that the
    limits do not reach, or that they make by themselves.
    """
    if profile.settings.extrapolate:
        raise InputError(
            "profile: expected one measured without --extrapolate, which tolerances do not go with"
        )
    if not profile.settling:
        got = profile.model.cache_policy
        why = (
            "an older one; measure again" if got == "shared" else f"one of a model with cache_policy {got!r}"
        )
        raise InputError(f"profile: expected one that holds `settling`, of a shared cache, got {why}")
    whole, start = profile.model.num_iterations, profile.model.num_start_evaluations
    own, most = (overhead_cut([limit[side] for limit in limits], whole) for side in (1, 0))
    if not own < cut <= most:
        expected = f"a share above {own:.4g} and at most {most:.4g}"
        raise InputError(f"tolerance_for: expected {expected}, got {cut:.4g}")
    layers = zip(
        profile.settling, profile.scores_of(metric), limits, least or [None] * len(whole), strict=True
    )
    stops = [_front(_stops(settling, scores, start, *limit, at)) for settling, scores, limit, at in layers]
    losses = [[stop.predicted_loss for stop in layer] for layer in stops]
    evaluations = [[stop.expected_evaluations for stop in layer] for layer in stops]
    total = start * len(whole) + (1 - cut) * sum(whole)
    chosen = minimise([losses, evaluations], [(evaluations, total)])
    return [layer[choice] for layer, choice in zip(stops, chosen, strict=True)]


def _stops(
    settling: Settling, scores: list[float], start: int, fewest: int, most: int, least: float | None
) -> list[LayerStop]:
    """All stops of a layer. Of an iteration's score is lost what `Settling.missed` says."""
    lost = dropped_scores([scores])[0]
    most_alike = most if least is None else min(most, 1)  # of those that all tokens run
    found = [LayerStop(r, None, start + r, lost[r]) for r in range(fewest, most_alike + 1)]
    for r in range(2, most + 1) if fewest <= 1 else ():
        for tolerance in (at for at in TOLERANCES if at >= (least or 0)):
            stopped = sum(settling.stopped(i, tolerance) for i in range(1, r))
            missed = (scores[i] * settling.missed(i, tolerance) for i in range(1, r))
            found.append(LayerStop(r, tolerance, start + r - stopped, lost[r] + math.fsum(missed)))
    return found


def _front(stops: Sequence[LayerStop]) -> list[LayerStop]:
    """Leave out stops that lose no less than one of no more evaluations."""
    kept: list[LayerStop] = []
    for stop in sorted(stops, key=lambda stop: (stop.expected_evaluations, stop.predicted_loss)):
        if not kept or stop.predicted_loss < kept[-1].predicted_loss:
            kept.append(stop)
    return kept
