"""Two processes train as one does: DDP, FSDP2, checkpoints that carry over, and one process in trouble."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from iiad.checkpoints import identify_model, load_model
from iiad.distillation import distill
from iiad.planning import Plan
from iiad.training import DistillRecipe, RunRecord, TrainRecipe, train
from iiad.training.checkpointing import Checkpoints

pytestmark = pytest.mark.xdist_group(
    "processes"
)  # what its fixtures make is long in the making: once is enough

ROOT = Path(__file__).parents[2]
STEPS = 8
PIPELINE = {"layerwise": 2, "distill": 3, "recover": 2}


@pytest.fixture(scope="module")
def data(recipe_fields, little_text):
    """A little text: its tokenizing and validation are not what is tested here."""
    return {**recipe_fields["data"], "train": [str(little_text)]}


@pytest.fixture(scope="module")
def fields(recipe_fields, data, teacher_folder):
    """Iterations from the middle on, an average, validation: what needs whole weights, sharded or not."""
    fields = copy.deepcopy({**recipe_fields, "data": data})
    fields["tokenizer"] = {"path": str(teacher_folder / "tokenizer")}
    fields["model"]["attention_dropout"] = 0.0
    fields["training"] |= {"max_steps": STEPS, "logging_steps": 1, "learning_rate": 0.003, "ema_decay": 0.8}
    fields["training"] |= {"eval_steps": 4, "save_total_limit": None}
    return fields


def change(fields, **training):
    return {**fields, "training": {**fields["training"], **training}}


def relaxed(fields, **training):
    """Without history, with a relaxation that no step uses before the iterations start."""
    model = {**fields["model"], "history": False, "relaxation": True}
    return change({**fields, "model": model}, max_steps=4, **training)


def lesson(data, **training):
    stages = {
        name: {"max_steps": steps, "warmup_steps": 1, "learning_rate": 0.003}
        for name, steps in PIPELINE.items()
    }
    section = {"temperature": 2.0, "hidden_weight": 0.1, "check_teacher": False, **stages}
    training = {"per_device_train_batch_size": 2, "logging_steps": 1, **training}
    return {"data": data, "distillation": section, "training": training}


def half_done(finished, step, folder):
    """A run's folder as a kill after that step's checkpoint leaves it."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors"))
    shutil.copytree(finished / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    record = RunRecord.load(folder / "run.json")
    record.model_copy(update={"finished": False, "results": {}}).save(folder / "run.json")
    return folder


@pytest.fixture(scope="module")
def alone(fields, data, tmp_path_factory):
    """What one process does: a teacher, a plan for it and a student."""
    folder = tmp_path_factory.mktemp("alone")
    train(TrainRecipe.model_validate(fields), folder / "train")
    identity = identify_model(load_model(folder / "train"), folder / "train")
    Plan.explicit([1, 0], identity).save(folder / "plan.json")
    recipe = DistillRecipe.model_validate(lesson(data, per_device_train_batch_size=4))
    distill(folder / "train", folder / "plan.json", recipe, folder / "distill")
    train(TrainRecipe.model_validate(relaxed(fields)), folder / "relaxed")
    identity = identify_model(load_model(folder / "relaxed"), folder / "relaxed")
    Plan.explicit([1, 0], identity).save(folder / "relaxed-plan.json")
    distill(folder / "relaxed", folder / "relaxed-plan.json", recipe, folder / "relaxed-distill")
    return folder


@pytest.fixture(scope="module")
def together(alone, fields, data, tmp_path_factory):
    """The folder of what two processes did, and what each of them found, by job."""
    folder = tmp_path_factory.mktemp("together")
    half_done(alone / "train", 4, folder / "from-one")
    (folder / "broken.jsonl").write_text('{"text": \n')
    broken = {**fields, "data": {**fields["data"], "train": [str(folder / "broken.jsonl")]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(change(fields, per_device_train_batch_size=2)))
    command = ["train", str(folder / "recipe.yaml"), "--output-dir", str(folder / "terminated")]
    two = {"per_device_train_batch_size": 2}
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    jobs = [
        {"name": "ddp", "recipe": change(fields, **two)},
        {"name": "fsdp", "recipe": change(fields, **two, fsdp=True)},
        {"name": "ddp-split", "recipe": change(fields, **split, gradient_checkpointing="layer")},
        {
            "name": "fsdp-split",
            "recipe": change(fields, **split, fsdp=True, gradient_checkpointing="evaluation"),
        },
        {"name": "from-one", "recipe": change(fields, **two, fsdp=True), "resume": True},
        {"name": "ddp-nan", "recipe": change(fields, **two), "act": "nan", "at": 3},
        {"name": "fsdp-nan", "recipe": change(fields, **two, fsdp=True), "act": "nan", "at": 3},
        {"name": "broken", "recipe": broken},
        {"name": "distill", "kind": "distill", "recipe": lesson(data, fsdp=True)},
        {"name": "relaxed", "recipe": relaxed(fields, **two)},
        {
            "name": "relaxed-distill",
            "kind": "distill",
            "recipe": lesson(data),
            "teacher": str(alone / "relaxed"),
            "plan": str(alone / "relaxed-plan.json"),
        },
        {"name": "terminated", "kind": "command", "arguments": command, "act": "terminate", "at": 3},
    ]
    common = {"kind": "train", "teacher": str(alone / "train"), "plan": str(alone / "plan.json")}
    jobs = [{**common, "folder": str(folder / job["name"]), **job} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.training.jobs", str(folder / "jobs.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    return folder, found, done.stderr


def losses(folder, name="loss"):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {(entry["stage"], entry["step"]): entry[name] for entry in entries if name in entry}


def assert_same_run(one, other, atol=2e-5):
    for name in ("loss", "grad_norm", "eval_loss", "learning_rate"):
        assert losses(one, name)
        assert losses(other, name) == pytest.approx(losses(one, name), abs=atol)
    assert_same_weights(one, other)


def assert_same_weights(one, other):
    before, after = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("job", ["ddp", "fsdp", "ddp-split", "fsdp-split"])
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(job, alone, together):
    assert len(losses(alone / "train")) == STEPS
    assert_same_run(alone / "train", together[0] / job)


@pytest.mark.parametrize("job", ["relaxed", "relaxed-distill"])
def test_parameters_without_use_do_not_hold_up_ddp(job, alone, together):
    for found in together[1]:
        assert "error" not in found[job]
    assert losses(together[0] / job) == pytest.approx(losses(alone / job), abs=2e-5)
    assert_same_weights(alone / job, together[0] / job)


@pytest.mark.parametrize("job", ["ddp", "fsdp", "ddp-nan", "fsdp-nan", "distill"])
def test_both_processes_end_with_the_same_weights(job, together):
    first, second = (found[job]["weights"] for found in together[1])
    assert first == second


def test_distillation_in_two_processes_has_the_losses_of_one_in_every_stage(alone, together):
    one, two = losses(alone / "distill"), losses(together[0] / "distill")
    assert (
        list(one)
        == [(name, step) for name, steps in PIPELINE.items() for step in range(1, steps + 1)]
        == list(two)
    )
    for name in ("loss", "ce", "kl", "hidden", "layer_1"):
        assert losses(together[0] / "distill", name) == pytest.approx(
            losses(alone / "distill", name), abs=2e-5
        )
    assert_same_weights(alone / "distill", together[0] / "distill")


def test_the_teacher_is_sharded_too(together):
    for found in together[1]:
        assert any("layers.1.mlp" in name for name in found["distill"]["sharded"])
        assert found["distill"]["whole"] == []


@pytest.mark.parametrize("job", ["ddp", "fsdp"])
def test_one_process_goes_on_from_a_checkpoint_of_two(job, alone, together, fields, tmp_path):
    run = half_done(together[0] / job, 4, tmp_path / "run")
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    train(TrainRecipe.model_validate(change(fields, **split)), run, resume=True)
    assert_same_run(alone / "train", run)


def test_two_processes_go_on_from_a_checkpoint_of_one(alone, together):
    assert_same_run(alone / "train", together[0] / "from-one")


@pytest.mark.parametrize("job", ["ddp-nan", "fsdp-nan"])
def test_a_bad_loss_in_one_process_makes_both_skip_the_step(job, alone, together):
    folder = together[0] / job
    skipped = losses(folder, "skipped_steps")
    assert list(skipped.values()) == [0, 0] + (STEPS - 2) * [1]
    assert losses(folder)["train", 3] is None
    assert losses(folder)["train", 2] == pytest.approx(losses(alone / "train")["train", 2], abs=2e-5)


def test_a_sigterm_to_one_process_makes_all_save_and_leave(together):
    folder, found, errors = together
    assert [each["terminated"]["code"] for each in found] == [75, 75]
    run = folder / "terminated"
    assert Checkpoints(run).newest().name == "checkpoint-3"
    assert (run / "LATEST").read_text() == "checkpoint-3\n"
    assert f"iiad: {run}: terminated; saved {run / 'checkpoint-3'}; continue with --resume\n" in errors


def test_what_cannot_be_used_is_one_line_from_each_process(together):
    for found in together[1]:
        assert re.match(r"InputError: .*broken\.jsonl: line 1: ", found["broken"]["error"])
    assert not (together[0] / "broken").exists()


def test_the_first_process_speaks_for_all(together):
    _, _, errors = together
    remarks = [line for line in errors.splitlines() if "skipped (1 so far)" in line]
    assert len(remarks) == 2  # one in each of two runs
