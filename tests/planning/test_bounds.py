"""Bounds and pins, and what is refused."""

import pytest

from iiad.errors import InputError
from iiad.planning import Bounds, read_pins
from tests.helpers import make_profile

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


def test_clipping_takes_the_nearest_budget():
    assert Bounds(1, 2, {3: 3}).clip([0, 0, 0], TEACHER) == [1, 0, 3]
    assert Bounds(1, 2).clip([2, 0, 3], TEACHER) == [2, 0, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bounds(min_iterations=-1), "min_iterations: found -1; accepted: a whole number from 0"),
        (lambda: Bounds(max_iterations=-1), "max_iterations: found -1; accepted"),
        (lambda: Bounds(2, 1), "min_iterations: found 2; accepted: at most max_iterations, 1"),
        (lambda: Bounds(4).limits(TEACHER), "min_iterations: found 4; accepted: 0 to 3, the teacher's most"),
        (lambda: Bounds(None, 9).limits(TEACHER), "max_iterations: found 9; accepted: 0 to 3"),
        (lambda: Bounds(pins={0: 1}).limits(TEACHER), "pins: found layer 0; accepted: 1 to 3"),
        (lambda: Bounds(pins={4: 1}).limits(TEACHER), "pins: found layer 4; accepted: 1 to 3"),
        (lambda: Bounds(pins={2: 1}).limits(TEACHER), "pins: found 1 for layer 2; accepted: 0 to 0"),
        (lambda: Bounds(pins={1: -1}).limits(TEACHER), "pins: found -1 for layer 1; accepted: 0 to 2"),
        (lambda: read_pins(["3"]), "pin: found '3'; accepted: LAYER=ITERATIONS, as in 3=2"),
        (lambda: read_pins(["3=two"]), "pin: found '3=two'; accepted"),
        (lambda: read_pins(["-3=2"]), "pin: found '-3=2'; accepted"),
        (lambda: read_pins(["3=2", "3=1"]), "pin: found layer 3 twice; accepted: each layer once"),
    ],
)
def test_what_no_teacher_could_run_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_pins_are_read_as_they_are_written():
    assert read_pins(["3=2", " 1 = 0 "]) == {3: 2, 1: 0}
    assert read_pins([]) == {}


def test_bounds_say_what_they_bind():
    assert str(Bounds(1, 2, {3: 1, 1: 0})) == (
        "at least 1 iteration a layer, at most 2 iterations a layer, layer 1 at 0, layer 3 at 1"
    )
    assert not Bounds()
    assert Bounds(min_iterations=0)
