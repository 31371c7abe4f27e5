"""Targets, bounds and pins: what they limit, what is refused, how they read."""

import pytest

from iiad.planning import Bounds, Targets, read_pins
from tests.helpers import make_profile, refused

TEACHER = make_profile().model  # runs 2, 0 and 3 iterations


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [
        (Bounds(), [(0, 2), (0, 0), (0, 3)]),
        (Bounds(min_iterations=1), [(1, 2), (0, 0), (1, 3)]),  # layer 2 has none to keep
        (Bounds(min_iterations=3), [(2, 2), (0, 0), (3, 3)]),
        (Bounds(max_iterations=1), [(0, 1), (0, 0), (0, 1)]),
        (Bounds(1, 2, {3: 3, 1: 0}), [(0, 0), (0, 0), (3, 3)]),  # a pin goes before both
    ],
)
def test_limits_follow_the_teacher_and_pins_go_first(bounds, wanted):
    assert bounds.limits(TEACHER) == wanted


def test_clipping_takes_the_nearest_budget_and_pins_are_read_as_they_are_written():
    assert Bounds(1, 2, {3: 3}).clip([0, 0, 0], TEACHER) == [1, 0, 3]
    assert Bounds(1, 2).clip([2, 0, 3], TEACHER) == [2, 0, 2]
    assert read_pins(["3=2", " 1 = 0 "], TEACHER) == {3: 2, 1: 0}
    assert read_pins([], TEACHER) == {}


def test_bounds_and_targets_say_what_they_ask_for():
    assert Bounds(1, 2, {3: 1, 1: 0}).describe(TEACHER) == (
        "at least 1 iteration a layer, at most 2 iterations a layer, layer 1 at 0, layer 3 at 1"
    )
    assert not Bounds()
    assert Bounds(min_iterations=0)
    assert not Targets(phase="prefill")
    assert str(Targets(0.55, max_cache_bytes=4096, speedup=2.0, phase="prefill")) == (
        "an overhead cut of at least 55% and at most 4,096 cache bytes a token and a speedup of prefill of at least 2"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bounds(min_iterations=-1), "min_iterations: expected a whole number from 0, got -1"),
        (lambda: Bounds(max_iterations=-1), "max_iterations: expected a whole number from 0, got -1"),
        (lambda: Bounds(2, 1), "min_iterations: expected at most max_iterations, 1, got 2"),
        (lambda: Bounds(4).limits(TEACHER), "min_iterations: expected 0 to 3, the teacher's most, got 4"),
        (
            lambda: Bounds(None, 9).limits(TEACHER),
            "max_iterations: expected 0 to 3, the teacher's most, got 9",
        ),
        (lambda: Bounds(pins={0: 1}), "pins: expected layers from 1, iterations from 0, got 0=1"),
        (lambda: Bounds(pins={4: 1}).limits(TEACHER), "pins: expected a layer from 1 to 3, got 4"),
        (
            lambda: Bounds(pins={2: 1}).limits(TEACHER),
            "pins: expected 0 to 0 for layer 2, the teacher's, got 1",
        ),
        (lambda: Bounds(pins={1: -1}), "pins: expected layers from 1, iterations from 0, got 1=-1"),
        (lambda: read_pins(["3"], TEACHER), "pin: expected LAYER=ITERATIONS, as in 3=2, got '3'"),
        (lambda: read_pins(["3=two"], TEACHER), "pin: expected LAYER=ITERATIONS, as in 3=2, got '3=two'"),
        (
            lambda: read_pins(["1=" + "9" * 5000], TEACHER),
            "pin: expected LAYER=ITERATIONS, as in 3=2, got '1=9",
        ),
        (lambda: read_pins(["-3=2"], TEACHER), "pin: expected LAYER=ITERATIONS, as in 3=2, got '-3=2'"),
        (lambda: read_pins(["3=2", "3=1"], TEACHER), "pin: expected each layer once, got layer 3 twice"),
        (lambda: Targets(overhead_cut=1.5), "overhead_cut: expected a share from 0 to 1, got 1.5"),
        (lambda: Targets(overhead_cut=-0.1), "overhead_cut: expected a share from 0 to 1, got -0.1"),
        (lambda: Targets(compute_cut=float("nan")), "compute_cut: expected a share from 0 to 1, got nan"),
        (lambda: Targets(max_evaluations=0), "max_evaluations: expected a whole number from 1, got 0"),
        (lambda: Targets(max_evaluations=2.5), "max_evaluations: expected a whole number from 1, got 2.5"),
        (lambda: Targets(max_cache_bytes=-1), "max_cache_bytes: expected a whole number from 1, got -1"),
        (lambda: Targets(max_latency_ms=0.0), "max_latency_ms: expected a number above 0, got 0.0"),
        (lambda: Targets(max_latency_ms=float("inf")), "max_latency_ms: expected a number above 0, got inf"),
        (lambda: Targets(speedup=-1.0), "speedup: expected a number above 0, got -1.0"),
        (lambda: Targets(max_score=float("nan")), "max_score: expected a number, got nan"),
        (lambda: Targets(phase="both"), "phase: expected decode, prefill or sentence, got both"),
    ],
)
def test_a_value_out_of_range_is_refused(make, message):
    with refused(message):
        make()
