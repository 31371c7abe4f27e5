"""Learning rates follow their formulas; compiled and recomputed steps are the same steps; what counts as bad."""

import copy
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from iiad.training import RunRecord, TrainRecipe, train
from iiad.training import learner as learner_module

STEPS, WARMUP, PEAK, LEAST = 12, 3, 0.01, 0.1


@pytest.fixture(scope="module")
def fields(recipe_fields, little_text, teacher_folder):
    """A run of a second: little text, the steps logged one by one."""
    fields = copy.deepcopy(recipe_fields)
    fields["data"] |= {"train": [str(little_text)], "validation": []}
    fields["tokenizer"] = {"path": str(teacher_folder / "tokenizer")}
    fields["training"] |= {"max_steps": STEPS, "warmup_steps": WARMUP, "learning_rate": PEAK}
    fields["training"] |= {"logging_steps": 1, "save_steps": 100}
    return fields


def run(fields, folder, resume=False, **training):
    changed = {**fields, "training": {**fields["training"], **training}}
    train(TrainRecipe.model_validate(changed), folder, resume=resume)
    return folder


def logged(folder, name):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries]


def linear(done):
    return LEAST + (1 - LEAST) * (1 - done)


def cosine(done):
    return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * done)) / 2


def stable(decay_steps):
    """The peak, and a cosine in the last steps."""
    start = (STEPS - WARMUP - decay_steps) / (STEPS - WARMUP)
    return lambda done: 1.0 if done < start else cosine((done - start) / (1 - start))


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (linear, {"lr_scheduler_type": "linear"}),
        (cosine, {"lr_scheduler_type": "cosine"}),
        (stable(4), {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 4}),
        (stable(1), {"lr_scheduler_type": "warmup_stable_decay"}),  # a tenth of the steps, at least one
        (lambda done: 1.0, {"lr_scheduler_type": "constant_with_warmup"}),
    ],
    ids=["linear", "cosine", "stable-4", "stable-default", "constant"],
)
def test_learning_rates_follow_their_schedule(shape, settings, fields, tmp_path):
    least = {} if settings["lr_scheduler_type"] == "constant_with_warmup" else {"min_lr_ratio": LEAST}
    rates = logged(run(fields, tmp_path / "run", **settings, **least), "learning_rate")
    for step, rate in enumerate(rates):  # steps made before
        done = (step - WARMUP) / (STEPS - WARMUP)
        # transformers' warm-up starts from the least rate in this schedule, and from 0 in all others.
        first = LEAST if settings["lr_scheduler_type"] == "warmup_stable_decay" else 0.0
        wanted = first + (1 - first) * step / WARMUP if step < WARMUP else shape(done)
        assert rate == pytest.approx(PEAK * wanted), f"step {step + 1}"


@pytest.mark.parametrize(
    ("name", "end"), [("linear", 1 / 9), ("cosine", (1 + math.cos(math.pi * 8 / 9)) / 2)]
)
def test_without_a_least_rate_schedules_end_near_zero(name, end, fields, tmp_path):
    rates = logged(run(fields, tmp_path / "run", lr_scheduler_type=name), "learning_rate")
    assert rates[-1] == pytest.approx(PEAK * end)


def unfinished(finished, step, folder):
    """A run as a kill after that step's checkpoint leaves it."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors"))
    shutil.copytree(finished / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    record = RunRecord.load(folder / "run.json")
    record.model_copy(update={"finished": False, "results": {}}).save(folder / "run.json")
    return folder


@pytest.fixture(scope="module")
def eager(fields, tmp_path_factory):
    """Two phases, without dropout, whose random numbers a compiler draws in another order."""
    fields = {**fields, "model": {**fields["model"], "attention_dropout": 0.0}}
    fields["training"] = {**fields["training"], "max_steps": 6, "save_steps": 2, "save_total_limit": None}
    return fields, run(fields, tmp_path_factory.mktemp("eager") / "run")


def assert_close(one, other):
    assert logged(other, "loss") == pytest.approx(logged(one, "loss"), abs=2e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=2e-4, msg=name)


@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],  # a minute of a compiler's
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch warns against
def test_compiled_steps_are_the_same_across_the_phases(backend, eager, tmp_path):
    fields, whole = eager
    assert_close(whole, run(fields, tmp_path / "run", torch_compile=True, torch_compile_backend=backend))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
def test_compiled_steps_are_the_same_after_a_resume(backend, eager, tmp_path):
    fields, whole = eager
    compiled = {"torch_compile": True, "torch_compile_backend": backend}
    assert_close(whole, run(fields, unfinished(whole, 4, tmp_path / "resumed"), True, **compiled))


@pytest.mark.parametrize("level", [True, "evaluation"])
def test_recomputed_steps_are_the_same_to_the_last_bit(level, eager, tmp_path):
    fields, whole = eager
    again = run(fields, tmp_path / "run", gradient_checkpointing=level)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def replace_loss(monkeypatch, number, change):
    """change(loss) in place of the number-th loss."""
    original, calls = learner_module.head_loss, []

    def head_loss(*args, **kwargs):
        calls.append(1)
        found = original(*args, **kwargs)
        return found._replace(loss=change(found.loss)) if len(calls) == number else found

    monkeypatch.setattr(learner_module, "head_loss", head_loss)


@pytest.mark.parametrize(
    "change",
    [
        lambda loss: loss + float("nan"),
        lambda loss: loss + float("inf"),
        lambda loss: loss * float("nan"),
        lambda loss: loss + (loss - loss.detach()) * float("inf"),
        lambda loss: loss + (loss - loss.detach()).sqrt().nan_to_num(0.0),
    ],
    ids=["nan", "inf", "nan-gradient", "inf-times-zero", "finite-loss-with-infinite-gradient"],
)
def test_a_bad_loss_or_a_bad_gradient_alone_costs_its_step(change, eager, tmp_path, monkeypatch):
    replace_loss(monkeypatch, 3, change)
    folder = run(eager[0], tmp_path / "run", save_steps=1)
    assert logged(folder, "skipped_steps") == [0, 0, 1, 1, 1, 1]
    assert logged(folder, "loss")[2] is None
    assert "NaN" not in (folder / "log.jsonl").read_text()
    before, after = (load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
