"""Kills at any moment, SIGTERM, Ctrl-C, limits on time and on disk: the resumed run ends as the unbroken one."""

import contextlib
import copy
import json
import os
import random
import signal
import time

import pytest
import yaml

from iiad import InputError
from iiad.checkpoints import identify_model, load_model
from iiad.distillation import distill
from iiad.errors import Unfinished
from iiad.planning import Plan
from iiad.training import DistillRecipe, RunRecord, TrainRecipe, train
from iiad.training.checkpointing import Checkpoints
from iiad.training.interruption import TimeLimit
from tests.training.forking import Commands, wait_until

pytestmark = pytest.mark.xdist_group(
    "interruption"
)  # what its fixtures make is long in the making: once is enough

STEPS, SWITCH = 12, 6
PARTS = {"optimizer.pt", "state.json", "manifest.json", "average.safetensors", "README.md"}
STAGE = {"max_steps": 4, "warmup_steps": 1, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """`iiad` in other processes."""
    commands = Commands(tmp_path_factory.mktemp("commands") / "stderr")
    commands.run("--help")  # from now on it starts at once
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def fields(recipe_fields, little_text, teacher_folder):
    """Dropout, two phases, an average and a checkpoint at every second step of a run on little text."""
    fields = copy.deepcopy(recipe_fields)
    fields["data"] |= {"train": [str(little_text)], "validation": [str(little_text)]}
    fields["tokenizer"] = {"path": str(teacher_folder / "tokenizer")}
    fields["training"] |= {"max_steps": STEPS, "save_steps": 2, "logging_steps": 3, "ema_decay": 0.9}
    return fields


@pytest.fixture(scope="module")
def lesson(fields):
    """Three stages."""
    training = {name: fields["training"][name] for name in ("save_steps", "logging_steps", "ema_decay")}
    section = {"layerwise": STAGE, "distill": STAGE, "recover": STAGE, "check_teacher": False}
    return {
        "data": fields["data"],
        "distillation": section,
        "training": {**training, "per_device_train_batch_size": 4},
    }


@pytest.fixture(scope="module")
def plan_file(teacher_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    Plan.explicit([1, 0], identify_model(load_model(teacher_folder), teacher_folder)).save(path)
    return path


@pytest.fixture(scope="module", params=["train", "distill"])
def arguments(request, fields, lesson, teacher_folder, plan_file, tmp_path_factory):
    """A command line without its output folder."""
    recipe = tmp_path_factory.mktemp(request.param) / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(fields if request.param == "train" else lesson))
    if request.param == "train":
        return ["train", recipe]
    return ["distill", teacher_folder, plan_file, "--recipe", recipe]


@pytest.fixture(scope="module")
def unbroken(arguments, commands, tmp_path_factory):
    """The folder of the run that nothing interrupted, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    started = time.monotonic()
    assert commands.run(*arguments, "--output-dir", folder) == 0
    return folder, time.monotonic() - started


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


def log_of(folder):
    """Its lines, without what differs from run to run."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = {"seconds", "tokens_per_second", "memory_bytes"}
    return [{name: value for name, value in entry.items() if name not in timed} for entry in entries]


def assert_ends_like(unbroken, run):
    assert weights_of(run) == weights_of(unbroken)
    assert log_of(run) == log_of(unbroken)  # losses, too, of which a kill came in the middle
    assert RunRecord.load(run / "run.json").results == RunRecord.load(unbroken / "run.json").results
    assert [path for path in run.rglob(".*") if path.parent.name != "run"] == []


def kill(pid, commands):
    """Whether the command was still there to be killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return commands.wait() == -signal.SIGKILL


def test_kills_at_any_moment_and_during_saves_do_not_change_the_end(arguments, unbroken, commands, tmp_path):
    rng = random.Random(20)
    whole, seconds = unbroken
    runs, kills = [tmp_path / "run-0"], []
    for moment in ["any", "saving", "any", "after the switch", "saved", "saving"]:
        run = runs[-1]
        pid = commands.start(*arguments, "--output-dir", run, "--resume")
        if moment == "any":
            time.sleep(rng.uniform(0.05, 0.6) * seconds)
        elif moment == "saving":
            wait_until(lambda run=run: any(run.rglob(".checkpoint-*")), pid)
            time.sleep(rng.uniform(0, 0.01))
        elif moment == "saved":
            before = checkpoints_of(run)
            wait_until(lambda run=run, before=before: checkpoints_of(run) != before, pid)
        else:
            wait_until(lambda run=run: has_logged(run, SWITCH + 3), pid)
        if kill(pid, commands):
            kills.append(moment)
        else:  # a machine that is busy at other times: the run was over, and the next kills are another's
            runs.append(tmp_path / f"run-{len(runs)}")
        for checkpoint in checkpoints_of(run):
            load_model(checkpoint)
            assert {path.name for path in checkpoint.iterdir()} >= PARTS
    assert len(kills) >= 3
    for run in runs:
        if not (run / "config.json").exists():
            assert commands.run(*arguments, "--output-dir", run, "--resume") == 0
        assert_ends_like(whole, run)


def has_logged(run, step):
    log = run / "log.jsonl"
    return log.exists() and f'"step": {step},' in log.read_text()


def checkpoints_of(run):
    """Those of all stages, in a folder from which others may be removed just now."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return [path for path in run.rglob("checkpoint-*") if path.is_dir()]


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [("train", signal.SIGTERM, 75), ("distill", signal.SIGTERM, 75), ("train", signal.SIGINT, 130)],
    indirect=["arguments"],
)
def test_a_signal_leaves_in_order(number, code, arguments, unbroken, commands, tmp_path):
    whole = unbroken[0]
    for attempt in range(5):  # on a busy machine a run may be over before the signal is sent
        run = tmp_path / f"run-{attempt}"
        pid = commands.start(*arguments, "--output-dir", run)
        wait_until(lambda run=run: has_logged(run, 3), pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        ended = commands.wait()
        if ended:
            break
    assert ended == code
    stage = next(run.rglob("checkpoint-*")).parent
    last = Checkpoints(stage).newest()
    assert (stage / "LATEST").read_text() == f"{last.name}\n"
    if number == signal.SIGTERM:
        assert commands.last_line() == f"iiad: {run}: terminated; saved {last}; continue with --resume"
        assert last.name >= "checkpoint-3"
    assert commands.run(*arguments, "--output-dir", run, "--resume") == 0
    assert_ends_like(whole, run)


@pytest.mark.parametrize("arguments", ["train"], indirect=True)
def test_a_limit_on_the_minutes_leaves_in_order_as_often_as_it_is_met(
    arguments, unbroken, commands, tmp_path
):
    run, limit = tmp_path / "run", ("--max-minutes", 0.0001)
    assert commands.run(*arguments, "--output-dir", run, *limit) == 75
    last = next(run.rglob("checkpoint-1"))
    assert (
        commands.last_line() == f"iiad: {run}: 0.0001 minutes are over; saved {last}; continue with --resume"
    )
    assert commands.run(*arguments, "--output-dir", run, "--resume", *limit) == 75
    assert Checkpoints(last.parent).newest().name == "checkpoint-2"
    assert commands.run(*arguments, "--output-dir", run, "--resume") == 0
    assert_ends_like(unbroken[0], run)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "soon"])
def test_a_limit_that_is_none_is_refused(minutes, commands, fields, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    run = tmp_path / "run"
    assert commands.run("train", tmp_path / "recipe.yaml", "--output-dir", run, "--max-minutes", minutes) == 2
    assert "max-minutes" in commands.last_line()
    assert not run.exists()


@pytest.mark.parametrize("arguments", ["train"], indirect=True)
def test_a_disk_that_fills_up_is_one_line_and_what_was_saved_goes_on(arguments, unbroken, commands, tmp_path):
    whole, run = unbroken[0], tmp_path / "run"
    # Enough for the weights and not for the optimizer's two moments of each; the log stays below.
    size = (whole / "model.safetensors").stat().st_size
    assert commands.run(*arguments, "--output-dir", run, "--max-minutes", 0.0001) == 75
    last = next(run.rglob("checkpoint-1"))
    code = commands.run(*arguments, "--output-dir", run, "--resume", file_bytes=int(1.2 * size))
    assert code == 2
    line = commands.last_line()
    assert line.startswith(f"iiad: {last.with_name('checkpoint-2')}: cannot be written: ")
    assert line.endswith(f"; last whole checkpoint: {last}")
    assert [path.name for path in last.parent.glob(".checkpoint*")] == []
    assert commands.run(*arguments, "--output-dir", run, "--resume") == 0
    assert_ends_like(whole, run)


def terminate(*args):
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_at(step):
    """SIGTERM in that step, counted from 1."""
    return lambda number: terminate() if number == step else None


@pytest.mark.parametrize("moment", ["in the step", "while it is saved"])
def test_a_sigterm_in_the_last_step_of_a_stage_is_not_forgotten(
    moment, lesson, teacher_folder, plan_file, tmp_path, monkeypatch, capsys
):
    run, recipe, stages = tmp_path / "run", DistillRecipe.model_validate(lesson), []
    save = Checkpoints.save

    def save_terminated(self, step, *args):
        if "distill" in self.folder.name and step == STAGE["max_steps"]:
            terminate()
        save(self, step, *args)

    def on_step(number):
        stages.extend([number] if number == 1 else [])
        if len(stages) == 2 and number == STAGE["max_steps"] and moment == "in the step":
            terminate()

    with monkeypatch.context() as patch:
        if moment == "while it is saved":
            patch.setattr(Checkpoints, "save", save_terminated)
        with pytest.raises(Unfinished, match=r"terminated; saved .*checkpoint-4; continue with --resume"):
            distill(teacher_folder, plan_file, recipe, run, on_step=on_step)
    assert {entry["stage"] for entry in log_of(run)} == {"layerwise", "distill"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    distill(teacher_folder, plan_file, recipe, run, resume=True)
    remarks = capsys.readouterr().err
    for stage in ("layerwise", "distill"):
        assert f"{stage}: all steps were made before; not run again" in remarks
    assert [entry["step"] for entry in log_of(run) if entry["stage"] == "recover"] == [3]


def test_a_sigterm_between_checkpoints_saves_the_step_that_was_made(fields, tmp_path):
    with pytest.raises(Unfinished):
        train(TrainRecipe.model_validate(fields), tmp_path / "run", on_step=terminate_at(5))
    assert Checkpoints(tmp_path / "run").newest().name == "checkpoint-5"
    assert not (tmp_path / "run" / "config.json").exists()


def test_time_begins_with_the_limit_and_none_is_never_over(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = TimeLimit(2)
    now += 119
    assert not limit.over
    now += 1
    assert limit.over
    assert not TimeLimit(None).over
    with pytest.raises(InputError, match="--max-minutes: must be above 0, found -3"):
        TimeLimit(-3)
