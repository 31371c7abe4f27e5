"""The trade-off: the threshold's curve, the exact front beside it, and their knees."""

import itertools
import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiad.errors import InputError
from iiad.planning import (
    Bounds,
    Targets,
    choose_threshold,
    find_knee,
    pareto_front,
    plan_by_target,
    plan_by_threshold,
    threshold_curve,
)
from tests.planning.test_planning import NORMALIZE, SCORES, budget, profile_of

FEW = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 0.1, 0.2, 0.3, -0.1]))
SMALL = st.lists(st.lists(FEW, max_size=3), min_size=1, max_size=4).filter(any)


@given(SCORES)
def test_the_curve_holds_every_plan_of_the_rule_once_in_order(scores):
    curve = threshold_curve(profile_of(scores))
    plans = [point.num_iterations for point in curve]
    assert len(set(plans)) == len(plans)
    assert plans[0] == tuple(len(layer) for layer in scores)
    assert not any(plans[-1])
    values = {abs(score) for layer in scores for score in layer}
    tried = {0.0, *values, *(math.nextafter(value, math.inf) for value in values)}
    assert {tuple(budget(scores, threshold)) for threshold in tried} == set(plans)
    for before, after in pairwise(curve):
        assert before.up_to == after.above
        assert before.overhead_cut < after.overhead_cut
    for point in curve:
        assert tuple(budget(scores, point.threshold)) == point.num_iterations
        if point.above < point.up_to < math.inf:
            assert tuple(budget(scores, point.up_to)) == point.num_iterations
            assert tuple(budget(scores, math.nextafter(point.above, math.inf))) == point.num_iterations


def test_the_curve_puts_thresholds_half_way_and_sums_what_is_dropped():
    curve = threshold_curve(profile_of([[0.4, 0.1], [0.9]]))
    assert [point.num_iterations for point in curve] == [(2, 1), (1, 1), (0, 1), (0, 0)]
    assert [point.threshold for point in curve] == pytest.approx([0, 0.2, 0.6, 1.8])
    assert [point.overhead_cut for point in curve] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [point.predicted_loss for point in curve] == pytest.approx([0, 0.1, 0.5, 1.4])
    assert [(point.above, point.up_to) for point in curve] == [
        (0, 0.1),
        (0.1, 0.4),
        (0.4, 0.9),
        (0.9, math.inf),
    ]


def test_the_curve_of_scores_below_zero_has_the_teacher_at_zero_alone():
    curve = threshold_curve(profile_of([[0.4, -0.1], [-0.3]]))
    assert [point.num_iterations for point in curve] == [(2, 1), (1, 0), (0, 0)]
    assert [point.threshold for point in curve] == pytest.approx([0, 0.2, 0.8])
    assert [point.predicted_loss for point in curve] == pytest.approx([0, -0.4, 0])
    curve = threshold_curve(profile_of([[-0.1]]))
    assert [(point.threshold, point.num_iterations) for point in curve] == [(0, (1,)), (1, (0,))]


def chosen(scores):
    curve = threshold_curve(profile_of(scores))
    threshold, why = choose_threshold(curve)
    assert "\n" not in why
    assert f"{threshold:.3g}" in why
    return budget(scores, threshold), why


def test_the_threshold_chosen_is_the_knee():
    found, why = chosen([[1.0, 0.01, 0.002], [0.8, 0.02, 0.001]])
    assert found == [1, 1]
    assert "an overhead cut of 67% for a predicted loss of 0.033" in why
    assert "a cut of 100% is predicted to lose 1.83" in why


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([[0.5, 0.5], [0.5]], [2, 1]),  # no point below the chord: the plan that cuts least
        ([[0.5]], [1]),
        ([[0.0, 0.0]], [0]),  # nothing is lost
        ([[-0.1, -0.2]], [0]),  # nothing is lost, and something won
        ([[0.5, -0.5], [0.0]], [1, 0]),
    ],
)
def test_the_choice_stands_ties_one_step_and_scores_below_zero(scores, wanted):
    assert chosen(scores)[0] == wanted


def test_one_point_is_chosen_and_none_refused():
    [point, *_] = threshold_curve(profile_of([[0.5]]))
    assert choose_threshold([point])[0] == 0
    with pytest.raises(InputError, match="curve: found no point"):
        choose_threshold([])


@given(SCORES)
def test_some_point_of_the_curve_is_always_chosen(scores):
    curve = threshold_curve(profile_of(scores))
    assert choose_threshold(curve)[0] in [point.threshold for point in curve]


@given(SCORES, NORMALIZE, st.data())
def test_the_curve_under_bounds_and_shares_holds_the_plans_of_its_thresholds(scores, normalize, data):
    most = max(map(len, scores))
    least, highest = sorted([data.draw(st.integers(0, most)), data.draw(st.integers(0, most))])
    profile, bounds = profile_of(scores), Bounds(least, highest)
    curve = threshold_curve(profile, "kl", normalize, bounds)
    plans = [point.num_iterations for point in curve]
    assert len(set(plans)) == len(plans)
    assert curve[0].threshold == 0
    assert math.isinf(curve[-1].up_to)
    for point in curve:
        plan = plan_by_threshold(profile, point.threshold, "kl", normalize, bounds)
        assert tuple(plan.num_iterations) == point.num_iterations
        assert plan.predicted_loss == point.predicted_loss
    for before, after in pairwise(curve):
        assert before.up_to == after.above
        assert before.overhead_cut < after.overhead_cut


@given(SMALL, st.data())
def test_the_front_is_the_one_that_trying_every_budget_finds(scores, data):
    profile = profile_of(scores)
    pins = {1: data.draw(st.integers(0, len(scores[0])))} if data.draw(st.booleans()) else {}
    bounds = Bounds(pins=pins)

    def lost(plan):
        return sum(Fraction(s) for layer, r in zip(scores, plan, strict=True) for s in layer[r:])

    choices = [range(least, most + 1) for least, most in bounds.limits(profile.model)]
    best = {}  # number of iterations -> least loss, and the first plan that has it
    for plan in itertools.product(*choices):
        best[sum(plan)] = min(best.get(sum(plan), (lost(plan), plan)), (lost(plan), plan))
    wanted = [
        plan
        for count, (loss, plan) in sorted(best.items(), reverse=True)
        if all(loss < other for fewer, (other, _) in best.items() if fewer < count)
    ]
    front = pareto_front(profile, bounds=bounds)
    assert [point.num_iterations for point in front] == wanted
    for point in front:
        assert point.predicted_loss == float(lost(point.num_iterations))
        assert point.num_evaluations == sum(point.num_iterations) + len(scores)


@given(SMALL)
def test_every_point_of_the_front_is_the_plan_for_so_many_evaluations(scores):
    profile = profile_of(scores)
    for point in pareto_front(profile):
        plan = plan_by_target(profile, Targets(max_evaluations=point.num_evaluations))
        assert tuple(plan.num_iterations) == point.num_iterations
        assert (plan.overhead_cut, plan.predicted_loss) == (point.overhead_cut, point.predicted_loss)


@given(SMALL, NORMALIZE)
def test_no_threshold_beats_the_front(scores, normalize):
    profile = profile_of(scores)
    front = pareto_front(profile)
    for point in threshold_curve(profile, normalize=normalize):
        assert any(
            best.overhead_cut >= point.overhead_cut and best.predicted_loss <= point.predicted_loss
            for best in front
        )


def test_a_teacher_that_is_better_off_without_an_iteration_is_no_point_of_the_front():
    front = pareto_front(profile_of([[0.5, -0.1], [0.2]]))
    assert [point.num_iterations for point in front] == [(1, 1), (1, 0), (0, 0)]
    assert [point.predicted_loss for point in front] == pytest.approx([-0.1, 0.1, 0.6])


def test_the_knee_of_the_front_is_found_like_that_of_thresholds():
    front = pareto_front(profile_of([[1.0, 0.01, 0.002], [0.8, 0.02, 0.001]]))
    assert find_knee(front).num_iterations == (1, 1)
    with pytest.raises(InputError, match="curve: found no point"):
        find_knee([])


def test_a_front_by_a_metric_that_the_profile_lacks_is_refused():
    with pytest.raises(InputError, match="metric: expected .*, got 'loss'"):
        pareto_front(profile_of([[0.1]]), "loss")
