"""Checkpoints: whole whenever a kill comes, the newest and the best pointed to, with all that they need."""

import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from iiad import InputError
from iiad.training import RunRecord, TrainRecipe, train
from iiad.training.checkpointing import Checkpoints, StageState
from iiad.training.corpora import Corpora
from iiad.training.scoring import TokenScore
from tests.helpers import log_of

FILES = {"config.json": "{}", "model.safetensors": "weights", "optimizer.pt": "moments"}


class Killed(BaseException):
    """A kill -9: from its moment on, no file operation is done any more."""


class Disk:
    """Counts file operations and, from the fatal one on, does none; of a deletion it does a part before it dies."""

    def __init__(self, monkeypatch, fatal=None):
        self.fatal, self.count = fatal, 0
        for module, name in ((os, "replace"), (os, "fsync"), (os, "mkdir"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name), name == "rmtree"))

    def wrap(self, operation, deletes):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.fatal is not None and self.count >= self.fatal:
                if deletes and self.count == self.fatal:
                    for path in sorted(Path(args[0]).glob("*.pt")):
                        path.unlink()
                raise Killed
            return operation(*args, **kwargs)

        return wrapped


def save(folder, step, best_step=None, limit=1):
    def write(made):
        for name, text in FILES.items():
            (made / name).write_text(text)
        StageState(step=step).save(made)

    Checkpoints(folder, limit).save(step, write, best_step)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 2, the best, and 4."""
    folder = tmp_path / "run"
    save(folder, 2, best_step=2)
    save(folder, 4, best_step=2)
    return folder


def count_operations(folder, step, best_step, monkeypatch):
    shutil.copytree(folder, folder.with_name("counted"))
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        save(folder.with_name("counted"), step, best_step)
    return disk.count


# A new one, a new one that is the best, and one that is there and made anew.
@pytest.mark.parametrize(("step", "best_step"), [(6, 2), (6, 6), (4, 2)])
def test_a_kill_at_any_file_operation_leaves_whole_checkpoints_alone(step, best_step, folder, monkeypatch):
    number = count_operations(folder, step, best_step, monkeypatch)
    assert number > 10
    for fatal in range(1, number + 1):
        run = folder.with_name(f"run-{fatal}")
        shutil.copytree(folder, run)
        with monkeypatch.context() as patch:
            Disk(patch, fatal)
            with pytest.raises(Killed):
                save(run, step, best_step)
        whole = Checkpoints(run).all()
        newest = Checkpoints(run).newest_whole()
        assert newest == whole[-1]
        assert newest.name in ("checkpoint-2", "checkpoint-4", f"checkpoint-{step}")
        assert step == 4 or newest.name != "checkpoint-2"
        for checkpoint in whole:
            assert {path.name for path in checkpoint.iterdir()} == {*FILES, "state.json", "manifest.json"}
        for pointer in ("LATEST", "BEST"):
            assert step == 4 or (run / (run / pointer).read_text().strip()).is_dir()
        # The resumed run comes to the same step, and nothing of the kill is left.
        save(run, step, best_step)
        assert Checkpoints(run).newest().name == f"checkpoint-{step}"
        assert (run / "LATEST").read_text() == f"checkpoint-{step}\n"
        left = {path.name for path in run.iterdir()}
        assert left == {"LATEST", "BEST", f"checkpoint-{step}", f"checkpoint-{best_step}"}


@pytest.mark.parametrize("file", [*FILES, "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "another"])
def test_a_damaged_checkpoint_is_passed_over_with_a_remark(file, damage, folder, capsys):
    path = folder / "checkpoint-4" / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("" if damage == "empty" else "x" * path.stat().st_size)
    assert Checkpoints(folder).newest_whole().name == "checkpoint-2"
    remark = capsys.readouterr().err
    assert f"checkpoint-4: {file} is " in remark
    assert remark.endswith("; going on from checkpoint-2\n")


def test_damaged_checkpoints_alone_are_refused_by_name(folder):
    for checkpoint in Checkpoints(folder).all():
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(
        InputError, match=r"checkpoint-4: optimizer\.pt is missing; .*checkpoint-2: .*; no whole"
    ):
        Checkpoints(folder).newest_whole()


def test_the_newest_and_the_best_are_kept(folder):
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "checkpoint-4", "LATEST", "BEST"}
    save(folder, 6, best_step=6)
    assert {path.name for path in folder.iterdir()} == {"checkpoint-6", "LATEST", "BEST"}
    assert (folder / "BEST").read_text() == (folder / "LATEST").read_text() == "checkpoint-6\n"


def test_other_names_are_no_checkpoints(folder):
    (folder / "checkpoint-best").mkdir()
    (folder / "checkpoint-10.bak").mkdir()
    (folder / ".checkpoint-12-deleted").mkdir()
    assert [path.name for path in Checkpoints(folder).all()] == ["checkpoint-2", "checkpoint-4"]


def test_what_cannot_be_written_is_one_line_that_names_the_last_whole_checkpoint(folder):
    def fill_the_disk(made):
        (made / "model.safetensors").write_text("wei")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"checkpoint-6: cannot be written: .*No space.*checkpoint-4$"):
        Checkpoints(folder).save(6, fill_the_disk)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def watched(quick, tmp_path_factory):
    """A run of four steps whose second validation finds the best model; the checkpoints at each validation."""
    fields = quick(max_steps=4, save_steps=1, eval_steps=1, save_total_limit=1)
    found, seen, folder = iter([5.0, 3.0, 4.0, 4.0, 4.0]), [], tmp_path_factory.mktemp("watched") / "run"

    def remember(self, *args):
        seen.append([int(path.name[-1]) for path in sorted(folder.glob("checkpoint-*"))])
        return TokenScore(100, next(found), 0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Corpora, "score_validation", remember)
        train(TrainRecipe.model_validate(fields), folder)
    return folder, seen


def test_the_best_checkpoint_outlives_newer_ones(watched):
    folder, seen = watched
    assert (folder / "BEST").read_text() == "checkpoint-2\n"
    assert (folder / "LATEST").read_text() == "checkpoint-4\n"
    assert seen == [[], [1], [2], [2, 3], [2, 4]]
    assert StageState.load(folder / "checkpoint-4").best == {"step": 2, "eval_loss": 3.0}


def test_a_checkpoint_is_a_model_with_tokenizer_and_card(watched):
    folder, _ = watched
    for checkpoint in Checkpoints(folder).all():
        step = checkpoint.name.rpartition("-")[2]
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        assert len(AutoTokenizer.from_pretrained(checkpoint)) == model.config.vocab_size
        card = (checkpoint / "README.md").read_text()
        assert f"- iterations per layer (the plan): {model.config.num_iterations}" in card
        assert f"- step: {step}\n" in card
        assert "- stage: train\n" in card
        assert "- best: step 2, eval loss 3.0000\n" in card
        assert re.search(r"- loss: \d\.\d{4}\n", card)
        assert f"- eval loss: {3 if step == '2' else 4}.0000\n" in card
        for name, value in RunRecord.load(folder / "run.json").inputs.items():
            assert f"- {name}: `{value[:16]}` (sha256)" in card


def test_every_logged_step_has_its_figures(watched):
    entries = log_of(watched[0])
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]  # also where the step was validated
    names = {"stage", "step", "loss", "ce", "learning_rate", "grad_norm", "skipped_steps", "seconds", "epoch"}
    names |= {"tokens_per_second", "memory_bytes", "evaluations_per_token"}
    for entry in entries:
        assert set(entry) == names
        assert entry["tokens_per_second"] > 0
        assert entry["memory_bytes"] > 1e7
    assert [entry["step"] for entry in log_of(watched[0], name="eval_loss")] == [1, 2, 3, 4]


def test_a_better_model_is_saved_where_validation_is_rarer_than_saving(trained):
    """Validated at steps that are saved by no other rule: BEST would never be there."""
    run = trained(max_steps=4, save_steps=2, eval_steps=3)
    assert (run / "BEST").read_text() == "checkpoint-3\n"
    assert (run / "LATEST").read_text() == "checkpoint-4\n"
