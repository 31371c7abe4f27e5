"""Training from scratch: phases, folders, resume."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from iiad.models import IIETForCausalLM, PCformerForCausalLM
from iiad.training import RunRecord
from iiad.training import teacher as teacher_module
from iiad.training.phases import TwoPhases, continue_without_a_jump
from tests.helpers import change_loss, log_of, make_iiet, refused


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
        config = SimpleNamespace(iterations=[9])

        def set_num_iterations(self, plan):
            self.config.iterations = plan

    model, phases = Model(), TwoPhases([3], start, 10)
    plans = []
    for step in range(10):
        phases.enter(step, model)
        plans.append(model.config.iterations)
    phases.leave(model)
    assert plans == [[3] if start == 0 else [0]] * 10
    assert model.config.iterations == [3]


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
    ("model", "kind", "evaluations"),
    [
        ({"solver": "transformer"}, LlamaForCausalLM, 2),
        ({"solver": "pcformer"}, PCformerForCausalLM, 6),
        ({"cache_policy": "shared"}, IIETForCausalLM, 2),
    ],
)
def test_a_line_of_the_recipe_alone_changes_the_model(model, kind, evaluations, trained):
    run = trained(model=model, max_steps=2)
    model = AutoModelForCausalLM.from_pretrained(run)
    assert isinstance(model, kind)
    assert model.config.num_hidden_layers == evaluations
    results = RunRecord.load(run / "run.json").results
    assert results["tokens"] == 2 * 4 * 32
    assert 0 < results["validation_nll"] < 7


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_refused_and_untouched(resume, trained):
    run = trained(max_steps=1)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with refused("got a finished run"):
        trained(max_steps=1, resume=resume)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_folder_with_other_things_in_it_is_refused(trained, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with refused("got one with files that are no run's"):
        trained(name=".")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unfinished_run_goes_on_only_when_asked_with_the_same_recipe_and_text(
    trained, little_text, tmp_path
):
    text = tmp_path / "text.jsonl"
    shutil.copyfile(little_text, text)
    data = {"train": [str(text)]}
    with pytest.raises(KeyboardInterrupt):
        trained(data=data, on_step=interrupt)
    assert not (tmp_path / "run" / "config.json").exists()
    with refused("continue it with --resume"):
        trained(data=data)
    with refused("training.learning_rate was 0.01, now 0.02"):
        trained(data=data, learning_rate=0.02, resume=True)
    text.write_text(text.read_text() + '{"text": "one more document"}\n')
    with refused("cannot be resumed with other inputs: data was"):
        trained(data=data, resume=True)


def interrupt(*args):
    raise KeyboardInterrupt


def test_a_loss_that_stays_bad_stops_the_run_with_the_last_good_checkpoint_named(
    trained, tmp_path, monkeypatch
):
    change_loss(monkeypatch, lambda loss, call: loss * float("nan") if call > 2 else loss)
    with refused("NaN or infinite at step 4", "2 in a row", f"{tmp_path / 'run' / 'checkpoint-2'};"):
        trained(max_skipped_steps=1, save_steps=2)


BAD = {
    2: lambda loss: loss + float("nan"),
    3: lambda loss: loss + float("inf"),
    4: lambda loss: loss * float("nan"),
    5: lambda loss: loss + (loss - loss.detach()) * float("inf"),  # 0 x inf
    7: lambda loss: loss + (loss - loss.detach()).sqrt().nan_to_num(0.0),  # finite, its gradient infinite
}


def test_steps_with_a_bad_loss_or_gradient_are_skipped_counted_and_shown(trained, monkeypatch, capsys):
    change_loss(monkeypatch, lambda loss, call: BAD.get(call, lambda loss: loss)(loss))
    run = trained(max_steps=8, logging_steps=2, save_steps=1, save_total_limit=None, iterations_start=0.0)
    entries = log_of(run)
    assert [entry["skipped_steps"] for entry in entries] == [1, 3, 4, 5]
    assert [entry["loss"] is None for entry in entries] == [False, True, False, False]
    assert "NaN" not in (run / "log.jsonl").read_text()
    assert "step 7: loss or gradient is NaN or infinite; skipped (5 so far)" in capsys.readouterr().err

    def kept(step):
        weights = load_file(run / f"checkpoint-{step}" / "model.safetensors")
        moments = torch.load(run / f"checkpoint-{step}" / "optimizer.pt")["optimizer"]["state"]
        for number, values in moments.items():
            weights |= {f"{number}.{name}": value for name, value in values.items()}
        return weights

    steps = {step: kept(step) for step in range(1, 9)}
    for step in range(2, 9):
        same = all(torch.equal(steps[step - 1][name], value) for name, value in steps[step].items())
        assert same == (step in BAD), step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 5000}, "data.train: expected at least 5000 blocks, for one step"),
        ({"report_to": ["carrier-pigeon"]}, "training.report_to: expected one that is installed here"),
        (
            {"attn_implementation": "flash_attention_2"},
            "training.attn_implementation: expected one that runs here, got 'flash_attention_2'",
        ),
        ({"tokenizer": {"path": "/nowhere"}}, "no such model folder"),
        ({"data": {"validation": "short.txt"}}, "short.txt"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    changes, message, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("")
    with refused(message):
        trained(**changes)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_folder_is_there_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    settings = {"tokenizer": {"vocab_size": 300}, "max_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(teacher_module, "atomic_folder", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(**settings)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["recipe.yaml", "run.json"]
    assert RunRecord.load(trained(**settings, resume=True) / "run.json").finished


def test_what_a_kill_leaves_before_the_record_is_there_does_not_block_the_folder(trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json-abc").write_text("{")
    assert RunRecord.load(trained(max_steps=1) / "run.json").finished
