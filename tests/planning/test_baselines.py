"""Plans that look at no score."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.planning import baseline_plans
from tests.helpers import make_profile, refused

TEACHERS = st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any)


def teacher_of(most):
    return make_profile(num_iterations=tuple(most)).model


@settings(max_examples=50)
@given(TEACHERS, st.data())
def test_every_baseline_keeps_as_many_iterations_and_fits_the_teacher(most, data):
    kept = data.draw(st.integers(0, sum(most)))
    plans = baseline_plans(teacher_of(most), kept, 5, data.draw(st.integers(0, 9)))
    names = [name for name, _ in plans]
    assert names[:3] == ["uniform", "last layers first", "first layers first"]
    assert len(set(names)) == len(names)
    for _, plan in plans:
        assert sum(plan) == kept
        assert all(0 <= r <= highest for r, highest in zip(plan, most, strict=True))
    drawn = [tuple(plan) for name, plan in plans if name.startswith("random")]
    assert len(set(drawn)) == len(drawn)
    possible = [p for p in itertools.product(*(range(r + 1) for r in most)) if sum(p) == kept]
    assert len(drawn) == min(5, len(possible))
    uniform = plans[0][1]
    free = [r for r, highest in zip(uniform, most, strict=True) if r < highest]
    assert max(uniform) - min(free, default=max(uniform)) <= 1


@pytest.mark.parametrize(
    ("kept", "uniform", "last", "first"),
    [
        (4, [1, 1, 1, 1], [3, 1, 0, 0], [0, 0, 1, 3]),
        (6, [2, 2, 1, 1], [3, 3, 0, 0], [0, 0, 3, 3]),
        (0, [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
        (12, [3, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3]),
    ],
)
def test_what_the_named_baselines_drop(kept, uniform, last, first):
    plans = dict(baseline_plans(teacher_of([3, 3, 3, 3]), kept, 0, 0))
    assert plans == {"uniform": uniform, "last layers first": last, "first layers first": first}


def test_uniform_respects_what_each_layer_has():
    assert dict(baseline_plans(teacher_of([1, 3, 0, 3]), 6, 0, 0))["uniform"] == [1, 3, 0, 2]


def test_random_plans_are_drawn_uniformly_and_repeat_with_the_seed():
    teacher = teacher_of([2, 2, 2])  # 7 plans of 3 iterations
    draws = [baseline_plans(teacher, 3, 1, seed)[3][1] for seed in range(1400)]
    counts = Counter(map(tuple, draws))
    assert len(counts) == 7
    assert all(140 < count < 260 for count in counts.values())
    assert baseline_plans(teacher, 3, 4, 5) == baseline_plans(teacher, 3, 4, 5)


def test_what_no_plan_can_keep_is_refused():
    with refused("num_kept: expected 0 to 6, the teacher's, got 7"):
        baseline_plans(teacher_of([3, 3]), 7, 0, 0)
    with refused("num_random: expected a whole number from 0, got -1"):
        baseline_plans(teacher_of([3, 3]), 3, -1, 0)
