"""Families: nested plans of one teacher, made from scores or evenly, and what is refused."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.planning import Bounds, Family, Targets, even_family, make_family, plan_by_target, read_cuts
from tests.helpers import load_spoilt, profile_of, refused

NUMBERS = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 0.25, 0.5, -0.25]))
SCORES = st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=4).filter(any)
CUTS = st.lists(st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.5, 0.55, 0.75, 0.9, 1.0]), min_size=1, unique=True)
PROFILE = profile_of([[0.5, 0.1], [], [0.9, 0.05, 0.3]])


def is_nested(plans):
    return all(
        before != after and all(r <= most for most, r in zip(before, after, strict=True))
        for before, after in pairwise(plans)
    )


@settings(max_examples=60)
@given(SCORES, CUTS, st.integers(0, 2))
def test_every_family_is_nested_and_drops_what_was_asked_for(scores, cuts, least):
    profile, bounds = profile_of(scores), Bounds(min_iterations=min(least, max(map(len, scores))))
    whole = profile.model.num_iterations
    possible = 1 - sum(min(least, r) for r in whole) / sum(whole)
    within = {cut * possible for cut in cuts}
    family = make_family(profile, list(within), bounds=bounds)
    for made in (family, even_family(profile.model, cuts)):
        plans = [each.num_iterations for each in made.plans]
        assert is_nested(plans)
        assert made.plans[-1].cut >= max(within if made is family else cuts) - 1e-6
        assert [plan.num_iterations for plan in made.members] == plans


@settings(max_examples=40)
@given(SCORES, st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_the_first_cut_is_the_best_plan_of_all(scores, cut):
    profile = profile_of(scores)
    [only] = make_family(profile, [cut]).plans
    assert only.num_iterations == plan_by_target(profile, Targets(overhead_cut=cut)).num_iterations


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(0.01, 1), max_size=4), min_size=1, max_size=4).filter(any))
def test_all_plans_are_the_best_of_all_where_scores_fall(scores):
    profile = profile_of([sorted(layer, reverse=True) for layer in scores])
    cuts = [0.25, 0.5, 0.75]
    for each in make_family(profile, cuts).plans:
        wanted = next(cut for cut in cuts if f"cut-{100 * cut:g}" == each.name)
        best = plan_by_target(profile, Targets(overhead_cut=wanted))
        assert each.predicted_loss == pytest.approx(best.predicted_loss, abs=1e-12)


def test_a_plan_of_a_family_is_contained_where_the_best_one_is_not():
    profile, cuts = profile_of([[0.01, 0.1], [0.09]]), [1 / 3, 2 / 3]
    best = [plan_by_target(profile, Targets(overhead_cut=cut)).num_iterations for cut in cuts]
    assert best == [[2, 0], [0, 1]]
    assert [each.num_iterations for each in make_family(profile, cuts).plans] == [[2, 0], [1, 0]]


def test_plans_are_named_by_the_cut_that_was_asked_for():
    full, first, last = make_family(PROFILE, [0, 0.55, 1]).plans
    assert (full.name, full.cut, full.num_iterations, full.predicted_loss) == ("full", 0, [2, 0, 3], 0)
    assert (first.name, first.cut, first.num_iterations) == ("cut-55", 0.6, [1, 0, 1])
    assert (last.name, last.predicted_loss) == ("cut-100", pytest.approx(1.85))


def test_cuts_whose_plans_are_the_same_give_one():
    family = make_family(profile_of([[0.5], [0.1]]), [0, 0.3, 0.4, 1])
    assert [each.name for each in family.plans] == ["full", "cut-30", "cut-100"]
    assert [each.num_iterations for each in even_family(PROFILE.model, [0.5]).plans] == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0.3,0.3", "cuts: expected each once, got 0.3 twice"),
        ("0,half", "cuts: expected shares from 0 to 1, as in 0,0.3,1, got '0,half'"),
        ("", "cuts: expected shares from 0 to 1"),
        ("0,nan", "cuts: expected shares from 0 to 1, got nan"),
        ("-0.1", "got -0.1"),
        (",".join(f"0.{n}" for n in range(101, 201)), "cuts: expected 1 to 64, got 100"),
    ],
)
def test_cuts_of_the_command_line_are_checked(text, message):
    with refused(message):
        read_cuts(text)


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        (
            [[2, 0, 3], [1, 0, 3], [2, 0, 0]],
            "plans.2: expected at most 1 iterations of layer 1, as in b before it, got 2",
        ),
        ([[2, 0, 3], [2, 0, 3]], "plans.1: expected fewer iterations than a, got the same plan twice"),
        ([[2, 0, 3], [2, 0]], "plans.1: num_iterations: expected 3 layers, as the teacher has, got 2"),
        ([[3, 0, 3]], "plans.0: num_iterations: expected 0 to 2 for layer 1, the teacher's, got 3"),
        ([], "plans: expected"),
    ],
)
def test_plans_that_are_no_family_are_refused_in_one_line(plans, message, tmp_path):
    family = make_family(PROFILE, [0, 0.5])
    rows = [
        {"name": name, "cut": 1 - sum(plan) / 5 if sum(plan) < 6 else 0, "num_iterations": plan}
        for name, plan in zip("abc", plans, strict=False)
    ]
    with refused(message):
        load_spoilt(family, tmp_path, "plans", rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cut", 0.9), "plans.1.cut: expected the plan's 0.6, got 0.9"),
        (("name", "full"), "plans.1.name: expected each once, got full twice"),
        (("name", "../etc"), "plans.1.name: expected"),
        (("extrapolation", [[0.1]]), "plans.1: extrapolation: expected 3 lists"),
        (("predicted_loss", "x"), "plans.1.predicted_loss: expected"),
    ],
)
def test_a_plan_that_says_what_is_not_so_is_refused(change, message, tmp_path):
    with refused(message):
        load_spoilt(make_family(PROFILE, [0, 0.5]), tmp_path, "plans", 1, *change)


def test_the_command_writes_a_family_which_show_prints(iiad, tmp_path):
    PROFILE.save(tmp_path / "profile.json")
    command = ["plan", tmp_path / "profile.json", "--family"]
    code, out, _ = iiad(*command, "--cuts", "0,0.5,1", "--output", tmp_path / "plans.json")
    assert code == 0
    assert "cut-50" in out
    family = Family.load(tmp_path / "plans.json")
    assert [each.num_iterations for each in family.plans] == [[2, 0, 3], [1, 0, 1], [0, 0, 0]]
    assert family.profile_fingerprint == PROFILE.fingerprint
    assert "extrapolation" not in json.loads((tmp_path / "plans.json").read_text())["plans"][0]
    code, out, _ = iiad("show", tmp_path / "plans.json")
    assert "cut-50" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--family --overhead-cut 0.5 --output O", "--overhead-cut: expected none with --family, got 0.5"),
        ("--family --curve --output O", "--curve: expected none with --family"),
        ("--family", "output: expected a file for the plans, got none"),
        ("--cuts 0,1 --threshold 0 --output O", "--cuts: expected none without --family, got 0,1"),
        ("--family --cuts 0,0.5,0.5 --output O", "cuts: expected each once, got 0.5 twice"),
        ("--family --min-iterations 1 --output O", "cuts: expected at most 0.6 within the bounds, got 0.75"),
        ("--family --extrapolate --output O", "profile: expected one that holds `extrapolation`"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(iiad, tmp_path, arguments, message):
    PROFILE.save(tmp_path / "profile.json")
    words = [str(tmp_path / "plans.json") if word == "O" else word for word in arguments.split()]
    code, _, error = iiad("plan", tmp_path / "profile.json", *words)
    assert code == 2
    assert message in error
    assert not (tmp_path / "plans.json").exists()
