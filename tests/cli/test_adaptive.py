"""From profile to student whose tokens stop by themselves, by the command line."""

import json

import pytest
import torch

from cli.listed_plans import resolve_plan
from iiad.checkpoints import load_model, save_checkpoint
from iiad.evaluation.checks import CLAIMS, check_model
from iiad.evaluation.loading_claims import loaded_at_own_plan
from iiad.influence import Profile
from iiad.planning import Plan


@pytest.fixture(scope="module")
def shared(teacher_folder, tmp_path_factory):
    """The teacher of all tests under the shared cache, with an iteration more."""
    folder = tmp_path_factory.mktemp("adaptive") / "shared"
    model = load_model(teacher_folder)
    model.reconfigure(cache_policy="shared", max_num_iterations=3)
    model.set_num_iterations(3)
    save_checkpoint(model, folder, files_from=teacher_folder)
    return folder


@pytest.fixture
def planned(iiad, shared, little_text, tmp_path):
    """Profile and plan; the files."""
    profile, plan = tmp_path / "profile.json", tmp_path / "plan.json"
    common = ("--data", little_text, "--block-size", 32, "--max-tokens", 256, "--metric", "kl")
    code, shown, errors = iiad("profile", shared, *common, "--output", profile)
    assert code == 0, errors
    assert "tokens that stop by themselves" in shown
    code, shown, errors = iiad("plan", profile, "--tolerance-for", 0.4, "--output", plan)
    assert code == 0, errors
    assert "evaluations expected" in " ".join(shown.split())
    return profile, plan


def test_a_plan_carries_its_tolerance_to_evaluation_bench_text_student_and_check(
    planned, iiad, shared, little_text, tmp_path
):
    plan = Plan.load(planned[1])
    assert 4 < sum(plan.expected_evaluations) <= 8 - 0.4 * 6 + 1e-6
    assert any(plan.tolerance)
    output, student, data = tmp_path / "evaluation.json", tmp_path / "student", ("--data", little_text)
    code, shown, errors = iiad("evaluate", shared, *data, "--plan", planned[1], "--output", output)
    assert code == 0, errors
    assert "adaptive" in shown
    whole, row = json.loads(output.read_text())["results"]
    assert (row["model"]["tolerance"], whole["mean_evaluations"]) == (plan.tolerance, None)
    assert row["mean_evaluations"] == pytest.approx(sum(row["evaluations_by_layer"]))
    assert row["mean_evaluations"] == pytest.approx(sum(plan.expected_evaluations), abs=0.5)
    assert {"word", "space", "number"} <= row["evaluations_by_class"].keys()
    assert row["compute_cut"] == pytest.approx(1 - row["mean_evaluations"] / 8)
    sizes = ("--prompt-tokens", 6, "--new-tokens", 3, "--repeats", 1)
    code, shown, errors = iiad(
        "bench", shared, "--plan", planned[1], *sizes, "--output", tmp_path / "bench.json"
    )
    assert code == 0, errors
    whole, row = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert whole["decode"]["mean_evaluations"] is None
    for phase in ("prefill", "decode"):
        assert row[phase]["predicted_speedup"] == pytest.approx(8 / row[phase]["mean_evaluations"])
    code, _, errors = iiad("generate", shared, "--plan", planned[1], "--prompt", "The", "--max-new-tokens", 4)
    assert (code, "evaluations a token" in errors) == (0, True)
    settings = [
        "distill.max_steps=1",
        "recover.max_steps=0",
        "distill.learning_rate=1e-9",
        "check_teacher=false",
    ]
    options = [word for each in settings for word in ("--set", f"distillation.{each}")]
    options += ["--set", "data.block_size=32"]
    code, _, errors = iiad("distill", shared, planned[1], *data, *options, "--output-dir", student)
    assert code == 0, errors
    assert "a token stops in a layer once" in (student / "README.md").read_text()
    learnt, teacher, tokens = load_model(student), load_model(shared), torch.arange(3, 20)[None]
    teacher.follow_plan(plan)
    assert learnt.config.tolerances == plan.tolerance
    with torch.no_grad():
        torch.testing.assert_close(learnt(tokens).logits, teacher(tokens).logits, rtol=0, atol=1e-4)
    names = (
        "model runs the plan",
        "teacher loaded = set to the plan",
        "cached = uncached: tokens that stop",
    )
    claims = [claim for claim in CLAIMS if claim.name in names]
    check = check_model(student, teacher=shared, plan=planned[1], claims=claims)
    assert [result.outcome for result in check.results] == ["passed"] * 3
    model = load_model(student)
    model.reconfigure(tolerance=None)
    save_checkpoint(model, tmp_path / "plain", files_from=shared)
    check = check_model(tmp_path / "plain", teacher=shared, plan=planned[1], claims=claims)
    assert {result.name: result.outcome for result in check.results}["model runs the plan"] == "failed"


def test_an_elastic_student_learns_plans_with_tolerances_and_runs_each_by_its_name(
    planned, iiad, shared, little_text, tmp_path
):
    plans, student, data = tmp_path / "plans.json", tmp_path / "student", ("--data", little_text)
    family = ("--family", "--adaptive", "--cuts", "0,0.3,0.5", "--output", plans)
    code, shown, errors = iiad("plan", planned[0], *family)
    assert (code, "tolerance" in shown) == (0, True), errors
    settings = [
        "distill={max_steps: 2, learning_rate: 1e-3}",
        "recover.max_steps=0",
        "check_teacher=false",
    ]
    options = [word for each in settings for word in ("--set", f"distillation.{each}")]
    options += ["--set", "data.block_size=32", "--set", f"data.validation=['{little_text}']"]
    options += ["--elastic", "--plans", plans, "--output-dir", student]
    code, _, errors = iiad("distill", shared, *data, *options)
    assert code == 0, errors
    listed = load_model(student).config.plans
    made = json.loads(plans.read_text())["plans"]
    assert [each.get("tolerance") for each in listed] == [each.get("tolerance") for each in made]
    assert load_model(student).config.tolerance is None  # the largest plan
    output = tmp_path / "evaluation.json"
    code, _, errors = iiad("evaluate", student, *data, "--plan", "0.3", "--output", output)
    assert code == 0, errors
    row = json.loads(output.read_text())["results"][-1]
    assert row["model"]["tolerance"] == made[1]["tolerance"]
    assert row["mean_evaluations"] < 8
    claims = [claim for claim in CLAIMS if claim.measure is loaded_at_own_plan]
    check = check_model(student, plan=resolve_plan("cut-30", str(student)), claims=claims)
    assert [result.outcome for result in check.results] == ["passed"]
    code, shown, _ = iiad("show", plans)
    assert (code, "tolerance" in shown) == (0, True)
    code, _, errors = iiad(
        "distill",
        shared,
        *data,
        *options[:-2],
        "--set",
        "student.cache_policy=exact",
        "--output-dir",
        tmp_path / "other",
    )
    assert (code, "student.cache_policy: expected 'shared' with a tolerance" in errors) == (2, True), errors


def test_a_profile_is_of_all_iterations_whatever_the_models_tolerance(
    planned, iiad, shared, little_text, tmp_path
):
    folder, output = tmp_path / "adaptive", tmp_path / "again.json"
    model = load_model(shared)
    model.reconfigure(tolerance=0.5)
    save_checkpoint(model, folder, files_from=shared)
    common = ("--data", little_text, "--block-size", 32, "--max-tokens", 256, "--metric", "kl")
    code, _, errors = iiad("profile", folder, *common, "--output", output)
    assert (code, "profiled without its tolerance" in errors) == (0, True)
    first, again = Profile.load(planned[0]), Profile.load(output)
    assert (again.scores, again.settling) == (first.scores, first.settling)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tolerance-for", "0.3", "--overhead-cut", "0.5"), "tolerance_for: expected a share above 0.5"),
        (("--tolerance-for", "0.3", "--threshold", "0.1"), "threshold: expected a threshold or targets"),
        (("--tolerance-for", "nan"), "tolerance_for: expected from 0 to 1"),
        (("--tolerance-for", "-0.1"), "tolerance_for: expected from 0 to 1"),
        (("--tolerance-for", "0.4", "--family"), "tolerance-for"),
        (("--adaptive", "--tolerance-for", "0.4"), "adaptive"),
        (("--family", "--adaptive", "--extrapolate"), "with --adaptive"),
        (("--tolerance-for", "0.4", "--extrapolate"), "with --tolerance-for"),
        (("--family", "--adaptive", "--cuts", "0.9", "--min-iterations", "1"), "cuts: expected at most"),
        (("--tolerance-for", "0.4", "--verify", "TEACHER", "--data", "stdlib"), "verify"),
    ],
)
def test_a_tolerance_that_cannot_be_is_one_line_and_exit_code_2(
    options, message, planned, iiad, shared, tmp_path
):
    options = [shared if word == "TEACHER" else word for word in options]
    code, _, errors = iiad("plan", planned[0], *options, "--output", tmp_path / "other.json")
    assert (code, len(errors.strip().splitlines())) == (2, 1)
    assert message in errors
    assert not (tmp_path / "other.json").exists()


def test_a_damaged_tolerance_or_a_student_with_an_exact_cache_is_one_line_and_exit_code_2(
    planned, iiad, shared, little_text, tmp_path
):
    data = ("--data", little_text)
    exact = ("--set", "student.cache_policy=exact", "--output-dir", tmp_path / "student")
    code, _, errors = iiad("distill", shared, planned[1], *data, *exact)
    assert (code, "student.cache_policy: expected 'shared' with a tolerance" in errors) == (2, True)
    fields = json.loads(planned[1].read_text())
    planned[1].write_text(json.dumps({**fields, "tolerance": [-1, 0.1]}))
    code, _, errors = iiad("evaluate", shared, *data, "--plan", planned[1])
    assert (code, len(errors.strip().splitlines())) == (2, 1)
