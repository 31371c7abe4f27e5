"""Each verdict on an iteration at its bounds, the predicted residual, and the advice word for word."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiad.influence.diagnostics import advice, diagnose
from iiad.influence.profile import FixedPoint
from tests.helpers import make_fixed_point, make_profile

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
    found = diagnose(layer)
    assert (found.verdict, found.residual, found.contraction, found.turn) == (verdict, 0.2, contraction, turn)


@pytest.mark.parametrize(
    ("layer", "verdict"), [(NONE, "too few iterations"), (ONE, "too few iterations"), (AT_REST, "at rest")]
)
def test_without_two_changes_there_is_nothing_to_compare(layer, verdict):
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
            "layers 2-6 have converged from iteration 2 on (residual below 1 %): 10 of 18 iterations are candidates "
            "to drop; layer 1 diverges (contraction 1.30): do not add iterations to it, and check it before "
            "distilling",
        ),
        (
            [CONVERGED, make_fixed_point(2, contraction=0.02), NONE, make_fixed_point(3, contraction=0.1)],
            "layers 1 and 2 have converged from iteration 2 on and layer 4 from iteration 3 on (residual below 1 %): "
            "4 of 8 iterations are candidates to drop",
        ),
        (
            [CONVERGED, CONVERGED],
            "both layers have converged from iteration 2 on (residual below 1 %): "
            "4 of 6 iterations are candidates to drop",
        ),
        (
            [FixedPoint(residuals=[0.001], contractions=[], turns=[]), NONE],
            "layer 1 has converged from iteration 1 on (residual below 1 %): "
            "1 of 1 iterations is a candidate to drop",
        ),
        (
            [SLOW] * 4,
            "all 4 layers converge (contraction 0.50) but the last iteration still changes the state by up to 10 %, "
            "one more would by up to 5 %: go by the scores",
        ),
        (
            [STALLED, NONE],
            "layer 1 stalls (contraction 0.98): its changes hardly shrink, go by the scores",
        ),
        (
            [CYCLING, AT_REST, CYCLING],
            "layer 2 is at rest: its iterations change nothing, drop them; layers 1 and 3 cycle, each change undoing "
            "much of the one before: drop their iterations in pairs",
        ),
        (
            [DIVERGING, ONE, make_fixed_point(3, contraction=1.55), DIVERGING, DIVERGING],
            "layers 1 and 3-5 diverge (contraction 1.30 to 1.55): do not add iterations to them, and check them "
            "before distilling; layer 2 has one iteration, too few to tell",
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


@given(st.lists(st.sampled_from([CONVERGED, SLOW, STALLED, CYCLING, DIVERGING, AT_REST, ONE]), min_size=1))
def test_every_layer_is_spoken_of_once(layers):
    line = advise(*layers)
    assert line == advise(*layers)
    assert "\n" not in line
    assert line.count(";") + 1 == len({id(layer) for layer in layers})
