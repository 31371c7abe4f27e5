"""Training from scratch: phases, folders, resume."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from iiad import InputError
from iiad.models import PCformerForCausalLM
from iiad.training import RunRecord, TrainRecipe, train
from iiad.training import teacher as teacher_module
from iiad.training.phases import TwoPhases, continue_without_a_jump
from tests.helpers import make_iiet

ROOT = Path(__file__).parents[2]


def recipe_with(fields, **changes):
    fields = copy.deepcopy(fields)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if value is None:
            fields[section].pop(field)
        else:
            fields[section][field] = value
    return TrainRecipe.model_validate(fields)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_finished_run_holds_a_loadable_model_its_tokenizer_card_log_and_record(teacher_folder):
    model = AutoModelForCausalLM.from_pretrained(teacher_folder)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    assert model.config.num_iterations == [2, 2]
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer("The layer stops.")["input_ids"]) == "The layer stops."
    assert "iterations per layer (the plan): [2, 2]" in (teacher_folder / "README.md").read_text()
    record = RunRecord.load(teacher_folder / "run.json")
    assert record.finished
    assert set(record.inputs) == {"tokenizer", "data", "validation"}
    assert yaml.safe_load((teacher_folder / "recipe.yaml").read_text())["training"]["max_steps"] == 24
    assert json.loads((teacher_folder / "config.json").read_text())["pad_token_id"] is None


def test_iterations_start_in_the_second_phase_and_the_loss_falls(teacher_folder):
    entries = [entry for entry in log_of(teacher_folder) if "loss" in entry]
    evaluations = {entry["step"]: entry["evaluations_per_token"] for entry in entries}
    assert evaluations[12] == 2
    assert evaluations[14] == 6
    assert entries[-1]["loss"] < entries[0]["loss"] - 0.5


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_share_of_zero_or_one_means_iterations_always_or_at_the_end_alone(start):
    class Model:
        config = SimpleNamespace(num_iterations=[9])

        def set_num_iterations(self, plan):
            self.config.num_iterations = plan

    model, phases = Model(), TwoPhases([3], start, 10)
    plans = []
    for step in range(10):
        phases.enter(step, model)
        plans.append(model.config.num_iterations)
    phases.leave(model)
    assert plans == [[3] if start == 0 else [0]] * 10
    assert model.config.num_iterations == [3]


def test_a_smooth_start_of_the_iterations_changes_no_output_and_lets_them_learn(tokens):
    model = make_iiet(num_iterations=0, max_num_iterations=3)
    before = model(tokens).logits
    model.set_num_iterations(3)
    assert (model(tokens).logits - before).abs().max() > 0.1
    continue_without_a_jump(model.model)
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-5)
    model(tokens, labels=tokens).loss.backward()
    assert all(layer.corrector.update_weights.grad[-1].abs() > 0 for layer in model.model.layers)


@pytest.mark.parametrize(("step", "smooth"), [(5, True), (5, False), (6, True)])
def test_the_smooth_start_is_made_once_at_the_switch_and_not_when_resumed_after_it(step, smooth, tokens):
    model = make_iiet(num_iterations=0, max_num_iterations=3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    output = model(tokens).logits
    TwoPhases([3, 3, 3], 0.5, 10, smooth).enter(step, model)
    assert model.config.num_iterations == [3, 3, 3]
    if smooth and step == 5:
        torch.testing.assert_close(model(tokens).logits, output, rtol=0, atol=1e-5)
    else:
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("solver", "kind", "evaluations"),
    [("transformer", LlamaForCausalLM, 2), ("pcformer", PCformerForCausalLM, 6)],
)
def test_the_solver_line_alone_changes_the_model(solver, kind, evaluations, recipe_fields, tmp_path):
    recipe = recipe_with(recipe_fields, model__solver=solver, training__max_steps=4)
    results = train(recipe, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert isinstance(model, kind)
    assert model.config.num_hidden_layers == evaluations
    assert results["tokens"] == 4 * 4 * 32
    assert 0 < results["validation_nll"] < 7


def test_accumulation_changes_no_step_beyond_rounding(recipe_fields, little_text, tmp_path):
    common = {"data__train": [str(little_text)], "training__max_steps": 30, "model__attention_dropout": 0.0}
    common["training__learning_rate"] = 0.001
    train(recipe_with(recipe_fields, **common), tmp_path / "one")
    split = {"training__per_device_train_batch_size": 1, "training__gradient_accumulation_steps": 4}
    train(recipe_with(recipe_fields, **common, **split), tmp_path / "four")
    one, four = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "four")
    )
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=0, atol=2e-4, msg=name)
    losses = [
        [entry["loss"] for entry in log_of(tmp_path / name) if "loss" in entry] for name in ("one", "four")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    assert log_of(tmp_path / "one")[-1]["epoch"] > 2


def refusal(*args, **kwargs):
    with pytest.raises(InputError) as error:
        train(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_finished_run_is_refused_and_untouched(recipe_fields, teacher_folder):
    before = {path: path.stat().st_mtime_ns for path in teacher_folder.rglob("*")}
    for resume in (False, True):
        message = refusal(TrainRecipe.model_validate(recipe_fields), teacher_folder, resume=resume)
        assert "got a finished run" in message
    assert {path: path.stat().st_mtime_ns for path in teacher_folder.rglob("*")} == before


def test_a_folder_with_other_things_in_it_is_refused(recipe_fields, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "got one with files that are no run's" in refusal(
        TrainRecipe.model_validate(recipe_fields), tmp_path
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unfinished_run_is_continued_only_when_asked_and_with_the_same_recipe(recipe_fields, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(TrainRecipe.model_validate(recipe_fields), run, on_step=interrupt(7))
    assert not (run / "config.json").exists()
    assert "continue it with --resume" in refusal(TrainRecipe.model_validate(recipe_fields), run)
    other = recipe_with(recipe_fields, training__learning_rate=0.02)
    assert "training.learning_rate was 0.01, now 0.02" in refusal(other, run, resume=True)


def interrupt(step):
    """Stop before that step, counted from 1."""

    def on_step(number):
        if number == step:
            raise KeyboardInterrupt

    return on_step


def test_data_that_changed_since_the_run_began_are_noticed(recipe_fields, text_file, tmp_path):
    copied = tmp_path / "text.jsonl"
    shutil.copyfile(text_file, copied)
    recipe = recipe_with(recipe_fields, data__train=[str(copied)])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", on_step=interrupt(7))
    with copied.open("a") as file:
        file.write('{"text": "one more document"}\n')
    assert "cannot be resumed with other inputs: data was" in refusal(recipe, tmp_path / "run", resume=True)


def poison(monkeypatch, is_bad, factor=float("nan")):
    """Multiply the loss by NaN at those calls, counted from 1."""
    import iiad.training.learner as learner

    original = learner.head_loss
    calls = []

    def poisoned(*args, **kwargs):
        calls.append(1)
        found = original(*args, **kwargs)
        return found._replace(loss=found.loss * factor) if is_bad(len(calls)) else found

    monkeypatch.setattr(learner, "head_loss", poisoned)


def test_a_loss_that_stays_bad_stops_the_run_with_the_last_good_checkpoint_named(
    recipe_fields, tmp_path, monkeypatch
):
    poison(monkeypatch, lambda call: call > 9)
    message = refusal(recipe_with(recipe_fields, training__max_skipped_steps=3), tmp_path / "run")
    assert "NaN or infinite at step 13" in message
    assert "4 in a row" in message
    assert "checkpoint-12" in message
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-12")
    assert all(parameter.isfinite().all() for parameter in kept.parameters())


def test_single_bad_steps_are_skipped_counted_and_shown(recipe_fields, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, lambda call: call in (5, 6, 9))
    train(TrainRecipe.model_validate(recipe_fields), tmp_path / "run")
    counts = {entry["step"]: entry["skipped_steps"] for entry in log_of(tmp_path / "run") if "loss" in entry}
    assert (counts[4], counts[6], counts[8], counts[10], counts[24]) == (0, 2, 2, 3, 3)
    lost = [entry for entry in log_of(tmp_path / "run") if entry.get("loss", 0.0) is None]
    assert [entry["step"] for entry in lost] == [6]  # both its steps were bad
    assert "step 9: loss or gradient is NaN or infinite; skipped (3 so far)" in capsys.readouterr().err


def test_a_skipped_step_changes_neither_weights_nor_optimizer(recipe_fields, tmp_path, monkeypatch):
    """Three good steps, and three good steps with a bad one between, whose learning rate is lost alone."""
    common = {"training__max_steps": 4, "training__warmup_steps": 0, "training__save_steps": 1}
    common["training__iterations_start"] = 0.0
    common |= {"training__lr_scheduler_type": "constant_with_warmup", "training__save_total_limit": 4}
    with monkeypatch.context() as patch:
        poison(patch, lambda call: call == 3)
        train(recipe_with(recipe_fields, **common), tmp_path / "run")
    before, after = (load_file(tmp_path / "run" / f"checkpoint-{n}" / "model.safetensors") for n in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    states = [
        torch.load(tmp_path / "run" / f"checkpoint-{n}" / "optimizer.pt")["optimizer"]["state"]
        for n in (2, 3)
    ]
    assert all(
        torch.equal(states[0][number][name], states[1][number][name])
        for number in states[0]
        for name in states[0][number]
    )


def test_too_little_data_for_one_step_is_refused(recipe_fields, tmp_path):
    recipe = recipe_with(recipe_fields, training__per_device_train_batch_size=5000)
    assert "data.train: expected at least 5000 blocks, for one step" in refusal(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training__report_to": ["carrier-pigeon"]},
            "training.report_to: expected one that is installed here",
        ),
        (
            {"training__attn_implementation": "flash_attention_2"},
            "training.attn_implementation: expected one that runs here, got 'flash_attention_2'",
        ),
        ({"tokenizer__vocab_size": None, "tokenizer__path": "/nowhere"}, "no such folder"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(changes, message, recipe_fields, tmp_path):
    fields = copy.deepcopy(recipe_fields)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        fields[section][field] = value
    assert message in refusal(TrainRecipe.model_validate(fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_text_that_is_too_short_is_refused_before_anything_is_written(recipe_fields, tmp_path):
    (tmp_path / "short.txt").write_text("")
    recipe = recipe_with(recipe_fields, data__validation=[str(tmp_path / "short.txt")])
    assert "short.txt" in refusal(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_recipe_gives_the_same_weights_also_when_validated(recipe_fields, teacher_folder, tmp_path):
    train(recipe_with(recipe_fields, training__eval_steps=5), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        teacher_folder / "model.safetensors"
    ).read_bytes()
    found = {entry["step"]: entry["eval_loss"] for entry in log_of(tmp_path / "run") if "eval_loss" in entry}
    assert list(found) == [5, 10, 15, 20]
    assert found[20] < found[5]


def test_a_tokenizer_folder_is_there_whole_or_not_at_all(recipe_fields, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(teacher_module, "atomic_folder", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(TrainRecipe.model_validate(recipe_fields), run)
    assert sorted(path.name for path in run.iterdir()) == ["recipe.yaml", "run.json"]
    train(TrainRecipe.model_validate(recipe_fields), run, resume=True)
    assert RunRecord.load(run / "run.json").finished


def test_what_a_kill_leaves_before_the_record_is_there_does_not_block_the_folder(recipe_fields, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".run.json-abc").write_text("{")
    train(recipe_with(recipe_fields, training__max_steps=4), run)
    assert RunRecord.load(run / "run.json").finished
