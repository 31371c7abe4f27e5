"""Kills, SIGTERM, Ctrl-C, limits on time and on disk: the resumed run ends as the unbroken one."""

import contextlib
import os
import random
import signal
import time
from functools import partial

import pytest
import yaml

from iiad.checkpoints import load_model
from iiad.distillation import distill
from iiad.errors import Unfinished
from iiad.training import DistillRecipe
from iiad.training.checkpointing import Checkpoints
from iiad.training.interruption import Interruption
from tests.helpers import log_of, refused

pytestmark = pytest.mark.xdist_group("commands")  # one server of processes is enough

PARTS = {"optimizer.pt", "state.json", "manifest.json", "average.safetensors", "README.md"}
STAGE = {"max_steps": 4, "warmup_steps": 1, "learning_rate": 0.003}
WATCHED = {"save_steps": 2, "logging_steps": 3, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def lesson(quick):
    """Three stages."""
    section = {"layerwise": STAGE, "distill": STAGE, "recover": STAGE, "check_teacher": False}
    training = {"per_device_train_batch_size": 4, **WATCHED}
    return {"data": quick()["data"], "distillation": section, "training": training}


@pytest.fixture(scope="module", params=["train", "distill"])
def arguments(request, quick, lesson, teacher_folder, plan_file, tmp_path_factory):
    """A command line without its output folder. Trains with dropout, two phases and an average."""
    recipe = tmp_path_factory.mktemp(request.param) / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(quick(max_steps=12, **WATCHED) if request.param == "train" else lesson))
    if request.param == "train":
        return ["train", recipe, "--resume"]
    return ["distill", teacher_folder, plan_file, "--recipe", recipe, "--resume"]


@pytest.fixture(scope="module")
def unbroken(arguments, commands, tmp_path_factory):
    """The folder of the run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert commands.run(*arguments, "--output-dir", folder) == 0
    return folder


def timeless(run):
    """Its log without what differs from run to run."""
    timed = {"seconds", "tokens_per_second", "memory_bytes"}
    return [
        {name: value for name, value in entry.items() if name not in timed}
        for entry in log_of(run, name=None)
    ]


def assert_ends_like(unbroken, run):
    (run.parent / "new").touch()
    assert timeless(run) == timeless(unbroken)  # losses, too, of which a kill came in the middle
    files = {path.relative_to(unbroken): path for path in unbroken.rglob("*") if path.is_file()}
    assert {path.relative_to(run) for path in run.rglob("*") if path.is_file()} == files.keys()
    mode = (run.parent / "new").stat().st_mode  # as the umask leaves it
    for name, path in files.items():
        assert (run / name).stat().st_mode == path.stat().st_mode == mode, name
        # Pickles hold what is shared as shared, and the manifest their hashes.
        if name.name not in ("log.jsonl", "optimizer.pt", "manifest.json"):
            assert (run / name).read_bytes() == path.read_bytes(), name
    assert [path for path in run.rglob(".*") if path.parent.name != "run"] == []


def newest(run):
    """The newest checkpoint, which its pointer names."""
    last = max(run.rglob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    assert (last.parent / "LATEST").read_text() == f"{last.name}\n"
    return last


def die_in_a_save(start, run, commands):
    assert start(faults=[("save", 2, signal.SIGKILL)]) == -signal.SIGKILL
    assert any(run.rglob(".checkpoint-*"))


def receive_sigterm(start, run, commands):
    assert start(faults=[("step", 3, signal.SIGTERM)]) == 75
    [*_, line] = commands.errors()
    assert line == f"iiad: {run}: terminated; saved {newest(run)}; continue with --resume"


def receive_ctrl_c(start, run, commands):
    assert start(faults=[("step", 2, signal.SIGINT)]) == 130


def run_out_of_time(start, run, commands):
    assert start("--max-minutes", 0.0001) == 75
    [*_, line] = commands.errors()
    assert line == f"iiad: {run}: 0.0001 minutes are over; saved {newest(run)}; continue with --resume"


def fill_the_disk(start, run, commands):
    """Leave room for the weights and not for the optimizer's two moments of each; the log stays below."""
    last = newest(run)
    assert start(file_bytes=int(1.2 * (last / "model.safetensors").stat().st_size)) == 2
    [*_, line] = commands.errors()
    assert line.startswith(f"iiad: {last.parent / 'checkpoint-'}")
    assert ": cannot be written: " in line
    assert line.endswith(f"; last whole checkpoint: {last}")
    assert [path.name for path in last.parent.glob(".checkpoint*")] == []


@pytest.mark.parametrize(
    ("arguments", "troubles"),
    [
        ("train", [run_out_of_time, run_out_of_time, fill_the_disk, die_in_a_save, receive_sigterm, receive_ctrl_c]),
        ("distill", [die_in_a_save, receive_sigterm]),
    ],
    ids=["train", "distill"],
    indirect=["arguments"],
)  # fmt: skip
def test_a_run_of_many_troubles_ends_as_the_unbroken_one(arguments, troubles, unbroken, commands, tmp_path):
    run = tmp_path / "run"
    start = partial(commands.run, *arguments, "--output-dir", run)
    for trouble in troubles:
        trouble(start, run, commands)
        assert not (run / "config.json").exists()
    assert start() == 0
    assert_ends_like(unbroken, run)


def test_of_two_runs_that_start_at_once_one_is_refused_and_one_ends_as_the_unbroken_one(
    arguments, unbroken, commands, tmp_path
):
    run = tmp_path / "run"
    pids = commands.start(*arguments, "--output-dir", run, processes=2, joined=False)
    codes = commands.read()
    assert sorted(codes) == [0, 2]
    winner = codes.index(0)
    [line] = [line for line in commands.errors(1 - winner) if line.startswith("iiad: ")]
    assert line.startswith(f"iiad: {run}: is being written by process {pids[winner]} on ")
    assert_ends_like(unbroken, run)


@pytest.mark.slow
def test_kills_at_any_moment_leave_whole_checkpoints_and_do_not_change_the_end(
    arguments, unbroken, commands, tmp_path
):
    rng, kills, seconds = random.Random(20), 0, 2.0
    while kills < 6:
        run, code = tmp_path / f"run-{seconds}", -signal.SIGKILL
        while code == -signal.SIGKILL:
            [pid] = commands.start(*arguments, "--output-dir", run)
            time.sleep(rng.uniform(0.05, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            [code] = commands.read()
            kills += code == -signal.SIGKILL
            for checkpoint in run.rglob("checkpoint-*"):
                load_model(checkpoint)
                assert {path.name for path in checkpoint.iterdir()} >= PARTS
        assert_ends_like(unbroken, run)
        seconds *= 0.7  # it came too late


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "soon"])
def test_a_limit_that_is_none_is_refused(minutes, iiad, quick, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(quick()))
    run = tmp_path / "run"
    code, _, err = iiad("train", tmp_path / "recipe.yaml", "--output-dir", run, "--max-minutes", minutes)
    assert code == 2
    assert "max-minutes" in err.splitlines()[-1].replace("_", "-")
    assert not run.exists()


@pytest.mark.parametrize("moment", ["in the step", "while it is saved"])
def test_a_sigterm_in_the_last_step_of_a_stage_is_not_forgotten(
    moment, lesson, teacher_folder, plan_file, tmp_path, monkeypatch, capsys
):
    fields = {**lesson, "distillation": {**lesson["distillation"], "layerwise": {"max_steps": 0}}}
    run, recipe = tmp_path / "run", DistillRecipe.model_validate(fields)
    save = Checkpoints.save

    def save_terminated(self, step, *args):
        if step == STAGE["max_steps"]:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, step, *args)

    def terminate(number):
        if number == STAGE["max_steps"]:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        if moment == "while it is saved":
            patch.setattr(Checkpoints, "save", save_terminated)
        with pytest.raises(Unfinished, match=r"terminated; saved .*checkpoint-4; continue with --resume"):
            distill(
                teacher_folder, plan_file, recipe, run, on_step=terminate if moment == "in the step" else None
            )
    assert {entry["stage"] for entry in log_of(run)} == {"distill"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    distill(teacher_folder, plan_file, recipe, run, resume=True)
    assert "distill: all steps were made before; not run again" in capsys.readouterr().err
    assert [entry["step"] for entry in log_of(run, "recover")] == [3]


def test_time_begins_with_the_limit_and_none_is_never_over(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = Interruption(2)
    now += 119
    assert not limit.is_due()
    now += 1
    assert limit.is_due()
    assert not Interruption(None).is_due()
    with refused("--max-minutes: expected a number above 0, got -3"):
        Interruption(-3)
