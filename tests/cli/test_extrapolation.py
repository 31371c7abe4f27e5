"""From profile to student with extrapolated stops, by the command line."""

import json

import pytest
import torch

from iiad.checkpoints import load_model
from iiad.influence import Profile
from iiad.planning import Plan


@pytest.fixture
def planned(iiad, teacher_folder, little_text, tmp_path):
    """Profile and plan the teacher: a plan that stops each layer at 1 of 2 iterations, extrapolated."""

    def run(*options):
        profile, plan = tmp_path / "profile.json", tmp_path / "plan.json"
        common = ("--data", little_text, "--block-size", 32, "--max-tokens", 256, "--metric", "kl")
        code, shown, _ = iiad("profile", teacher_folder, *common, *options, "--output", profile)
        assert code == 0
        assert "extrapolation of a layer's stops" in shown
        asked = ["--max-iterations", 1, "--min-iterations", 1, "--overhead-cut", 0.5]
        code, shown, errors = iiad("plan", profile, *asked, *planned_with(options), "--output", plan)
        assert code == 0, errors
        assert "extrapolated by" in shown
        return Profile.load(profile), plan

    return run


def planned_with(options):
    """An extrapolated profile makes extrapolated plans by itself."""
    return [] if "--extrapolate" in options else ["--extrapolate"]


def test_a_plan_carries_its_coefficients_to_evaluation_and_student(
    planned, iiad, teacher_folder, little_text, tmp_path
):
    profile, path = planned()
    plan = Plan.load(path)
    assert plan.num_iterations == [1, 1]
    assert plan.extrapolation == profile.coefficients([1, 1])
    output, student = tmp_path / "evaluation.json", tmp_path / "student"
    data = ("--data", little_text)
    code, shown, errors = iiad("evaluate", teacher_folder, *data, "--plan", path, "--output", output)
    assert code == 0, errors
    assert "truncated and extrapolated" in " ".join(shown.split())
    rows = json.loads(output.read_text())["results"]
    assert [row["model"].get("extrapolation") for row in rows] == [None, plan.extrapolation]
    model = load_model(teacher_folder)
    model.set_num_iterations([1, 1], plan.extrapolation)
    steps = [f"distillation.{name}" for name in ("distill", "recover")]
    settings = [f"{steps[0]}.max_steps=1", f"{steps[1]}.max_steps=0", "data.block_size=32"]
    settings += [f"{steps[0]}.learning_rate=1e-9", "distillation.check_teacher=false"]
    options = [word for setting in settings for word in ("--set", setting)]
    code, _, errors = iiad("distill", teacher_folder, path, *data, *options, "--output-dir", student)
    assert code == 0, errors
    assert "stops extrapolated by: " in (student / "README.md").read_text()
    learnt, tokens = load_model(student), torch.arange(3, 20)[None]
    assert learnt.config.stop_extrapolation == plan.extrapolation
    torch.testing.assert_close(learnt(tokens).logits, model(tokens).logits, rtol=0, atol=1e-4)
    code, shown, errors = iiad("check", student, "--teacher", teacher_folder, "--plan", path)
    assert code == 0, shown + errors


def test_a_profile_of_extrapolated_stops_makes_extrapolated_plans(planned):
    profile, path = planned("--extrapolate")
    assert profile.settings.extrapolate
    assert Plan.load(path).extrapolation == profile.coefficients([1, 1])


def test_coefficients_that_are_no_numbers_are_one_line_and_exit_code_2(
    planned, iiad, teacher_folder, little_text
):
    _, path = planned()
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "extrapolation": [[float("nan")], []]}))
    code, _, errors = iiad("evaluate", teacher_folder, "--data", little_text, "--plan", path)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
