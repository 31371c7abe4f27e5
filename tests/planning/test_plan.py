"""Plans as files: what they say, what they refuse, whom they serve."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from iiad.planning import Bounds, Plan, Targets, check_plan, plan_by_target, plan_by_threshold
from tests.helpers import load_spoilt, make_profile, make_table, refused

PROFILE = make_profile()  # runs 2, 0 and 3 iterations
PLANS = {
    "threshold": plan_by_threshold(PROFILE, 0.1),
    "target": plan_by_target(
        PROFILE, Targets(overhead_cut=0.4, speedup=1.1), "kl", Bounds(pins={3: 1}), make_table(PROFILE.model)
    ),
    "explicit": Plan.explicit((2, 0, 1), PROFILE.model),
}


def test_a_plan_knows_what_it_costs_and_where_it_came_from(tmp_path):
    profile = make_profile({"kl": [[0.5, 0.1], [], [0.9, 0.05, 0.3]]}, (2, 0, 3))
    profile.save(tmp_path / "profile.json")
    plan = plan_by_threshold(profile, 0.4)
    assert plan.num_iterations == [1, 0, 1]
    assert plan.overhead_cut == pytest.approx(3 / 5)
    assert plan.compute_cut == pytest.approx(3 / 8)
    assert (plan.origin, plan.metric, plan.threshold) == ("threshold", "kl", 0.4)
    assert plan.teacher == profile.model
    assert plan.profile_fingerprint == hashlib.sha256((tmp_path / "profile.json").read_bytes()).hexdigest()
    assert [cost.num_evaluations for cost in plan.costs()] == [8, 5]
    assert [cost.cache_bytes_per_token for cost in plan.costs()] == [800, 500]


@pytest.mark.parametrize("origin", PLANS)
def test_a_plan_survives_its_file(origin, tmp_path):
    plan = PLANS[origin]
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.origin == origin
    with pytest.raises(ValidationError):
        plan.num_iterations = [0, 0, 0]


def test_each_origin_keeps_its_own_fields():
    plan = PLANS["target"]
    assert (plan.threshold, plan.normalize) == (None, None)
    assert (plan.targets, plan.bounds) == (Targets(overhead_cut=0.4, speedup=1.1), Bounds(pins={3: 1}))
    assert plan.latency_fingerprint == make_table(plan.teacher).fingerprint
    plan = PLANS["explicit"]
    assert (plan.metric, plan.explanation, plan.overhead_cut) == (None, None, 0.4)


def test_a_teacher_without_iterations_has_no_overhead_to_cut():
    none = PROFILE.model.model_copy(update={"num_iterations": [0, 0, 0]})
    assert Plan.explicit([0, 0, 0], none).overhead_cut == 0


@pytest.mark.parametrize(
    ("num_iterations", "message"),
    [
        ([2, 0], "expected 3 layers, as the teacher has, got 2"),
        ([2, 0, 3, 1], "expected 3 layers, as the teacher has, got 4"),
        ([2, 0, 4], "expected 0 to 3 for layer 3, the teacher's, got 4"),
        ([2, 1, 3], "expected 0 to 0 for layer 2, the teacher's, got 1"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_everywhere(num_iterations, message, tmp_path):
    with refused(message):
        Plan.explicit(num_iterations, PROFILE.model)
    with refused(f"spoilt.json: num_iterations: {message}"):
        load_spoilt(PLANS["threshold"], tmp_path, "num_iterations", num_iterations)
    with refused(f"plan: num_iterations: {message}"):
        check_plan(PLANS["explicit"].model_copy(update={"num_iterations": num_iterations}), PROFILE.model)


def test_a_plan_for_another_teacher_is_refused_with_both_fingerprints():
    plan = PLANS["explicit"]
    check_plan(plan, PROFILE.model)
    other = PROFILE.model.model_copy(update={"fingerprint": "c" * 64, "name": "other"})
    with refused(f"teacher other ({'c' * 12}), got one for teacher ({'a' * 12})"):
        check_plan(plan, other)


@pytest.mark.parametrize(
    ("origin", "field", "value", "message"),
    [
        ("threshold", "threshold", float("nan"), "got nan"),
        ("threshold", "threshold", -0.1, "got -0.1"),
        ("threshold", "threshold", None, "expected a value in a plan of origin 'threshold', got None"),
        ("threshold", "origin", "explicit", "metric: expected null in a plan of origin 'explicit', got 'kl'"),
        ("threshold", "origin", "magic", "origin: "),
        ("threshold", "num_iterations", [0.5, 0, 1], "num_iterations.0: "),
        ("threshold", "kind", "profile", "spoilt.json: kind: expected 'plan', got 'profile'"),
        ("threshold", "surplus", 1, "surplus: "),
        ("target", "targets", None, "targets: expected a value in a plan of origin 'target', got None"),
        ("target", "threshold", 0.1, "threshold: expected null in a plan of origin 'target', got 0.1"),
        ("target", "normalize", "none", "normalize: expected null in"),
        ("target", "predicted_loss", None, "predicted_loss: expected a value"),
        ("target", "latency_fingerprint", None, "latency_fingerprint: expected a value"),
        ("target", "targets", {"speedup": 0}, "targets: speedup: expected a number above 0, got 0.0"),
        ("target", "targets", {"speed": 2}, "targets.speed: "),
        ("target", "bounds", {"pins": {"x": 1}}, "bounds.pins.x"),
        ("target", "bounds", {"min_iterations": 2, "max_iterations": 1}, "bounds: min_iterations: expected"),
        ("target", "origin", "threshold", "threshold: expected a value in a plan of origin 'threshold', got"),
        ("target", "predicted_loss_error", -1, "predicted_loss_error: "),
    ],
)
def test_a_spoilt_file_gives_one_line(origin, field, value, message, tmp_path):
    with refused(message):
        load_spoilt(PLANS[origin], tmp_path, field, value)


def test_a_plan_from_before_plans_explained_themselves_still_loads(tmp_path):
    fields = json.loads(PLANS["threshold"].model_dump_json())
    old = (
        "kind",
        "format_version",
        "teacher",
        "num_iterations",
        "origin",
        "metric",
        "threshold",
        "profile_fingerprint",
    )
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({name: fields[name] for name in old}))
    assert Plan.load(path).threshold == 0.1
