"""The threshold rule, its curve, and plans as files; none of it may need torch."""

import hashlib
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import iiad
from iiad.errors import InputError
from iiad.planning import Plan, check_plan, choose_threshold, plan_by_threshold, threshold_curve
from tests.influence_room.test_profile import make_profile

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 0.25, 0.5, -0.5, 5e-324, 1e-300]))
SCORES = st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=5).filter(any)


def profile_of(scores):
    return make_profile({"kl": scores}, tuple(len(layer) for layer in scores))


def budget(scores, threshold):
    return plan_by_threshold(profile_of(scores), threshold).num_iterations


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [
        (0, [3, 2, 0, 3]),
        (0.01, [3, 2, 0, 3]),  # reaching it is enough
        (0.011, [2, 2, 0, 3]),
        (0.1, [2, 1, 0, 3]),  # layer 4: the first two stay below the third
        (0.5, [1, 0, 0, 3]),
        (0.9, [0, 0, 0, 3]),
        (0.91, [0, 0, 0, 0]),
    ],
)
def test_the_last_iteration_that_reaches_the_threshold_and_all_before_it_stay(threshold, wanted):
    scores = [[0.5, 0.2, 0.01], [0.4, 0.05], [], [0.02, -0.1, 0.9]]
    assert budget(scores, threshold) == wanted


def test_threshold_zero_keeps_even_iterations_that_harm():
    assert budget([[0.5, -0.1], [-0.2]], 0.0) == [2, 1]
    assert budget([[0.5, -0.1], [-0.2]], 5e-324) == [1, 0]
    assert plan_by_threshold(profile_of([[0.1]]), -0.0).model_dump_json().count("-0.0") == 0


@given(SCORES, st.floats(0, 2e6), st.floats(0, 2e6))
def test_a_higher_threshold_never_adds_an_iteration(scores, one, other):
    low, high = sorted([one, other])
    assert all(a >= b for a, b in zip(budget(scores, low), budget(scores, high), strict=True))
    assert budget(scores, 0) == [len(layer) for layer in scores]


@pytest.mark.parametrize("threshold", [-1e-9, -1, float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_is_no_number_from_zero_is_refused(threshold):
    with pytest.raises(InputError, match=r"threshold: found .*; accepted: a number from 0"):
        plan_by_threshold(profile_of([[0.1]]), threshold)


@pytest.mark.parametrize(("metric", "problem"), [("magic", "no such metric"), ("cosine", "does not hold it")])
@pytest.mark.parametrize("function", [lambda p, m: plan_by_threshold(p, 0.1, m), threshold_curve])
def test_a_metric_that_the_profile_lacks_is_refused_with_those_it_has(function, metric, problem):
    with pytest.raises(InputError, match=f"metric '{metric}': .*{problem}; accepted: kl"):
        function(profile_of([[0.1]]), metric)


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


def test_a_plan_knows_what_it_costs_and_where_it_came_from(tmp_path):
    profile = make_profile({"kl": [[0.5, 0.1], [], [0.9, 0.05, 0.3]]}, (2, 0, 3))
    profile.save(tmp_path / "profile.json")
    plan = plan_by_threshold(profile, 0.4)
    assert plan.num_iterations == [1, 0, 1]
    assert plan.overhead_cut == pytest.approx(3 / 5)
    assert plan.compute_cut == pytest.approx(3 / 8)
    assert plan.num_evaluations == 5
    assert plan.cache_bytes_per_token == 500
    assert (plan.origin, plan.metric, plan.threshold) == ("threshold", "kl", 0.4)
    assert plan.teacher == profile.model
    assert plan.profile_fingerprint == hashlib.sha256((tmp_path / "profile.json").read_bytes()).hexdigest()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_a_plan_by_hand(tmp_path):
    teacher = make_profile().model
    plan = Plan.explicit((2, 0, 1), teacher)
    assert (plan.num_iterations, plan.origin, plan.metric) == ([2, 0, 1], "explicit", None)
    assert plan.overhead_cut == pytest.approx(2 / 5)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    none = teacher.model_copy(update={"num_iterations": [0, 0, 0]})
    assert Plan.explicit([0, 0, 0], none).overhead_cut == 0


@pytest.mark.parametrize(
    ("num_iterations", "message"),
    [
        ([2, 0], "found 2 layers; accepted: 3, as the teacher has"),
        ([2, 0, 3, 1], "found 4 layers; accepted: 3"),
        ([2, 0, 4], "found 4 for layer 3; accepted: 0 to 3, the teacher's"),
        ([2, 1, 3], "found 1 for layer 2; accepted: 0 to 0"),
        ([-1, 0, 3], "found -1 for layer 1; accepted: 0 to 2"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_everywhere(num_iterations, message, tmp_path):
    profile = make_profile()
    with pytest.raises(InputError, match=message):
        Plan.explicit(num_iterations, profile.model)
    fields = json.loads(plan_by_threshold(profile, 0.1).model_dump_json())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**fields, "num_iterations": num_iterations}))
    with pytest.raises(InputError, match=f"plan.json: num_iterations: {message}"):
        Plan.load(path)
    whole = Plan.explicit([2, 0, 3], profile.model)
    smaller = whole.model_copy(update={"num_iterations": num_iterations})
    with pytest.raises(InputError, match=f"plan: num_iterations: {message}"):
        check_plan(smaller, profile.model)


def test_a_plan_for_another_teacher_is_refused_with_both_fingerprints():
    teacher = make_profile().model
    plan = Plan.explicit([1, 0, 1], teacher)
    check_plan(plan, teacher)
    other = teacher.model_copy(update={"fingerprint": "c" * 64, "name": "other"})
    with pytest.raises(InputError, match=r"teacher teacher \(a{12}\); found other \(c{12}\)") as caught:
        check_plan(plan, other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": float("nan")}, "threshold: .*found nan"),
        ({"threshold": -0.1}, "threshold: .*found -0.1"),
        ({"threshold": None}, "threshold is None; accepted in a plan of origin 'threshold': a value"),
        ({"origin": "explicit"}, "metric is 'kl'; accepted in a plan of origin 'explicit': null"),
        ({"origin": "magic"}, "origin: "),
        ({"num_iterations": [0.5, 0, 1]}, "num_iterations.0: "),
        ({"kind": "profile"}, "must be a plan .*found kind 'profile'"),
        ({"surplus": 1}, "surplus: no such field"),
    ],
)
def test_a_spoilt_file_gives_one_line(change, message, tmp_path):
    fields = json.loads(plan_by_threshold(make_profile(), 0.1).model_dump_json())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**fields, **change}))
    with pytest.raises(InputError, match=message) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_a_plan_is_frozen():
    with pytest.raises(ValidationError):
        Plan.explicit([1, 0, 1], make_profile().model).num_iterations = [0, 0, 0]


def test_planning_needs_neither_torch_nor_transformers_nor_scipy():
    code = (
        "import sys, types; package = types.ModuleType('iiad'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['iiad'] = package\n"  # the real one registers the models
        "for name in ('torch', 'transformers', 'scipy', 'numpy', 'safetensors'): sys.modules[name] = None\n"
        "import iiad.planning, iiad.influence, iiad.reporting.planning, iiad.reporting.influence\n"
        "print(iiad.planning.plan_by_threshold.__name__)"
    )
    folder = str(Path(iiad.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "plan_by_threshold", done.stderr
