"""Every file of an unfinished run, damaged in every way: refused by name, or passed over with a remark."""

import json
import os
import pickle
import shutil

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.training import RunRecord, TrainRecipe, train
from iiad.training.checkpointing import Checkpoints, write_manifest
from tests.helpers import refused

STEPS = 5


@pytest.fixture(scope="module")
def recipe(quick):
    """Five steps with dropout, two phases and an average; its own tokenizer."""
    own = {"vocab_size": 300}
    settings = {"max_steps": STEPS, "save_steps": 2, "ema_decay": 0.9, "save_total_limit": None}
    return quick(tokenizer=own, **settings)


@pytest.fixture(scope="module")
def unbroken(recipe, tmp_path_factory):
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(TrainRecipe.model_validate(recipe), folder)
    return folder


@pytest.fixture(scope="module")
def interrupted(recipe, tmp_path_factory):
    """A run that stopped before its last step, with two checkpoints."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"

    def interrupt(step):
        if step == STEPS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TrainRecipe.model_validate(recipe), folder, on_step=interrupt)
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def run(interrupted, tmp_path):
    """A copy of it."""
    shutil.copytree(interrupted, tmp_path / "run")
    return tmp_path / "run"


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def become_a_folder(path):
    delete(path)
    path.mkdir()


def become_a_link_to_nothing(path):
    delete(path)
    path.symlink_to("nowhere")


def become_a_file(path):
    delete(path)
    path.write_text("mine")


DAMAGES = {
    "deleted": delete,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "foreign": lambda path: path.write_bytes(b'{"kind": "plan", "step": 4}\n'),
    "binary": lambda path: path.write_bytes(b"\xff\x00\x80" * 999),
    "folder": become_a_folder,
    "link": become_a_link_to_nothing,
    "file": become_a_file,
}
FILE_DAMAGES = [name for name in DAMAGES if name != "file"]


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def newest_whole(run):
    identity = RunRecord.load(run / "run.json").identity
    return Checkpoints(run, run=f"{identity} train").newest_whole()


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_any_damaged_file_of_a_checkpoint_is_named_and_the_one_before_is_taken(damage, run, capsys):
    checkpoint, kept = run / "checkpoint-4", run.with_name("kept")
    shutil.copytree(checkpoint, kept)
    names = files_of(checkpoint)
    assert {"config.json", "model.safetensors", "average.safetensors", "optimizer.pt", "state.json"} < set(
        names
    )
    for name in names:
        DAMAGES[damage](checkpoint / name)
        assert newest_whole(run) == run / "checkpoint-2"
        remark = f"{checkpoint}: {name} is "
        assert remark in capsys.readouterr().err
        shutil.rmtree(checkpoint)
        shutil.copytree(kept, checkpoint)
    assert newest_whole(run) == checkpoint


@settings(max_examples=60)
@given(data=st.data())
def test_a_checkpoint_cut_or_changed_at_any_byte_is_passed_over(data, interrupted, tmp_path_factory):
    run = tmp_path_factory.mktemp("cut") / "run"
    shutil.copytree(interrupted, run)
    path = run / "checkpoint-4" / data.draw(st.sampled_from(files_of(interrupted / "checkpoint-4")))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = (
        content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    )
    path.write_bytes(data.draw(st.sampled_from([content[:place], changed, content + b"x"])))
    same = path.name == "manifest.json" and _parsed(path.read_bytes()) == _parsed(
        content
    )  # but for white space
    assert newest_whole(run) == run / ("checkpoint-4" if same else "checkpoint-2")


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


CASES = [
    *(
        (name, damage)
        for name in ("run.json", "recipe.yaml", "log.jsonl", "LATEST")
        for damage in FILE_DAMAGES
    ),
    *((f"tokenizer/{name}", "truncated") for name in ("tokenizer.json", "manifest.json")),
    *(("tokenizer/tokenizer_config.json", damage) for damage in ("deleted", "foreign")),
    *((name, damage) for name in ("tokenizer", "checkpoint-4") for damage in ("deleted", "file")),
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_any_damage_to_a_run_is_refused_by_name_or_ends_as_the_unbroken_run(
    name, damage, run, interrupted, unbroken, iiad
):
    DAMAGES[damage](run / name)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, err = iiad("train", interrupted.parent / "recipe.yaml", "--output-dir", run, "--resume")
    if code == 2:
        assert out == ""
        assert name.partition("/")[0] in err.splitlines()[-1]
        assert (
            before.items() <= {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}.items()
        )
        return
    assert code == 0
    # The recipe's copy and the pointer are made anew, and a tokenizer that is gone is trained to the same one.
    if name != "recipe.yaml" and (name, damage) not in (("LATEST", "deleted"), ("tokenizer", "deleted")):
        assert sum(name in line for line in err.splitlines()) == 1
    free = {"log.jsonl", "optimizer.pt", "manifest.json", *(["state.json"] if name == "log.jsonl" else [])}
    for path in unbroken.rglob("*"):
        if path.is_file() and path.name not in free:
            assert (run / path.relative_to(unbroken)).read_bytes() == path.read_bytes(), path


def test_checkpoints_of_another_run_stage_or_step_are_passed_over(run, quick, tmp_path, capsys):
    recipe = TrainRecipe.model_validate(quick(max_steps=8, save_steps=8))
    train(recipe, tmp_path / "other")
    shutil.copytree(tmp_path / "other/checkpoint-8", run / "checkpoint-8")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-6")
    assert newest_whole(run) == run / "checkpoint-4"
    err = capsys.readouterr().err
    assert "checkpoint-8: is of another run, stage or recipe; going on from checkpoint-4" in err
    assert "checkpoint-6: is of step 2; going on from checkpoint-4" in err


class Code:
    """Ends the process where it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


FORGED = {
    "state.json": [b"[]", b'{"step": "x"}', b'{"step": 4, "window": 3}'],
    "optimizer.pt": [b"", b"no pickle", pickle.dumps(Code())],
    "model.safetensors": [b"", b"12345678"],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name in FORGED for text in FORGED[name]])
def test_a_forged_file_with_its_hash_in_the_manifest_is_refused_by_name(
    name, content, run, interrupted, iiad
):
    for checkpoint in Checkpoints(run).all():
        (checkpoint / name).write_bytes(content)
        write_manifest(checkpoint)
    code, _, err = iiad("train", interrupted.parent / "recipe.yaml", "--output-dir", run, "--resume")
    assert code == 2
    assert str(run / "checkpoint-4") in err.splitlines()[-1]


def test_a_run_whose_checkpoints_are_all_gone_is_not_begun_again_unsaid(run):
    for checkpoint in Checkpoints(run).all():
        shutil.rmtree(checkpoint)
    with refused("LATEST: names 'checkpoint-4', which is no checkpoint here; no whole checkpoint is left"):
        newest_whole(run)
