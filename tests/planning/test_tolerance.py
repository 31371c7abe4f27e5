"""Plans whose iterations stop by themselves."""

import json
import re
from itertools import pairwise, product

import numpy as np
import pytest

from iiad.influence.convergence import TOLERANCES, Settling
from iiad.planning import Bounds, Plan, Targets, make_adaptive_family, plan_by_target, plan_by_threshold
from iiad.planning.binding import truncated_identity
from iiad.planning.tolerance import choose_stops
from tests.helpers import load_spoilt, make_profile, printed, refused
from tests.planning.test_plan_command import PROFILE, report

GRID = np.array(TOLERANCES)


def settled(*medians):
    """Of a layer whose tokens' residuals are spread evenly from 0 to twice these."""
    return Settling(shares=[float(share) for at in medians for share in np.minimum(GRID / (2 * at), 1)])


SHARED = PROFILE.model.model_copy(update={"cache_policy": "shared"})
LAYERS = [settled(0.2), settled(), settled(0.4, 0.1)]
MEASURED = PROFILE.model_copy(update={"model": SHARED, "settling": LAYERS})
SCORES = PROFILE.scores_of("kl")
WHOLE = [(0, 2), (0, 0), (0, 3)]


def make_plan(cut=0.4, **targets):
    return plan_by_target(MEASURED, Targets(tolerance_for=cut, **targets))


def reckon(layer, r, tolerance):
    """Expected evaluations and predicted loss of a stop, written out."""
    going, lost, settling = 1 + r, sum(SCORES[layer][r:]), LAYERS[layer]
    for i in range(1, r if tolerance else 0):
        shares = [settling.stopped(i, at) for at in TOLERANCES]
        parts = [(b - a) * at**2 for a, b, at in zip([0, *shares], shares, TOLERANCES, strict=False)]
        rest = (1 - shares[-1]) * TOLERANCES[-1] ** 2
        missed = sum(part for part, at in zip(parts, TOLERANCES, strict=True) if at <= tolerance)
        going -= settling.stopped(i, tolerance)
        lost += SCORES[layer][i] * missed / (sum(parts) + rest)
    return going, lost


def options(layer, fewest, most):
    """All stops of a layer."""
    stops = [(r, at) for r in range(fewest, most + 1) for at in (None, *TOLERANCES) if at is None or r > 1]
    return [reckon(layer, *stop) for stop in stops]


@pytest.mark.parametrize("cut", [0.05, 0.2, 0.4, 0.55, 0.8, 1])
def test_of_all_stops_and_tolerances_the_chosen_lose_least_at_the_cut(cut):
    chosen = choose_stops(MEASURED, "kl", WHOLE, cut)
    for layer, stop in enumerate(chosen):
        evaluations, lost = reckon(layer, stop.num_iterations, stop.tolerance)
        assert (stop.expected_evaluations, stop.predicted_loss) == pytest.approx((evaluations, lost))
    assert sum(stop.expected_evaluations for stop in chosen) <= 3 + (1 - cut) * 5 + 1e-5
    everything = product(*(options(layer, *limits) for layer, limits in enumerate(WHOLE)))
    affordable = [stops for stops in everything if sum(cost for cost, _ in stops) <= 3 + (1 - cut) * 5]
    least = min(sum(lost for _, lost in stops) for stops in affordable)
    assert sum(stop.predicted_loss for stop in chosen) <= least + 1e-5


def test_what_stopped_tokens_lose_is_less_than_their_share_and_grows_to_all():
    layer = LAYERS[0]
    lost = [layer.missed(1, at) for at in TOLERANCES]
    assert lost == sorted(lost)
    assert (lost[0], lost[-1]) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    assert all(missed <= layer.stopped(1, at) + 1e-12 for missed, at in zip(lost, TOLERANCES, strict=True))


def test_bounds_and_other_targets_hold_for_what_a_layer_runs_at_most():
    limited = make_plan(0.5, overhead_cut=0.4)
    assert sum(limited.num_iterations) <= 3
    plan = plan_by_target(MEASURED, Targets(tolerance_for=0.2), bounds=Bounds(min_iterations=2))
    assert (plan.num_iterations, plan.tolerance) == ([2, 0, 2], None)  # one that stops might run one alone


def test_a_plan_predicts_the_loss_and_the_evaluations_of_its_tolerances():
    plan = make_plan()
    stops = zip(range(3), plan.num_iterations, plan.tolerance, strict=True)
    evaluations, losses = zip(*(reckon(*stop) for stop in stops), strict=True)
    assert plan.expected_evaluations == pytest.approx(evaluations)
    assert plan.predicted_loss == pytest.approx(sum(losses))
    assert (plan.targets.tolerance_for, plan.predicted_loss_error) == (0.4, None)
    assert "at least 40% of the iterations dropped by the mean token" in plan.explanation


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"cut": 0}, "tolerance_for: expected a share above 0 and at most 1, got 0"),
        ({"cut": float("nan")}, "tolerance_for: expected a share from 0 to 1"),
        ({"cut": 0.3, "overhead_cut": 0.4}, "tolerance_for: expected a share above 0.4 and at most 1"),
        ({"max_score": 0.1}, "max_score: expected none with tolerance_for"),
    ],
)
def test_a_cut_that_no_tolerance_makes_is_refused(targets, message):
    with refused(message):
        make_plan(**targets)


def test_a_cut_beyond_the_bounds_is_refused():
    with refused("tolerance_for: expected a share above 0 and at most 0.6"):
        plan_by_target(MEASURED, Targets(tolerance_for=0.7), bounds=Bounds(min_iterations=1))


def test_a_profile_of_an_exact_cache_or_of_an_older_version_has_no_tolerance():
    with refused("profile: expected one that holds `settling`, of a shared cache, got one of a model with"):
        plan_by_target(PROFILE, Targets(tolerance_for=0.4))
    with refused("got an older one; measure again"):
        plan_by_target(make_profile(model=SHARED), Targets(tolerance_for=0.4))
    assert "settling" not in json.loads(PROFILE.model_dump_json())


def test_a_plan_comes_back_from_its_file_and_others_keep_their_hash(tmp_path):
    make_plan().save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == make_plan()
    written = json.loads(plan_by_threshold(MEASURED, 0).model_dump_json())
    assert not {"tolerance", "expected_evaluations"} & written.keys()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tolerance", [None, None, -0.1], "tolerance.2: expected greater than or equal to 0, got -0.1"),
        ("tolerance", 0.1, "tolerance: expected a valid array, got 0.1"),
        ("tolerance", [0.1], "tolerance: expected 3 entries, one a layer, got 1"),
        ("tolerance", [0.1, None, float("nan")], "tolerance"),
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
    with refused("tolerance: expected null in a plan that is extrapolated"):
        load_spoilt(make_plan(0.5), tmp_path, "extrapolation", [[], [], [0.1]])


def test_a_model_under_the_plan_is_identified_with_its_tolerance():
    identity = truncated_identity(SHARED, make_plan())
    assert identity.tolerance == make_plan().tolerance
    assert truncated_identity(SHARED, plan_by_threshold(MEASURED, 0)).tolerance is None


def test_the_table_shows_what_each_layer_is_expected_to_run():
    text = " ".join(printed(report(make_plan())).split())
    mean = sum(make_plan().expected_evaluations)
    assert re.search(rf"evaluations expected . 8 \S+ {mean:.2f} .{1 - mean / 8: .1%} compute cut", text)
    assert "<= tolerance |z(i-1)|" in text
    assert "expected" not in printed(report(plan_by_threshold(MEASURED, 0)))


@pytest.mark.parametrize("cuts", [[0, 0.2, 0.4, 0.8], [0.3, 0.5, 0.55, 1]])
def test_a_family_with_tolerances_is_nested_and_begins_with_the_best(cuts):
    family = make_adaptive_family(MEASURED, cuts)
    for cut, plan in zip(cuts, family.plans, strict=True):
        assert plan.cut >= cut - 1e-6
    first = next(plan for plan in family.plans if plan.cut)
    best = make_plan(next(cut for cut in cuts if cut))
    assert (first.num_iterations, first.tolerance) == (best.num_iterations, best.tolerance)
    losses = [plan.predicted_loss for plan in family.plans]
    assert losses == sorted(losses)
    for before, plan in pairwise(family.plans):  # what `Family` checks, written out
        for most, r, least, at in zip(
            before.num_iterations,
            plan.num_iterations,
            before.tolerance or [None] * 3,
            plan.tolerance or [None] * 3,
            strict=True,
        ):
            assert r <= most
            assert r < 2 or least is None or (at is not None and at >= least)
    assert any(plan.tolerance for plan in family.plans)


def test_a_family_file_whose_tolerances_are_not_nested_is_refused(tmp_path):
    family = make_adaptive_family(MEASURED, [0, 0.2, 0.4])
    fields = json.loads(family.model_dump_json())["plans"]
    assert fields[1]["tolerance"][2] > 0
    fields[2] |= {"num_iterations": fields[1]["num_iterations"], "tolerance": [0.3, None, 1e-3]}
    with refused(
        "plans.2: expected a tolerance of at least", "in layer 3, as in cut-20 before it, got 0.001"
    ):
        load_spoilt(family, tmp_path, "plans", fields)


def test_a_cut_that_the_plan_before_makes_adds_none():
    family = make_adaptive_family(MEASURED, [0.79, 0.8, 1])
    assert [plan.name for plan in family.plans] == ["cut-79", "cut-100"]


def test_a_family_file_with_a_cut_below_its_plans_own_is_refused(tmp_path):
    family = make_adaptive_family(MEASURED, [0.5, 0.8])
    fields = json.loads(family.model_dump_json())["plans"]
    assert fields[0]["tolerance"]
    fields[0]["cut"] = 0.1
    with refused("plans.0.cut: expected at least the plan's"):
        load_spoilt(family, tmp_path, "plans", fields)


def test_scores_below_zero_stand_in_no_cuts_way_and_extrapolated_ones_are_refused():
    scores = {"kl": [[0.5, -0.1], [], [0.9, 0.05, -0.3]]}
    plan = plan_by_target(MEASURED.model_copy(update={"scores": scores}), Targets(tolerance_for=0.1))
    assert plan.predicted_loss < 0
    settings = MEASURED.settings.model_copy(update={"extrapolate": True})
    with refused("profile: expected one measured without --extrapolate"):
        plan_by_target(MEASURED.model_copy(update={"settings": settings}), Targets(tolerance_for=0.1))
