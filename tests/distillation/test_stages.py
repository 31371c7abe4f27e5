"""Layer by layer first, and no longer than needed."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div

from iiad import InputError
from iiad.checkpoints import identify_model, load_model
from iiad.data import load_tokenizer
from iiad.distillation import LiveTeacher, distill, objectives
from iiad.planning import Plan
from iiad.training import DistillRecipe, RunRecord, load_recipe, loop
from iiad.training.checkpointing import Checkpoints, StageState
from iiad.training.corpora import Corpora
from iiad.training.scoring import TokenScore
from tests.helpers import log_of


@pytest.fixture(scope="module")
def layer_by_layer(teacher_folder, plan_file, lesson, tmp_path_factory):
    """A student of stage layerwise alone."""
    folder = tmp_path_factory.mktemp("layerwise") / "run"
    distill(teacher_folder, plan_file, lesson(layerwise=24), folder)
    return folder


def test_stage_layerwise_teaches_the_changed_layers_alone_and_their_errors_fall(
    layer_by_layer, teacher_folder
):
    before, after = (load_file(each / "model.safetensors") for each in (teacher_folder, layer_by_layer))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("model.layers.1.") for name in moved)
    assert not any(".corrector.update_" in name for name in moved)  # without use under the plan
    entries = log_of(layer_by_layer, "layerwise")
    assert all(entry["loss"] == pytest.approx(entry["layer_2"]) for entry in entries)
    assert "layer_1" not in entries[0]
    losses = [entry["loss"] for entry in entries]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_layers_that_learnt_by_themselves_bring_the_student_nearer_to_the_teacher(
    layer_by_layer, teacher_folder, little_text
):
    text = json.loads(little_text.read_text().splitlines()[0])["text"]
    ids = torch.tensor([load_tokenizer(teacher_folder)(text)["input_ids"][:64]])
    truncated = load_model(teacher_folder, num_iterations=[2, 0])
    models = [load_model(teacher_folder), truncated, load_model(layer_by_layer)]
    with torch.no_grad():
        teacher, before, after = (model(ids).logits.double().log_softmax(-1) for model in models)
    assert kl_div(after, teacher, log_target=True, reduction="sum") < 0.5 * kl_div(
        before, teacher, log_target=True, reduction="sum"
    )


def score_by(monkeypatch, accuracies):
    """The teacher's accuracy, then the student's at each validation."""
    left = iter(accuracies)
    monkeypatch.setattr(Corpora, "score_validation", lambda *_: TokenScore(100, 3.0, next(left)))


WATCHED = {"eval_steps": 2, "save_steps": 100}


def test_a_stage_ends_when_enough_is_retained_as_do_all_and_is_not_run_again(distilled, monkeypatch, capsys):
    settings = {"distill": 8, "recover": 4, "retain": 0.96, "training": {**WATCHED, "ema_decay": 0.5}}
    score_by(monkeypatch, [0.5, 0.4, 0.49, 0.49])
    folder = distilled("whole", **settings)
    assert [(entry["stage"], entry["step"]) for entry in log_of(folder)] == [
        ("distill", n) for n in range(1, 5)
    ]
    stage = next(folder.glob("stage-*"))
    assert Checkpoints(stage).newest().name == "checkpoint-4"
    assert StageState.load(stage / "checkpoint-4").stopped == "retains 98.00 % of the teacher's accuracy"
    assert "- stopped: retains 98.00 %" in (stage / "checkpoint-4" / "README.md").read_text()
    record = RunRecord.load(folder / "run.json")
    assert record.finished
    assert record.results["retained"] == pytest.approx(0.98)
    assert record.results["tokens"] == 4 * 4 * 32
    assert [entry["retained"] for entry in log_of(folder, name="retained")] == pytest.approx([0.8, 0.98])

    with monkeypatch.context() as patch:
        score_by(patch, [0.5, 0.4, 0.49])  # and no score for the result
        with pytest.raises((StopIteration, RuntimeError)):
            distilled("broken", **settings)
    score_by(monkeypatch, [0.5, 0.49])
    again = distilled("broken", resume=True, **settings)
    assert "distill: stopped early before; not run again" in capsys.readouterr().err
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len(log_of(again)) == 4


def test_all_stages_are_run_when_it_never_is(distilled, monkeypatch):
    score_by(monkeypatch, [0.5] + 3 * [0.4])
    folder = distilled(distill=2, recover=2, retain=0.9, training=WATCHED)
    assert [entry["step"] for entry in log_of(folder)] == [1, 2, 1, 2]
    assert RunRecord.load(folder / "run.json").results["retained"] == pytest.approx(0.8)


def test_each_stage_may_have_a_schedule_of_its_own(distilled):
    schedules = {
        "distill": {"lr_scheduler_type": "constant_with_warmup"},
        "recover": {"learning_rate": 0.002},
    }
    folder = distilled(distill=2, recover=3, training={"lr_scheduler_type": "linear"}, schedules=schedules)
    rates = {name: [entry["learning_rate"] for entry in log_of(folder, name)] for name in schedules}
    assert rates["distill"] == pytest.approx([0.003] * 2)
    assert rates["recover"] == pytest.approx([0.002 * (1 - done / 3) for done in range(3)])


def test_stages_without_a_step_or_a_changed_layer_are_left_out(distilled, teacher_folder, tmp_path):
    plan = tmp_path / "full.json"
    Plan.explicit([2, 2], identify_model(load_model(teacher_folder), teacher_folder)).save(plan)
    folder = distilled(plan=plan, layerwise=2, recover=1)
    assert [entry["stage"] for entry in log_of(folder)] == ["recover"]
    assert len(list(folder.glob("stage-*"))) == 1
    assert load_recipe(DistillRecipe, folder / "recipe.yaml").distillation.recover.max_steps == 1


def test_retention_needs_something_to_measure_it_on(lesson):
    with pytest.raises(ValueError, match=r"a number, to measure distillation\.retain"):
        lesson(distill=1, retain=0.9)


def test_a_teacher_without_any_accuracy_retains_nothing_and_breaks_nothing(distilled, monkeypatch):
    score_by(monkeypatch, [0.0, 0.1])
    assert RunRecord.load(distilled(recover=1) / "run.json").results["retained"] is None


def test_nothing_can_be_retained_of_a_teacher_without_accuracy(distilled, monkeypatch, tmp_path):
    score_by(monkeypatch, [0.0])
    with pytest.raises(InputError, match=r"expected a teacher with accuracy on data\.validation"):
        distilled(recover=4, retain=0.5, training=WATCHED)
    assert not (tmp_path / "run").exists()


def test_the_teacher_and_each_stages_optimizer_are_gone_when_nothing_needs_them(distilled, monkeypatch):
    teachers, optimizers, alive = weakref.WeakSet(), weakref.WeakSet(), {}
    original, create = LiveTeacher.__init__, loop.make_optimizer

    def make(self, *args, **kwargs):
        original(self, *args, **kwargs)
        teachers.add(self.learner.model)

    def watch(*args):
        alive[len(alive)] = (len(teachers), len(optimizers))
        optimizer = create(*args)
        optimizers.add(optimizer)
        return optimizer

    monkeypatch.setattr(LiveTeacher, "__init__", make)
    monkeypatch.setattr(loop, "make_optimizer", watch)
    distilled(layerwise=1, distill=1, recover=1)
    assert alive == {0: (1, 0), 1: (1, 0), 2: (0, 0)}  # layerwise, distill, recover


def test_losses_that_need_no_teacher_run_none(distilled, monkeypatch):
    monkeypatch.setattr(LiveTeacher, "signal", lambda *args: pytest.fail("the teacher was run"))
    assert "kl" not in log_of(distilled(distill=1, kl_weight=0.0))[0]


def test_hidden_states_alone_need_no_head(distilled, monkeypatch):
    monkeypatch.setattr(objectives, "head_loss", lambda *args, **kwargs: pytest.fail("the head was run"))
    entry = log_of(distilled(distill=1, ce_weight=0.0, kl_weight=0.0, hidden_weight=2.0))[0]
    assert entry["loss"] == pytest.approx(2 * entry["hidden"])
