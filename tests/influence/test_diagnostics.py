"""Verdicts at their bounds, the advice word for word; agreement of metrics against naive ranks, pairs and tops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.influence.convergence import FixedPoint
from iiad.influence.diagnostics import (
    Agreement,
    Diagnosis,
    advice,
    agreements,
    diagnose,
    rank_correlation,
)
from tests.helpers import make_fixed_point, make_profile, refused

CONVERGED = FixedPoint(residuals=[0.3, 0.005, 0.001], contractions=[0.02, 0.2], turns=[0, 0])
SLOW = make_fixed_point(3, contraction=0.5)
STALLED = make_fixed_point(3, contraction=0.98)
CYCLING = make_fixed_point(3, contraction=1.0, turn=-0.95)
DIVERGING = make_fixed_point(3, contraction=1.3)
AT_REST = FixedPoint(residuals=[0, 0, 0], contractions=[0, 0], turns=[0, 0])
ONE = make_fixed_point(1)
NONE = make_fixed_point(0)


def advise(*layers):
    profile = make_profile(num_iterations=[len(layer.residuals) for layer in layers], errors=False)
    return advice(profile.model_copy(update={"fixed_point": list(layers)}))


@pytest.mark.parametrize(
    ("contraction", "turn", "verdict"),
    [
        (0.0, 0.0, "converges"),
        (0.89, -1.0, "converges"),
        (0.9, 0.0, "stalls"),
        (1.1, -0.5, "stalls"),
        (0.9, -0.51, "cycles"),
        (1.1, -1.0, "cycles"),
        (1.11, -1.0, "diverges"),
    ],
)
def test_the_last_contraction_and_turn_decide(contraction, turn, verdict):
    layer = FixedPoint(residuals=[0.4, 0.3, 0.2], contractions=[1.0, contraction], turns=[0.0, turn])
    assert diagnose(layer) == Diagnosis(verdict, 0.2, contraction, turn)


def test_without_two_changes_there_is_nothing_to_compare():
    for layer, verdict in ((NONE, "too few iterations"), (ONE, "too few iterations"), (AT_REST, "at rest")):
        assert diagnose(layer).verdict == verdict
        assert diagnose(layer).residual_after(1) is None


@pytest.mark.parametrize(
    ("matrix", "verdict"),
    [
        (0.3 * np.eye(2), "converges"),
        (np.array([[0, -0.5], [0.5, 0]]), "converges"),
        (-1.0 * np.eye(2), "cycles"),
        (np.array([[0, -1.0], [1.0, 0]]), "stalls"),  # turns by a right angle: no going back and forth
        (-1.4 * np.eye(2), "diverges"),
    ],
)
def test_linear_iterations_get_the_verdict_of_their_eigenvalues(matrix, verdict):
    states = [np.array([5.0, 7.0])]
    for _ in range(3):
        states.append(matrix @ states[-1] + [30.0, 40.0])
    changes = np.diff(states, axis=0)
    lengths = np.linalg.norm(changes, axis=1)
    layer = FixedPoint(
        residuals=list(lengths / np.linalg.norm(states[:-1], axis=1)),
        contractions=list(lengths[1:] / lengths[:-1]),
        turns=[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairwise(changes)],
    )
    assert diagnose(layer).verdict == verdict


def test_the_residual_goes_on_as_a_geometric_series_where_it_converges():
    assert diagnose(SLOW).residual == pytest.approx(0.1)
    assert [diagnose(SLOW).residual_after(n) for n in (0, 1, 3)] == pytest.approx([0.1, 0.05, 0.0125])
    assert diagnose(STALLED).residual_after(1) is None


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        (
            [DIVERGING, *[CONVERGED] * 5],
            "layers 2-6 converged from iteration 2 on (residual below 1 %): 10 of 18 iterations to drop; "
            "layer 1 diverging (contraction 1.30): add no iterations, check before distilling",
        ),
        (
            [CONVERGED, make_fixed_point(2, contraction=0.02), NONE, make_fixed_point(3, contraction=0.1)],
            "layers 1-2 converged from iteration 2 on; "
            "layer 4 converged from iteration 3 on (residual below 1 %): 4 of 8 iterations to drop",
        ),
        (
            [FixedPoint(residuals=[0.001], contractions=[], turns=[]), NONE],
            "layer 1 converged from iteration 1 on (residual below 1 %): 1 of 1 iterations to drop",
        ),
        (
            [SLOW] * 4,
            "layers 1-4 converging (contraction 0.50), change by the last iteration 10 %, by one more 5 %: "
            "go by the scores",
        ),
        ([STALLED, NONE], "layer 1 stalling (contraction 0.98): go by the scores"),
        (
            [CYCLING, AT_REST, CYCLING],
            "layer 2 at rest: drop all iterations; "
            "layers 1, 3 cycling, each change undoes much of the one before: drop iterations in pairs",
        ),
        (
            [DIVERGING, ONE, make_fixed_point(3, contraction=1.55), DIVERGING, DIVERGING],
            "layers 1, 3-5 diverging (contraction 1.30 to 1.55): add no iterations, check before distilling; "
            "layer 2 with one iteration: too few to tell",
        ),
    ],
)
def test_the_advice_is_one_line_of_plain_words(layers, line):
    assert advise(*layers) == line


def test_the_ratio_of_changes_too_small_to_matter_does_not():
    rounding = FixedPoint(residuals=[0.3, 1e-7, 2e-7], contractions=[1e-6, 2.0], turns=[0.0, -0.5])
    assert diagnose(rounding).verdict == "diverges"
    assert "diverge" not in advise(rounding)
    assert "from iteration 2 on" in advise(rounding)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([CONVERGED, SLOW, STALLED, CYCLING, DIVERGING, AT_REST, ONE]), min_size=1))
def test_every_layer_is_spoken_of_once(layers):
    line = advise(*layers)
    assert "\n" not in line
    assert line.count(";") + 1 == len({id(layer) for layer in layers})


def naive_overlap(first, second):
    """Share of the three best of six in both; an iteration is among them if fewer than three go before it."""

    def is_top(scores, i):
        return sum(s > scores[i] or (s == scores[i] and j < i) for j, s in enumerate(scores)) < 3

    return sum(is_top(first, i) and is_top(second, i) for i in range(6)) / 3


@settings(max_examples=40)
@given(*[st.lists(st.sampled_from([0.5, 0.3, 0.2, 0.1, 0.0, -0.1]), min_size=6, max_size=6)] * 2)
def test_the_overlap_of_top_halves_is_the_naive_one(kl, cosine):
    scores = {"kl": [kl[:2], kl[2:5], kl[5:]], "cosine": [cosine[:2], cosine[2:5], cosine[5:]]}
    [found] = agreements(make_profile(scores, (2, 3, 1), errors=False))
    if len(set(kl)) == 1 or len(set(cosine)) == 1:
        assert found == Agreement("cosine", "kl", None, None, None)
    else:
        assert found.overlap == naive_overlap(cosine, kl)
        assert found.spearman == rank_correlation(cosine, kl)


def test_rank_correlations_share_the_ranks_of_equal_numbers():
    profile = make_profile({"kl": [[0.4, 0.3], [], [0.2, 0.2, 0.1]], "cosine": [[5, 6], [], [3, 4, 1]]})
    [found] = agreements(profile)
    # Ranks 5, 4, 2.5, 2.5, 1 and 4, 5, 2, 3, 1; of ten pairs one is tied, one discordant.
    assert found.spearman == pytest.approx(8.5 / (9.5 * 10) ** 0.5)
    assert found.kendall == pytest.approx((8 - 1) / (9 * 10) ** 0.5)


def test_every_other_metric_is_compared_with_the_reference():
    scores = {
        "kl": [[0.4, 0.3], [], [0.2, 0.1, 0.05]],
        "loss": [[4.0, 3.0], [], [2.0, 1.0, 0.5]],
        "taylor": [[-0.4, -0.3], [], [-0.2, -0.1, -0.05]],
    }
    profile = make_profile(scores, (2, 0, 3))
    same, opposite = agreements(profile)
    assert (same.metric, same.spearman, same.kendall, same.overlap) == pytest.approx(("loss", 1, 1, 1))
    # Three of five each, the middle one in both.
    assert (opposite.spearman, opposite.kendall, opposite.overlap) == pytest.approx((-1, -1, 1 / 3))
    assert [a.metric for a in agreements(profile, "loss")] == ["kl", "taylor"]


def test_ranks_of_fewer_than_three_iterations_mean_nothing():
    profile = make_profile({"kl": [[0.2], [0.1]], "cosine": [[0.3], [0.1]]}, (1, 1))
    assert agreements(profile) == [Agreement("cosine", "kl", None, None, None)]
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_a_reference_that_was_not_measured_is_refused():
    with refused("metric: expected one that the profile holds, cosine, got 'kl'"):
        agreements(make_profile({"cosine": [[0.1, 0.2], [], [0.3, 0.2, 0.1]]}))
