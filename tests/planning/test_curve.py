"""The trade-off: the threshold's curve, the front beside it, and their knees."""

import itertools
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.planning import (
    Bounds,
    Targets,
    choose_threshold,
    find_knee,
    pareto_front,
    plan_by_target,
    plan_by_threshold,
    threshold_curve,
    trade_off,
)
from tests.helpers import profile_of, refused

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 0.25, 0.5, -0.5, 5e-324, 1e-300]))
SCORES = st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=5).filter(any)
FEW = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 0.25, 0.5, -0.25]))
SMALL = st.lists(st.lists(FEW, max_size=3), min_size=1, max_size=4).filter(any)
NORMALIZE = st.sampled_from(["none", "layer", "model"])


@settings(max_examples=40)
@given(SCORES, NORMALIZE, st.data())
def test_the_curve_holds_every_plan_of_the_rule_once_in_order(scores, normalize, data):
    most = max(map(len, scores))
    least, highest = sorted([data.draw(st.integers(0, most)), data.draw(st.integers(0, most))])
    profile = profile_of(scores)
    bounds = data.draw(st.sampled_from([None, Bounds(least, highest)]))
    curve = threshold_curve(profile, "kl", normalize, bounds)

    def budget(threshold):
        return tuple(plan_by_threshold(profile, threshold, "kl", normalize, bounds).num_iterations)

    plans = [point.num_iterations for point in curve]
    assert len(set(plans)) == len(plans)
    assert plans[0] == budget(0)
    assert plans[-1] == budget(1e300)
    assert (curve[0].threshold, curve[-1].up_to) == (0, math.inf)
    if normalize == "none":
        values = {abs(score) for layer in scores for score in layer}
        tried = {0.0, *values, *(math.nextafter(value, math.inf) for value in values)}
        assert {budget(threshold) for threshold in tried} == set(plans)
    for before, after in pairwise(curve):
        assert before.up_to == after.above
        assert before.overhead_cut < after.overhead_cut
    for point in curve:
        plan = plan_by_threshold(profile, point.threshold, "kl", normalize, bounds)
        assert tuple(plan.num_iterations) == point.num_iterations
        assert plan.predicted_loss == point.predicted_loss
        if point.above < point.up_to < math.inf:
            ends = (math.nextafter(point.above, math.inf), point.up_to)
            assert {budget(end) for end in ends} == {point.num_iterations}
    assert find_knee(curve) in curve


def test_the_curve_puts_thresholds_half_way_and_sums_what_is_dropped():
    curve = threshold_curve(profile_of([[0.4, 0.1], [0.9]]))
    assert [point.num_iterations for point in curve] == [(2, 1), (1, 1), (0, 1), (0, 0)]
    assert [point.threshold for point in curve] == pytest.approx([0, 0.2, 0.6, 1.8])
    assert [point.overhead_cut for point in curve] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [point.predicted_loss for point in curve] == pytest.approx([0, 0.1, 0.5, 1.4])
    ranges = [(point.above, point.up_to) for point in curve]
    assert ranges == [(0, 0.1), (0.1, 0.4), (0.4, 0.9), (0.9, math.inf)]


def test_the_curve_of_scores_below_zero_has_the_teacher_at_zero_alone():
    curve = threshold_curve(profile_of([[0.4, -0.1], [-0.3]]))
    assert [point.num_iterations for point in curve] == [(2, 1), (1, 0), (0, 0)]
    assert [point.threshold for point in curve] == pytest.approx([0, 0.2, 0.8])
    assert [point.predicted_loss for point in curve] == pytest.approx([0, -0.4, 0])
    curve = threshold_curve(profile_of([[-0.1]]))
    assert [(point.threshold, point.num_iterations) for point in curve] == [(0, (1,)), (1, (0,))]


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([[1.0, 0.01, 0.002], [0.8, 0.02, 0.001]], (1, 1)),
        ([[0.5, 0.5], [0.5]], (2, 1)),  # no point below the chord: the plan that cuts least
        ([[0.5]], (1,)),
        ([[0.0, 0.0]], (0,)),  # nothing is lost
        ([[-0.1, -0.2]], (0,)),  # nothing is lost, and something won
        ([[0.5, -0.5], [0.0]], (1, 0)),
    ],
)
def test_the_threshold_chosen_is_the_knee_of_its_curve(scores, wanted):
    profile = profile_of(scores)
    threshold, why = choose_threshold(threshold_curve(profile))
    assert tuple(plan_by_threshold(profile, threshold).num_iterations) == wanted
    assert f"{threshold:.3g}" in why
    assert trade_off(profile).threshold_knee.num_iterations == wanted


def test_the_choice_is_explained_by_its_cut_and_loss_in_one_line():
    curve = threshold_curve(profile_of([[1.0, 0.01, 0.002], [0.8, 0.02, 0.001]]))
    _, why = choose_threshold(curve)
    assert "an overhead cut of 67% for a predicted loss of 0.033" in why
    assert "a cut of 100% is predicted to lose 1.83" in why
    assert choose_threshold(curve[:1])[0] == 0
    with refused("curve: expected at least one point, got none"):
        choose_threshold([])


@settings(max_examples=40)
@given(SMALL, NORMALIZE, st.data())
def test_the_front_is_the_one_that_trying_every_budget_finds(scores, normalize, data):
    profile = profile_of(scores)
    bounds = Bounds(pins={1: data.draw(st.integers(0, len(scores[0])))} if data.draw(st.booleans()) else {})

    def lost(plan):
        return math.fsum(s for layer, r in zip(scores, plan, strict=True) for s in layer[r:])

    choices = [range(least, most + 1) for least, most in bounds.limits(profile.model)]
    best = {}  # number of iterations -> least loss
    for plan in itertools.product(*choices):
        best[sum(plan)] = min(best.get(sum(plan), math.inf), lost(plan))
    front = pareto_front(profile, bounds=bounds)
    for point in front:
        count = sum(point.num_iterations)
        assert point.predicted_loss == lost(point.num_iterations) == pytest.approx(best[count])
        assert point.num_evaluations == count + len(scores)
        plan = plan_by_target(profile, Targets(max_evaluations=point.num_evaluations), bounds=bounds)
        assert tuple(plan.num_iterations) == point.num_iterations
        assert (plan.overhead_cut, plan.predicted_loss) == (point.overhead_cut, point.predicted_loss)
    for count, loss in best.items():  # no budget, and so no threshold, beats the front
        assert any(sum(p.num_iterations) <= count and p.predicted_loss <= loss + 1e-9 for p in front)
    for more, fewer in pairwise(front):
        assert more.num_evaluations > fewer.num_evaluations
        assert more.predicted_loss < fewer.predicted_loss
    both = trade_off(profile, "kl", normalize, bounds)
    assert (both.front, both.thresholds) == (front, threshold_curve(profile, "kl", normalize, bounds))
    assert both.front_knee in front


@pytest.mark.parametrize(
    ("scores", "budgets", "losses"),
    [
        # Of equal losses the fewest evaluations, then the first budget.
        ([[0.5, 0], [0.25, 0], [0.25]], [(1, 1, 1), (1, 0, 1), (1, 0, 0), (0, 0, 0)], [0, 0.25, 0.5, 1]),
        # A teacher that is better off without an iteration is no point.
        ([[0.5, -0.1], [0.2]], [(1, 1), (1, 0), (0, 0)], [-0.1, 0.1, 0.6]),
    ],
)
def test_the_front_of_equal_and_of_negative_scores(scores, budgets, losses):
    front = pareto_front(profile_of(scores))
    assert [point.num_iterations for point in front] == budgets
    assert [point.predicted_loss for point in front] == pytest.approx(losses)
