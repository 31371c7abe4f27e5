"""The threshold rule, and plans as files; none of it may need torch."""

import hashlib
import json
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
from iiad.planning import (
    Bounds,
    Plan,
    Targets,
    check_plan,
    normalize_scores,
    plan_by_target,
    plan_by_threshold,
    threshold_curve,
)
from tests.helpers import make_profile, make_table

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 0.25, 0.5, -0.5, 5e-324, 1e-300]))
SCORES = st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=5).filter(any)
NORMALIZE = st.sampled_from(["none", "layer", "model"])


def profile_of(scores):
    return make_profile({"kl": scores}, tuple(len(layer) for layer in scores))


def budget(scores, threshold, normalize="none"):
    return plan_by_threshold(profile_of(scores), threshold, normalize=normalize).num_iterations


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


@given(SCORES, st.floats(0, 2e6), st.floats(0, 2e6), NORMALIZE)
def test_a_higher_threshold_never_adds_an_iteration(scores, one, other, normalize):
    low, high = sorted([one, other])
    fewer, more = (budget(scores, threshold, normalize) for threshold in (high, low))
    assert all(a >= b for a, b in zip(more, fewer, strict=True))
    assert budget(scores, 0, normalize) == [len(layer) for layer in scores]


@given(SCORES, NORMALIZE)
def test_normalized_scores_are_shares_of_the_largest_in_the_same_order(scores, normalize):
    shares = normalize_scores(scores, normalize)
    for layer, own in zip(shares, scores, strict=True):
        for i, j in pairwise(range(len(own))):
            assert (layer[i] - layer[j]) * (1 if own[i] >= own[j] else -1) >= 0
        assert all(
            (share >= 0) == (score >= 0) or share == 0 for share, score in zip(layer, own, strict=True)
        )
    groups = {
        "none": [],
        "layer": list(zip(shares, scores, strict=True)),
        "model": [tuple([x for layer in layers for x in layer] for layers in (shares, scores))],
    }
    for group, own in groups[normalize]:
        if any(own):
            assert max(map(abs, group)) == 1
        else:
            assert not any(group)


def test_a_normalized_threshold_is_a_share():
    scores = [[8.0, 2.0, 0.1], [0.08, 0.02, 0.04], [0.0, 0.0, 0.0]]
    assert budget(scores, 0.25, "layer") == [2, 3, 0]
    assert budget(scores, 0.25, "model") == [2, 0, 0]
    assert budget(scores, 0.25, "none") == [2, 0, 0]
    assert budget(scores, 1.0, "layer") == [1, 1, 0]
    assert budget(scores, 0.005, "model") == [3, 3, 0]
    with pytest.raises(InputError, match="normalize: found 'all'; accepted: none, layer, model"):
        budget(scores, 0.25, "all")


@given(SCORES, st.floats(0, 2e6), st.data())
def test_bounds_clip_what_the_rule_gives(scores, threshold, data):
    most = max(map(len, scores))
    least = data.draw(st.integers(0, most))
    highest = data.draw(st.integers(least, most))
    pinned = data.draw(st.integers(1, len(scores)))
    pins = {pinned: data.draw(st.integers(0, len(scores[pinned - 1])))}
    plan = plan_by_threshold(profile_of(scores), threshold, bounds=Bounds(least, highest, pins))
    for t, (r, free, layer) in enumerate(
        zip(plan.num_iterations, budget(scores, threshold), scores, strict=True), 1
    ):
        wanted = min(max(free, min(least, len(layer))), highest)
        assert r == pins.get(t, wanted)


def test_a_threshold_plan_says_how_it_came_about():
    profile = make_profile()
    plan = plan_by_threshold(profile, 0.1, "cosine", "layer", Bounds(max_iterations=2, pins={1: 1}))
    assert (plan.normalize, plan.metric, plan.bounds) == ("layer", "cosine", Bounds(None, 2, {1: 1}))
    assert plan.explanation == (
        "each layer keeps its iterations up to the last one whose influence by cosine reaches 0.1 of the largest of "
        "its layer, clipped to at most 2 iterations a layer, layer 1 at 1"
    )
    dropped = profile.scores["cosine"][0][1:] + profile.scores["cosine"][2][2:]
    assert plan.predicted_loss == pytest.approx(sum(dropped))
    # The batches lie 10 % to both sides: standard deviation / sqrt(8), with 7 degrees of freedom.
    assert plan.predicted_loss_error == pytest.approx(plan.predicted_loss * 0.1 / 7**0.5)
    assert plan_by_threshold(make_profile(errors=False), 0.1).predicted_loss_error is None
    assert plan_by_threshold(profile, 0).explanation == "threshold 0 keeps every iteration"


@pytest.mark.parametrize("threshold", [-1e-9, -1, float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_is_no_number_from_zero_is_refused(threshold):
    with pytest.raises(InputError, match=r"threshold: found .*; accepted: a number from 0"):
        plan_by_threshold(profile_of([[0.1]]), threshold)


@pytest.mark.parametrize(("metric", "problem"), [("magic", "got 'magic'"), ("cosine", "got 'cosine'")])
@pytest.mark.parametrize("function", [lambda p, m: plan_by_threshold(p, 0.1, m), threshold_curve])
def test_a_metric_that_the_profile_lacks_is_refused_with_those_it_has(function, metric, problem):
    with pytest.raises(InputError, match=f"metric: expected one that the profile holds, kl, {problem}"):
        function(profile_of([[0.1]]), metric)


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
        ({"threshold": float("nan")}, "threshold: .*got nan"),
        ({"threshold": -0.1}, "threshold: .*got -0.1"),
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


def target_plan():
    profile = make_profile()
    targets = Targets(overhead_cut=0.4, speedup=1.1)
    return plan_by_target(profile, targets, "kl", Bounds(pins={3: 1}), make_table(profile.model))


def test_a_target_plan_survives_its_file(tmp_path):
    plan = target_plan()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert (plan.origin, plan.threshold, plan.normalize) == ("target", None, None)
    assert plan.targets == Targets(overhead_cut=0.4, speedup=1.1)
    assert plan.bounds == Bounds(pins={3: 1})
    assert plan.latency_fingerprint == make_table(plan.teacher).fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": None}, "targets is None; accepted in a plan of origin 'target': a value"),
        ({"threshold": 0.1}, "threshold is 0.1; accepted in a plan of origin 'target': null"),
        ({"normalize": "none"}, "normalize is 'none'; accepted .*: null"),
        ({"predicted_loss": None}, "predicted_loss is None; accepted .*: a value"),
        ({"latency_fingerprint": None}, "latency_fingerprint is None; accepted .*: a value"),
        ({"targets": {"speedup": 0}}, "targets: speedup: found 0.0; accepted: a number above 0"),
        ({"targets": {"speed": 2}}, "targets.speed: "),
        ({"bounds": {"pins": {"x": 1}}}, "bounds.pins.x"),
        ({"bounds": {"min_iterations": 2, "max_iterations": 1}}, "bounds: min_iterations: found 2; accepted"),
        ({"origin": "explicit"}, "metric is 'kl'; accepted in a plan of origin 'explicit': null"),
        ({"origin": "threshold"}, "threshold is None; accepted in a plan of origin 'threshold': a value"),
        ({"predicted_loss_error": -1}, "predicted_loss_error: "),
    ],
)
def test_a_spoilt_target_plan_gives_one_line(change, message, tmp_path):
    fields = json.loads(target_plan().model_dump_json())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**fields, **change}))
    with pytest.raises(InputError, match=message) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_a_plan_from_before_plans_explained_themselves_still_loads(tmp_path):
    fields = json.loads(plan_by_threshold(make_profile(), 0.1).model_dump_json())
    new = (
        "normalize",
        "targets",
        "bounds",
        "predicted_loss",
        "predicted_loss_error",
        "explanation",
        "latency_fingerprint",
    )
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in new}))
    assert Plan.load(path).threshold == 0.1


def test_a_plan_is_frozen():
    with pytest.raises(ValidationError):
        Plan.explicit([1, 0, 1], make_profile().model).num_iterations = [0, 0, 0]


def test_planning_needs_neither_torch_nor_transformers_nor_scipy():
    code = (
        "import sys, types; package = types.ModuleType('iiad'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['iiad'] = package\n"  # the real one registers the models
        "for name in ('torch', 'transformers', 'scipy', 'safetensors'): sys.modules[name] = None\n"
        "import iiad.planning, iiad.influence, iiad.reporting.plan_tables\n"
        "print(iiad.planning.plan_by_threshold.__name__)"
    )
    folder = str(Path(iiad.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "plan_by_threshold", done.stderr
