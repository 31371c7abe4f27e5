"""The metrics of iterates against naive float64 loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.influence.metrics import cosine, fixed_point, relative_l2
from tests.influence.naive import length, naive_cosine, naive_relative_l2, noise, rows


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e4]))
@pytest.mark.parametrize(("metric", "naive"), [(cosine, naive_cosine), (relative_l2, naive_relative_l2)])
def test_iterate_metrics_are_the_double_loop(metric, naive, seed, scale):
    before = noise(2, 3, 7, seed=seed, scale=scale)
    after = before + noise(2, 3, 7, seed=seed + 1, scale=scale)
    assert metric(before, after) == pytest.approx(naive(before, after), rel=1e-9)
    assert metric(before.float(), after.float()) == pytest.approx(naive(before, after), rel=1e-4)


@pytest.mark.parametrize(("metric", "naive"), [(cosine, naive_cosine), (relative_l2, naive_relative_l2)])
def test_they_keep_their_digits_for_nearly_equal_states(metric, naive):
    before = noise(1, 4, 64)
    after = before + noise(1, 4, 64, seed=1, scale=1e-5)
    before, after = before.float(), after.float()
    exact = naive(before.double(), after.double())
    assert exact < 1e-4
    assert metric(before, after) == pytest.approx(exact, rel=0.02)


def test_cosine_of_equal_and_of_opposite_states():
    states = noise(2, 3, 8)
    assert cosine(states, 3 * states) == pytest.approx(0, abs=1e-15)
    assert cosine(states, -states) == pytest.approx(2)


def test_the_relative_change_of_equal_doubled_and_zero_states():
    states = noise(2, 3, 8)
    assert relative_l2(states, states) == 0
    assert relative_l2(states, 2 * states) == pytest.approx(1)
    assert relative_l2(0 * states, 0 * states) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), r=st.integers(0, 4))
def test_residuals_contractions_and_turns_are_the_double_loop(seed, r):
    iterates = [noise(2, 3, 7, seed=seed + 10 * i) for i in range(r + 1)]
    found = fixed_point(iterates)
    steps = [rows(b - a) for a, b in itertools.pairwise(iterates)]
    residuals = [naive_relative_l2(a, b) for a, b in itertools.pairwise(iterates)]
    contractions, turns = [], []
    for earlier, later in itertools.pairwise(steps):
        contractions.append(sum(map(length, later)) / sum(map(length, earlier)))
        cosines = [
            sum(x * y for x, y in zip(a, b, strict=True)) / length(a) / length(b)
            for a, b in zip(earlier, later, strict=True)
        ]
        turns.append(sum(cosines) / len(cosines))
    assert found.residuals == pytest.approx(residuals, rel=1e-9)
    assert found.contractions == pytest.approx(contractions, rel=1e-9)
    assert found.turns == pytest.approx(turns, rel=1e-9)


def test_a_linear_contraction_is_recognised_and_so_is_a_cycle():
    goal, gap = noise(2, 3, 8), noise(2, 3, 8, seed=1)
    shrinking = fixed_point([goal + gap * 0.5**i for i in range(4)])
    assert shrinking.contractions == pytest.approx([0.5, 0.5])
    assert shrinking.turns == pytest.approx([1, 1])
    cycling = fixed_point([goal + gap * (-1) ** i for i in range(4)])
    assert cycling.contractions == pytest.approx([1, 1])
    assert cycling.turns == pytest.approx([-1, -1])


def test_iterates_at_rest_have_zeros_and_no_nan():
    state = noise(2, 3, 8)
    found = fixed_point([state] * 3)
    assert (found.residuals, found.contractions, found.turns) == ([0, 0], [0], [0])
    assert all(math.isfinite(x) for x in fixed_point([0 * state] * 3).residuals)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_states_are_measured_in_float32(dtype):
    before, after = noise(2, 3, 64).to(dtype), noise(2, 3, 64, seed=1).to(dtype)
    for metric, naive in ((cosine, naive_cosine), (relative_l2, naive_relative_l2)):
        assert metric(before, after) == pytest.approx(naive(before.double(), after.double()), rel=1e-4)
