"""Plans that extrapolate the stops of their layers."""

import json

import pytest

from iiad.influence.convergence import StepProducts
from iiad.planning import Plan, candidates, plan_by_threshold, trade_off
from iiad.planning.binding import truncated_identity
from iiad.reporting.page_maps import plan_grid
from tests.helpers import load_spoilt, make_profile, printed, refused
from tests.planning.test_plan_command import PROFILE, report

MADE = [
    StepProducts(products=[0, 0, 2.0, 0, 1.0, 0.6]),  # z(0) = x: one step before the last
    StepProducts(products=[1.0]),
    StepProducts(products=[1.0, 0, 2.0, 0, 3.0, 5.0, 0, 0, 0, 0]),
]
MEASURED = PROFILE.model_copy(update={"extrapolation": MADE})


def make_plan():
    return plan_by_threshold(MEASURED, 0.4).extrapolated(MEASURED)


def test_a_plan_takes_the_coefficients_of_its_stops():
    assert make_plan().num_iterations == [1, 0, 1]
    assert make_plan().extrapolation == [pytest.approx([0.5, 0]), [], pytest.approx([1.5, 0])]
    assert plan_by_threshold(MEASURED, 0.2).extrapolated(MEASURED).extrapolation[2] == []  # in full
    assert MADE[0].removed == [pytest.approx(0.5 / 0.6)]
    assert MADE[2].removed == [pytest.approx(0.9), 0]


def test_a_plan_comes_back_from_its_file_and_older_ones_keep_their_hash(tmp_path):
    make_plan().save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == make_plan()
    plain = plan_by_threshold(MEASURED, 0.4)
    assert "extrapolation" not in json.loads(plain.model_dump_json())
    assert plain.coefficients == [[], [], []]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.5], []], "extrapolation: expected 3 lists, one a layer, got 2"),
        (
            [[0.5], [1.0], [1.5]],
            "extrapolation: expected [] for layer 2, which runs no iterations, got [1.0]",
        ),
        ([[1, 1, 1], [], []], "extrapolation: expected at most 2 numbers for layer 1, one a step, got 3"),
        ([[float("nan")], [], []], "extrapolation.0.0: "),
        ([[float("inf")], [], []], "extrapolation.0.0: "),
        ([[1e4], [], []], "extrapolation.0.0: expected less than 1000, got 10000.0"),
        ([0.5, 0, 0], "extrapolation.0: "),
    ],
)
def test_spoilt_coefficients_give_one_line(value, message, tmp_path):
    with refused(f"{tmp_path}/spoilt.json: {message}"):
        load_spoilt(make_plan(), tmp_path, "extrapolation", value)


def test_a_layer_in_full_is_not_extrapolated(tmp_path):
    plan = Plan.explicit([2, 0, 1], MEASURED.model).model_copy(update={"extrapolation": [[0.5], [], []]})
    with refused("extrapolation: expected [] for layer 1, which runs all iterations, got [0.5]"):
        load_spoilt(plan, tmp_path, "threshold", None)


def test_coefficients_of_another_teacher_or_of_an_older_profile_are_refused():
    other = make_profile(model=PROFILE.model.model_copy(update={"fingerprint": "b" * 64}))
    with refused("plan: expected one for teacher"):
        plan_by_threshold(MEASURED, 0.4).extrapolated(other)
    with refused("profile: expected one that holds `extrapolation`"):
        plan_by_threshold(MEASURED, 0.4).extrapolated(PROFILE)
    steep = StepProducts(products=[0, 0, 1e-9, 0, 1e-5, 1.0])
    huge = MEASURED.model_copy(update={"extrapolation": [steep, *MADE[1:]]})
    with refused("profile: extrapolation.0.0: expected less than 1000"):
        plan_by_threshold(huge, 0.4).extrapolated(huge)


def test_a_model_under_the_plan_is_identified_with_its_coefficients():
    identity = truncated_identity(MEASURED.model, make_plan())
    assert (identity.num_iterations, identity.extrapolation) == ([1, 0, 1], make_plan().extrapolation)
    assert truncated_identity(MEASURED.model, plan_by_threshold(MEASURED, 0.4)).extrapolation is None


def test_all_candidates_are_extrapolated_and_the_plan_is_run_without_too():
    found = candidates(MEASURED, trade_off(MEASURED, "kl"), [1, 0, 1], extrapolate=True)
    assert all(each.extrapolation == MEASURED.coefficients(each.num_iterations) for each in found[:-1])
    assert (found[-1].name, found[-1].num_iterations) == ("plan, not extrapolated", [1, 0, 1])
    assert found[-1].extrapolation is None


def test_table_and_page_of_a_plan_show_its_coefficients():
    kept = [row[-1].text for row in plan_grid(make_plan(), "").rows]
    assert kept == ["", "1 of 2, b +0.50 +0.00", "0 of 0", "1 of 3, b +1.50 +0.00", ""]
    text = printed(report(make_plan()))
    assert "extrapolated by" in text
    assert "+1.50 +0.00" in text
    assert "extrapolated by" not in printed(report(plan_by_threshold(MEASURED, 0.4)))
