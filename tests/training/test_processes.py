"""Two processes train as one does: DDP, FSDP2, checkpoints that carry over, and one process in trouble."""

import os
import re
import signal
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
from iiad.training import DistillRecipe, TrainRecipe, train
from tests.helpers import change_loss, half_done, log_of

pytestmark = pytest.mark.xdist_group("commands")  # one server of processes is enough

STEPS, BAD = 6, 3
PIPELINE = {"layerwise": 2, "distill": 2, "recover": 1}
SPLIT = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": "layer",
}
HALF = {"per_device_train_batch_size": 2, "gradient_checkpointing": "evaluation"}
NAN = 0


@pytest.fixture(scope="module")
def fields(quick):
    """Make a recipe with an average, validation and iterations from the middle on: all that needs whole weights."""

    def make(model=None, **training):
        usual = {"learning_rate": 0.003, "ema_decay": 0.8, "eval_steps": 3, "save_steps": 2}
        usual |= {"save_total_limit": None}
        return quick(model={"attention_dropout": 0.0, **(model or {})}, **{**usual, **training})

    return make


@pytest.fixture(scope="module")
def relaxed(fields):
    """Make a recipe with a relaxation that no step uses before the iterations start."""
    return lambda **training: fields({"history": False, "relaxation": True}, max_steps=4, **training)


@pytest.fixture(scope="module")
def lesson(quick):
    """Make a recipe of three stages."""

    def make(**training):
        stages = {
            name: {"max_steps": steps, "warmup_steps": 1, "learning_rate": 0.003}
            for name, steps in PIPELINE.items()
        }
        section = {"temperature": 2.0, "hidden_weight": 0.1, "check_teacher": False, **stages}
        return {
            "data": quick()["data"],
            "distillation": section,
            "training": {"logging_steps": 1, **training},
        }

    return make


@pytest.fixture(scope="module")
def one(fields, tmp_path_factory):
    """The run of one process, whose third step is skipped for a loss that is NaN."""
    folder = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        change_loss(patch, lambda loss, call: loss * float("nan") if call == BAD else loss)
        train(TrainRecipe.model_validate(fields()), folder)
    return folder


@pytest.fixture
def together(commands, tmp_path):
    """Run a command line in two processes, with a recipe of these fields; the exit code and the folder of the run."""

    def run(fields, *arguments, name="run", **options):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(fields))
        words = ["distill", *arguments, "--recipe"] if "distillation" in fields else ["train"]
        words += [recipe, "--output-dir", tmp_path / name, "--resume"]
        return commands.run(*words, processes=2, **options), tmp_path / name

    return run


def figures(run, name):
    return {(entry["stage"], entry["step"]): entry[name] for entry in log_of(run, name=name)}


def assert_same_run(one, other, *names):
    for name in names or ("loss", "grad_norm", "eval_loss", "learning_rate", "skipped_steps"):
        assert figures(one, name)
        assert figures(other, name) == pytest.approx(figures(one, name), abs=2e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-4, msg=name)


def plan_for(teacher, path):
    Plan.explicit([1, 0], identify_model(load_model(teacher), teacher)).save(path)
    return path


def test_ddp_is_as_one_process_though_one_of_the_two_has_a_bad_loss_and_a_sigterm(
    one, fields, together, commands
):
    assert figures(one, "skipped_steps") == {("train", n): int(n >= BAD) for n in range(1, STEPS + 1)}
    faults = [("loss", 2 * BAD, NAN), ("step", BAD + 1, signal.SIGTERM)]
    code, run = together(fields(**SPLIT), faults=faults)
    last = run / f"checkpoint-{BAD + 1}"
    assert code == 75
    assert (run / "LATEST").read_text() == f"{last.name}\n"
    line = f"{run}: terminated; saved {last}; continue with --resume"
    assert [commands.errors(rank)[-1] for rank in (0, 1)] == [f"iiad: {line}", f"iiad: [process 1] {line}"]
    remarks = [[line for line in commands.errors(rank) if "skipped (1 so far)" in line] for rank in (0, 1)]
    assert [len(each) for each in remarks] == [1, 0]  # the first process speaks for all
    assert together(fields(**SPLIT))[0] == 0
    assert_same_run(one, run)
    assert commands.found(0)["weights"] == commands.found(1)["weights"]


def test_fsdp_goes_on_from_one_process_and_one_process_from_fsdp(one, fields, together, commands, tmp_path):
    half_done(one, BAD - 1, tmp_path / "run")
    code, run = together(fields(**HALF, fsdp=True), faults=[("loss", 1, NAN)])
    assert code == 0
    assert_same_run(one, run)
    assert commands.found(0)["weights"] == commands.found(1)["weights"]
    again = half_done(run, BAD + 1, tmp_path / "again")
    train(
        TrainRecipe.model_validate(fields(**{**SPLIT, "gradient_accumulation_steps": 4})), again, resume=True
    )
    assert_same_run(one, again)


def test_fsdp_distils_as_one_process_does_and_shards_the_teacher_too(
    one, lesson, together, commands, tmp_path
):
    plan = plan_for(one, tmp_path / "plan.json")
    recipe = DistillRecipe.model_validate(lesson(per_device_train_batch_size=4))
    distill(one, plan, recipe, tmp_path / "one")
    code, run = together(lesson(**HALF, fsdp=True), one, plan)
    assert code == 0
    assert list(figures(run, "loss")) == [
        (name, step) for name, steps in PIPELINE.items() for step in range(1, steps + 1)
    ]
    assert_same_run(tmp_path / "one", run, "loss", "ce", "kl", "hidden", "layer_1")
    first, second = (commands.found(rank) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["whole"] == second["whole"] == []


def test_what_cannot_be_used_is_one_line_from_each_process(fields, together, commands, tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    code, run = together({**fields(), "data": {"train": [str(tmp_path / "broken.jsonl")], "block_size": 32}})
    assert code == 2
    for rank in (0, 1):
        assert re.match(r"iiad: .*broken\.jsonl: line 1: ", commands.errors(rank)[-1])
    assert not run.exists()


@pytest.mark.slow
def test_parameters_without_use_do_not_hold_up_ddp(relaxed, lesson, together, tmp_path):
    teacher = tmp_path / "teacher"
    train(TrainRecipe.model_validate(relaxed()), teacher)
    code, run = together(relaxed(**HALF))
    assert code == 0
    assert_same_run(teacher, run)
    plan = plan_for(teacher, tmp_path / "plan.json")
    recipe = DistillRecipe.model_validate(lesson(per_device_train_batch_size=4))
    distill(teacher, plan, recipe, tmp_path / "student")
    code, run = together(lesson(**HALF), teacher, plan, name="distilled")
    assert code == 0
    assert_same_run(tmp_path / "student", run, "loss")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [HALF, {**SPLIT, "fsdp": True}], ids=["ddp", "fsdp"])
def test_torchrun_trains_as_one_process_does(settings, fields, tmp_path):
    one, two, recipe = tmp_path / "one", tmp_path / "two", tmp_path / "recipe.yaml"
    train(TrainRecipe.model_validate(fields()), one)
    recipe.write_text(yaml.safe_dump(fields(**settings)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    iiad = [Path(sys.executable).with_name("iiad"), "train", recipe, "--output-dir", two]
    subprocess.run([*torchrun, *iiad], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert_same_run(one, two)


@pytest.mark.parametrize("fsdp", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_learn_from_pairs_as_one_does(fsdp, pair_fields, together, tmp_path):
    fields = pair_fields(gradient_accumulation_steps=2, label_smoothing=0.1, eval_steps=3)
    train(TrainRecipe.model_validate(fields), tmp_path / "one")
    fields["training"] |= {"gradient_accumulation_steps": 1, "fsdp": fsdp}
    code, run = together(fields)
    assert code == 0
    assert_same_run(tmp_path / "one", run)


def test_two_processes_go_on_from_prompts_with_tokens_of_their_own(one, lesson, together, commands, tmp_path):
    fields = lesson(**HALF)
    stage = {"max_steps": 2, "warmup_steps": 0, "fraction": 0.5, "prompt_length": 12}
    fields["distillation"] |= {name: {"max_steps": 0} for name in PIPELINE} | {"onpolicy": stage}
    code, run = together(fields, one, plan_for(one, tmp_path / "plan.json"))
    assert code == 0
    assert [entry["ce"] > 0 for entry in log_of(run, "onpolicy")] == [True, False]
    assert commands.found(0)["weights"] == commands.found(1)["weights"]


@pytest.mark.parametrize(
    ("fsdp", "rule"),
    [(False, "sandwich"), (False, "single")]
    + [pytest.param(True, rule, marks=pytest.mark.slow) for rule in ("sandwich", "single")],
)
def test_two_processes_learn_nested_plans_as_one_does(fsdp, rule, one, lesson, together, tmp_path):
    def fields(**training):
        made = lesson(**training)
        made["distillation"] |= {
            "layerwise": {"max_steps": 0},
            "elastic": {"cuts": [0, 0.5, 0.75, 1], "rule": rule},
        }
        return made

    distill(one, None, DistillRecipe.model_validate(fields(per_device_train_batch_size=4)), tmp_path / "one")
    code, run = together(fields(**HALF, fsdp=fsdp), one)
    assert code == 0
    parts = ("kl_largest", "kl_smallest") if rule == "sandwich" else ("kl",)
    assert_same_run(tmp_path / "one", run, "loss", *parts)
