"""Teacher and plan to E-IIET: what it learns from, what it becomes, and what is refused."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from iiad.checkpoints import identify_model, load_model, save_checkpoint
from iiad.distillation import LearnFromTeacher, LiveTeacher, distill
from iiad.distillation.objectives import hidden_layers
from iiad.planning import Plan
from iiad.training import RunRecord
from iiad.training.distillation_sections import DistillationSection
from iiad.training.learner import LanguageModelling, Learner
from tests.helpers import log_of, make_iiet, refused


@pytest.fixture(scope="module")
def student_folder(teacher_folder, plan_file, lesson, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "run"
    recipe = lesson(distill=3, recover=3, temperature=2.0, hidden_weight=0.1)
    distill(teacher_folder, plan_file, recipe, folder)
    return folder


def learn(teacher, student, ids, section, bf16=False):
    """Loss and parts of one batch in stage distill."""
    num_layers = student.config.num_layers
    live = LiveTeacher(teacher, hidden_layers(section, num_layers), bf16)
    learner = Learner(student, LearnFromTeacher(live, section, num_layers), bf16)
    batch = {"input_ids": ids, "labels": ids}
    return learner(batch, learner.objective.signal(batch))


def test_a_finished_student_loads_at_its_plan_and_records_where_it_comes_from(student_folder):
    student = AutoModelForCausalLM.from_pretrained(student_folder)
    assert student.config.num_iterations == [2, 0]
    assert student.config.max_num_iterations == 2
    record = RunRecord.load(student_folder / "run.json")
    assert set(record.inputs) == {"teacher", "plan", "tokenizer", "data", "validation"}
    assert record.results["overhead_cut"] == 0.5
    assert record.results["validation_nll"] < 7
    card = (student_folder / "README.md").read_text()
    assert "[2, 0]" in card
    assert "layer 1      ##  2 of 2\nlayer 2      ..  0 of 2\n" in card
    assert re.search(r"`iiad report \S+run \S+plan.json FOLDER --output report.html`", card)


def test_stage_distill_logs_its_losses_apart_and_stage_recover_learns_from_text_alone(student_folder):
    stages = {name: log_of(student_folder, name) for name in ("distill", "recover")}
    for entry in stages["distill"]:
        assert entry["loss"] == pytest.approx(entry["ce"] + entry["kl"] + 0.1 * entry["hidden"], rel=1e-3)
    for entry in stages["recover"]:
        assert entry["loss"] == pytest.approx(entry["ce"], rel=1e-3)
        assert "kl" not in entry
    assert [[entry["step"] for entry in entries] for entries in stages.values()] == 2 * [[1, 2, 3]]


def test_distillation_brings_a_truncated_student_nearer_to_its_teacher():
    teacher, student = make_iiet(num_iterations=3), make_iiet(num_iterations=3)
    student.set_num_iterations([0, 1, 0])
    section = DistillationSection(kl_weight=100.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.004)
    ids = torch.randint(3, 90, (20, 8, 16), generator=torch.Generator().manual_seed(0))
    kls = []
    for batch in ids:
        loss, parts = learn(teacher, student, batch, section)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kls.append(parts["kl"].item())
    assert sum(kls[-3:]) < 0.5 * sum(kls[:3])


def test_blocks_are_as_long_as_the_teachers_context_where_the_recipe_does_not_say(distilled):
    results = RunRecord.load(distilled(recover=1, data={"block_size": None}) / "run.json").results
    assert results["tokens"] == 4 * 64


@pytest.mark.parametrize("bf16", [False, True])
def test_a_full_plan_with_the_teachers_weights_has_no_kl_and_the_teachers_loss(bf16, teacher_folder):
    teacher, student = load_model(teacher_folder), load_model(teacher_folder)
    ids = torch.randint(3, 200, (2, 16))
    with torch.no_grad():
        loss, parts = learn(teacher, student, ids, DistillationSection(hidden_weight=1.0), bf16)
        plain, _ = Learner(student, LanguageModelling(), bf16)({"input_ids": ids, "labels": ids})
    assert parts["kl"].item() == 0
    assert parts["hidden"].item() == 0
    assert loss.item() == plain.item() == parts["ce"].item()


def test_a_teacher_stored_in_bfloat16_gives_a_student_trained_in_float32(teacher_folder, distilled, tmp_path):
    stored, plan = tmp_path / "teacher", tmp_path / "plan.json"
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    save_checkpoint(load_model(teacher_folder).to(torch.bfloat16), stored, tokenizer=tokenizer)
    Plan.explicit([1, 1], identify_model(load_model(stored), "teacher")).save(plan)
    before = load_model(stored).state_dict()
    after = load_model(distilled(teacher=stored, plan=plan, distill=2, recover=2)).state_dict()
    assert after["model.norm.weight"].dtype == torch.float32
    moved = (after["lm_head.weight"] != before["lm_head.weight"].float()).float().mean()
    assert moved > 0.99


def test_the_teacher_gets_no_gradient(teacher_folder):
    teacher, student = load_model(teacher_folder), load_model(teacher_folder, num_iterations=[1, 0])
    loss, _ = learn(teacher, student.train(), torch.randint(3, 200, (2, 16)), DistillationSection())
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


def test_parameters_that_the_plan_leaves_unused_keep_the_teachers_values(student_folder, teacher_folder):
    teacher, student = load_model(teacher_folder).state_dict(), load_model(student_folder).state_dict()
    unused = [f"model.layers.1.corrector.{name}" for name in ("update_weights", "update_norm.weight")]
    assert all(torch.equal(teacher[name], student[name]) for name in unused)
    used = [f"model.layers.0.corrector.{name}" for name in ("update_weights", "update_norm.weight")]
    assert not any(torch.equal(teacher[name], student[name]) for name in used)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_iterations": [1, 1, 1]}, "num_iterations: expected 2 layers, as the teacher has, got 3"),
        ({"num_iterations": [3, 0]}, "num_iterations: expected 0 to 2 for layer 1, the teacher's, got 3"),
        ({"fingerprint": "0" * 64}, "expected one for teacher"),
    ],
)
def test_a_plan_for_another_teacher_or_another_depth_is_refused(
    changes, message, plan_file, distilled, tmp_path
):
    plan = json.loads(plan_file.read_text())
    (plan["teacher"] if "fingerprint" in changes else plan).update(changes)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with refused(message):
        distilled(plan=tmp_path / "plan.json", distill=1)
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_tokenizer_or_with_too_short_a_context_is_refused(
    teacher_folder, distilled, tmp_path
):
    with refused("expected at most 64 tokens, the model's max_position_embeddings, got 100"):
        distilled(distill=1, data={"block_size": 100})
    shutil.copytree(
        teacher_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "checkpoint-*")
    )
    with refused("bare"):
        distilled(teacher=tmp_path / "bare", distill=1)
    assert not (tmp_path / "run").exists()
