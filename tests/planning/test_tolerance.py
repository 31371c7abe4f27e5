"""Plans whose iterations stop by themselves."""

import json

import numpy as np
import pytest

from iiad.influence.convergence import TOLERANCES, Settling
from iiad.planning import Plan, expected_evaluations, find_tolerance, plan_by_threshold, with_tolerance
from iiad.planning.plan import truncated_identity
from tests.helpers import load_spoilt, make_profile, printed, refused
from tests.planning.test_plan_command import PROFILE, report

GRID = np.array(TOLERANCES)


def settled(*medians):
    """Of a layer whose tokens' residuals are spread evenly from 0 to twice these."""
    return Settling(shares=[float(share) for at in medians for share in np.minimum(GRID / (2 * at), 1)])


SHARED = PROFILE.model.model_copy(update={"cache_policy": "shared"})
LAYERS = [settled(0.2), settled(), settled(0.4, 0.1)]
MEASURED = PROFILE.model_copy(update={"model": SHARED, "settling": LAYERS})


def make_plan(cut=0.4):
    return with_tolerance(plan_by_threshold(MEASURED, 0), MEASURED, cut)


def test_expected_evaluations_are_one_iteration_and_those_of_tokens_that_go_on():
    assert SHARED.num_iterations == [2, 0, 3]
    at = float(GRID[20])
    goes_on = [1 - at / 0.4, 1 - at / 0.8, 1 - min(at / 0.2, 1)]
    found = expected_evaluations(MEASURED, [2, 0, 3], at)
    assert found == pytest.approx([2 + goes_on[0], 1, 2 + goes_on[1] + goes_on[2]])
    assert expected_evaluations(MEASURED, [1, 0, 2], at) == pytest.approx([2, 1, 2 + goes_on[1]])
    assert expected_evaluations(MEASURED, [2, 0, 3], 1e-5) == [3, 1, 4]  # below what was counted: none stops


@pytest.mark.parametrize(("plan", "cut"), [([2, 0, 3], 0.1), ([2, 0, 3], 0.55), ([1, 0, 3], 0.3)])
def test_the_least_tolerance_that_drops_the_share_is_found(plan, cut):
    at = find_tolerance(MEASURED, plan, cut)
    dropped = [
        1 - (sum(expected_evaluations(MEASURED, plan, each)) - 3) / 5 for each in (at, at * (1 - 1e-9))
    ]
    assert dropped[0] == pytest.approx(cut, abs=1e-9)
    assert dropped[0] >= cut > dropped[1]


@pytest.mark.parametrize(
    ("plan", "cut", "range_"),
    [
        ([2, 0, 3], 0.7, "above 0 and at most 0.6"),
        ([2, 0, 3], 0, "above 0 and"),
        ([2, 0, 3], float("nan"), "above 0 and"),
        ([1, 0, 2], 0.3, "above 0.4 and at most 0.6"),
    ],
)
def test_a_cut_that_no_tolerance_makes_is_refused(plan, cut, range_):
    with refused(f"tolerance_for: expected a cut {range_}"):
        find_tolerance(MEASURED, plan, cut)


def test_a_profile_of_an_exact_cache_or_of_an_older_version_has_no_tolerance():
    with refused("profile: expected one that holds `settling`, of a shared cache, got one of a model with"):
        find_tolerance(PROFILE, [2, 0, 3], 0.4)
    with refused("got an older one; measure again"):
        find_tolerance(make_profile(model=SHARED), [2, 0, 3], 0.4)
    assert "settling" not in json.loads(PROFILE.model_dump_json())


def test_a_plan_comes_back_from_its_file_and_others_keep_their_hash(tmp_path):
    make_plan().save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == make_plan()
    written = json.loads(plan_by_threshold(MEASURED, 0).model_dump_json())
    assert not {"tolerance", "expected_evaluations"} & written.keys()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tolerance", -0.1, "tolerance: "),
        ("tolerance", float("nan"), "tolerance: "),
        ("tolerance", 0, "tolerance: expected"),
        (
            "expected_evaluations",
            [1.0],
            "expected_evaluations: expected a tolerance and a number for each layer",
        ),
        ("extrapolation", [[], [], [0.1]], "extrapolation: "),
    ],
)
def test_a_file_with_a_tolerance_that_cannot_be_is_refused(field, value, message, tmp_path):
    with refused(message):
        load_spoilt(make_plan(), tmp_path, field, value)


def test_a_tolerance_for_an_exact_cache_or_with_extrapolation_is_refused(tmp_path):
    teacher = json.loads(PROFILE.model.model_dump_json())
    with refused("tolerance: expected null for a teacher without a shared cache"):
        load_spoilt(make_plan(), tmp_path, "teacher", teacher)
    cut = Plan.explicit([1, 0, 2], SHARED).model_copy(update={"extrapolation": [[0.5], [], [0.1]]})
    with refused("plan: tolerance: expected null in a plan that is extrapolated"):
        with_tolerance(cut, MEASURED, 0.5)


def test_a_model_under_the_plan_is_identified_with_its_tolerance():
    identity = truncated_identity(SHARED, make_plan())
    assert identity.tolerance == make_plan().tolerance
    assert truncated_identity(identity, plan_by_threshold(MEASURED, 0)).tolerance is None


def test_the_table_shows_what_each_layer_is_expected_to_run():
    text = " ".join(printed(report(make_plan())).split())
    assert "evaluations expected" in text
    assert f"{sum(make_plan().expected_evaluations):.2f} of 8 evaluations a token expected" in text
    assert "expected" not in printed(report(plan_by_threshold(MEASURED, 0)))
