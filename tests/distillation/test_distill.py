"""Teacher and plan to E-IIET: two stages, resume, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from iiad import InputError
from iiad.checkpoints import identify_model, load_model, save_checkpoint
from iiad.distillation import LearnFromTeacher, LiveTeacher, distill
from iiad.distillation.objectives import hidden_layers
from iiad.planning import Plan
from iiad.training import DistillRecipe, RunRecord
from iiad.training.learner import LanguageModelling, Learner
from iiad.training.sections import DistillationSection
from tests.helpers import make_iiet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fields(recipe_fields):
    stage = {"max_steps": 8, "warmup_steps": 2, "learning_rate": 0.003}
    return {
        "data": recipe_fields["data"],
        "distillation": {
            "temperature": 2.0,
            "hidden_weight": 0.1,
            "distill": stage,
            "recover": stage,
            "check_teacher": False,  # 24 steps teach it less than token counts know
        },
        "training": {"per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1},
    }


@pytest.fixture(scope="module")
def student_folder(teacher_folder, plan_file, fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "run"
    distill(teacher_folder, plan_file, DistillRecipe.model_validate(fields), folder)
    return folder


def learn(teacher, student, ids, section, bf16=False):
    """Loss and parts of one batch in stage distill."""
    num_layers = student.config.num_layers
    live = LiveTeacher(teacher, hidden_layers(section, num_layers), bf16)
    learner = Learner(student, LearnFromTeacher(live, section, num_layers), bf16)
    batch = {"input_ids": ids}
    return learner(batch, learner.objective.signal(batch))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_finished_student_loads_at_its_plan_and_records_where_it_comes_from(student_folder, teacher_folder):
    student = AutoModelForCausalLM.from_pretrained(student_folder)
    assert student.config.num_iterations == [2, 0]
    assert student.config.max_num_iterations == 2
    record = RunRecord.load(student_folder / "run.json")
    assert set(record.inputs) == {"teacher", "plan", "tokenizer", "data", "validation"}
    assert record.results["overhead_cut"] == 0.5
    assert record.results["validation_nll"] < 7
    assert "[2, 0]" in (student_folder / "README.md").read_text()


def test_stage_one_logs_its_losses_apart_and_stage_two_learns_from_text_alone(student_folder):
    stages = {}
    for entry in log_of(student_folder):
        stages.setdefault(entry["stage"], []).append(entry)
    assert list(stages) == ["distill", "recover"]
    for entry in stages["distill"]:
        assert entry["loss"] == pytest.approx(entry["ce"] + entry["kl"] + 0.1 * entry["hidden"], rel=1e-3)
    for entry in stages["recover"]:
        assert entry["loss"] == pytest.approx(entry["ce"], rel=1e-3)
        assert "kl" not in entry
    assert [entry["step"] for entry in stages["recover"]] == list(range(1, 9))


def test_distillation_brings_a_truncated_student_nearer_to_its_teacher():
    teacher, student = make_iiet(num_iterations=3), make_iiet(num_iterations=3)
    student.set_num_iterations([0, 1, 0])
    section = DistillationSection(kl_weight=100.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.002)
    ids = torch.randint(3, 90, (40, 8, 16), generator=torch.Generator().manual_seed(0))
    kls = []
    for batch in ids:
        loss, parts = learn(teacher, student, batch, section)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kls.append(parts["kl"].item())
    assert sum(kls[-5:]) < 0.5 * sum(kls[:5])


def test_blocks_are_as_long_as_the_teachers_context_where_the_recipe_does_not_say(
    teacher_folder, plan_file, fields, tmp_path
):
    data = {name: value for name, value in fields["data"].items() if name != "block_size"}
    recipe = DistillRecipe.model_validate({**fields, "data": data})
    results = distill(teacher_folder, plan_file, recipe, tmp_path / "run")
    assert results["tokens"] == (8 + 8) * 4 * 64


def test_a_stage_of_no_steps_is_left_out(teacher_folder, plan_file, fields, tmp_path):
    nothing = {"max_steps": 0}
    recipe = {**fields, "distillation": {**fields["distillation"], "recover": nothing}}
    distill(teacher_folder, plan_file, DistillRecipe.model_validate(recipe), tmp_path / "run")
    assert {entry["stage"] for entry in log_of(tmp_path / "run")} == {"distill"}
    assert not (tmp_path / "run" / "stage-2-recover").exists()


def test_a_full_plan_with_the_teachers_weights_has_no_kl_and_the_teachers_loss(teacher_folder):
    teacher, student = load_model(teacher_folder), load_model(teacher_folder)
    ids = torch.randint(3, 200, (2, 16))
    section = DistillationSection(hidden_weight=1.0)
    with torch.no_grad():
        loss, parts = learn(teacher, student, ids, section)
        plain, _ = Learner(student, LanguageModelling())({"input_ids": ids})
    assert parts["kl"].item() == 0
    assert parts["hidden"].item() == 0
    assert loss.item() == plain.item() == parts["ce"].item()


def test_under_bf16_the_teacher_computes_as_the_student_does(teacher_folder):
    teacher, student = load_model(teacher_folder), load_model(teacher_folder)
    ids = torch.randint(3, 200, (2, 16))
    with torch.no_grad():
        _, parts = learn(teacher, student, ids, DistillationSection(hidden_weight=1.0), bf16=True)
    assert parts["kl"].item() == 0
    assert parts["hidden"].item() == 0


def test_a_teacher_stored_in_bfloat16_gives_a_student_trained_in_float32(teacher_folder, fields, tmp_path):
    stored = load_model(teacher_folder)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    save_checkpoint(stored.to(torch.bfloat16), tmp_path / "teacher", tokenizer=tokenizer)
    Plan.explicit([1, 1], identify_model(load_model(tmp_path / "teacher"), "teacher")).save(
        tmp_path / "plan.json"
    )
    distill(
        tmp_path / "teacher", tmp_path / "plan.json", DistillRecipe.model_validate(fields), tmp_path / "run"
    )
    before, after = load_model(tmp_path / "teacher").state_dict(), load_model(tmp_path / "run").state_dict()
    assert after["model.norm.weight"].dtype == torch.float32
    moved = (after["lm_head.weight"] != before["lm_head.weight"].float()).float().mean()
    assert moved > 0.99


def test_the_teacher_gets_no_gradient_and_stays_as_it_was(teacher_folder, plan_file, fields, tmp_path):
    before = (teacher_folder / "model.safetensors").read_bytes()
    teacher, student = load_model(teacher_folder), load_model(teacher_folder, num_iterations=[1, 0])
    loss, _ = learn(teacher, student.train(), torch.randint(3, 200, (2, 16)), DistillationSection())
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())
    assert (teacher_folder / "model.safetensors").read_bytes() == before


def test_parameters_that_the_plan_leaves_unused_keep_the_teachers_values(student_folder, teacher_folder):
    teacher, student = load_model(teacher_folder).state_dict(), load_model(student_folder).state_dict()
    unused = [f"model.layers.1.corrector.{name}" for name in ("update_weights", "update_norm.weight")]
    assert all(torch.equal(teacher[name], student[name]) for name in unused)
    used = [f"model.layers.0.corrector.{name}" for name in ("update_weights", "update_norm.weight")]
    assert not any(torch.equal(teacher[name], student[name]) for name in used)


def refusal(*args, **kwargs):
    with pytest.raises(InputError) as error:
        distill(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_plan_for_another_teacher_or_another_depth_is_refused(teacher_folder, plan_file, fields, tmp_path):
    recipe = DistillRecipe.model_validate(fields)
    plan = json.loads(plan_file.read_text())
    bad = tmp_path / "plan.json"
    bad.write_text(json.dumps({**plan, "teacher": {**plan["teacher"], "fingerprint": "0" * 64}}))
    assert "expected one for teacher" in refusal(teacher_folder, bad, recipe, tmp_path / "run")
    bad.write_text(json.dumps({**plan, "num_iterations": [1, 1, 1]}))
    message = refusal(teacher_folder, bad, recipe, tmp_path / "run")
    assert "num_iterations: expected 2 layers, as the teacher has, got 3" in message
    bad.write_text(json.dumps({**plan, "num_iterations": [3, 0]}))
    message = refusal(teacher_folder, bad, recipe, tmp_path / "run")
    assert "num_iterations: expected 0 to 2 for layer 1, the teacher's, got 3" in message
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_tokenizer_or_with_too_short_a_context_is_refused(
    teacher_folder, plan_file, fields, tmp_path
):
    long = {**fields, "data": {**fields["data"], "block_size": 100}}
    message = refusal(teacher_folder, plan_file, DistillRecipe.model_validate(long), tmp_path / "run")
    assert "expected at most 64 tokens, the model's max_position_embeddings, got 100" in message
    shutil.copytree(
        teacher_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "checkpoint-*")
    )
    assert "bare" in refusal(
        tmp_path / "bare", plan_file, DistillRecipe.model_validate(fields), tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()
