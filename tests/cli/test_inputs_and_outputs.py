"""Outputs of all commands: never an input, never shared with a process that writes it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.helpers import held_by_another

LOCKED = {
    "bench": "lock_file", "check": "lock_file", "evaluate": "lock_file", "plan": "lock_file",
    "profile": "lock_file", "capture": "lock_folder", "demo": "lock_folder", "distill": "lock_folder",
    "train": "lock_folder",
}  # fmt: skip


@pytest.fixture(scope="module")
def given(folders, recipe_fields, tmp_path_factory):
    """Inputs of every command, in one folder."""
    root = tmp_path_factory.mktemp("given") / "inputs"
    shutil.copytree(folders.teacher, root / "teacher")
    (root / "texts").mkdir()
    shutil.copyfile(folders.text, root / "texts/v.txt")
    shutil.copyfile(folders.plan, root / "plan.json")
    data = {"train": "texts", "validation": "texts/v.txt", "block_size": 16}
    fields = {**recipe_fields, "data": data, "tokenizer": {"path": "teacher"}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(fields))
    stage = {"max_steps": 1, "warmup_steps": 0}
    lesson = {"data": data, "distillation": {"distill": stage, "recover": {"max_steps": 0}}}
    (root / "lesson.yaml").write_text(yaml.safe_dump(lesson))
    for name in ("profile", "evaluation", "latency"):
        (root / f"{name}.json").write_text(json.dumps({"kind": name}))
    return root


@pytest.fixture
def here(given, tmp_path, monkeypatch):
    """A copy of them, the working folder."""
    shutil.copytree(given, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


COMMANDS = {
    "bench": "bench teacher --plan plan.json --evaluation evaluation.json --overwrite --output",
    "check": "check teacher --teacher teacher --plan plan.json --overwrite --output",
    "evaluate": "evaluate teacher --data texts/* --plan plan.json --overwrite --output",
    "plan": "plan profile.json --threshold 0 --latency latency.json --overwrite --output",
    "profile": "profile teacher --data texts/v.txt --overwrite --output",
    "capture": "capture teacher --data texts --output",
    "convert": "convert teacher",
    "distill": "distill teacher plan.json --recipe lesson.yaml --output-dir",
    "train": "train recipe.yaml --output-dir",
    "demo": "demo --output-dir",
}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", LOCKED)
def test_an_output_that_another_process_writes_is_refused_with_its_holder(command, here, iiad):
    before = contents(here)
    with held_by_another(LOCKED[command], here / "new") as process:
        lock = {path for path in here.rglob("*") if "lock" in path.name}
        resumes = ("", "--resume") if command in ("train", "distill", "capture", "profile") else ("",)
        for resume in resumes:
            code, out, err = iiad(*COMMANDS[command].split(), "new", *resume.split())
            *_, line = err.splitlines()
            assert (code, out) == (2, "")
            assert line.startswith(f"iiad: new: is being written by process {process.pid} on ")
        assert {path for path in here.rglob("*") if "lock" in path.name} == lock
    after = contents(here)
    assert {path: text for path, text in after.items() if path not in lock} == before


INPUTS = [
    *[("bench", name) for name in ("plan.json", "evaluation.json", "teacher/config.json")],
    *[("check", name) for name in ("plan.json", "teacher/model.safetensors")],
    *[("evaluate", name) for name in ("plan.json", "texts/v.txt", "teacher/config.json")],
    *[("plan", name) for name in ("profile.json", "latency.json")],
    *[("profile", name) for name in ("texts/v.txt", "teacher/tokenizer.json")],
    *[(command, name) for command in ("capture", "train", "distill") for name in ("texts/new", "texts", ".")],
    *[(command, "teacher") for command in ("capture", "train", "distill", "convert")],
    *[("train", "recipe.yaml"), ("distill", "plan.json"), ("distill", "lesson.yaml"), ("convert", ".")],
]


@pytest.mark.parametrize(("command", "name"), INPUTS)
def test_an_input_is_no_output_of_any_command_under_any_name(command, name, here, iiad):
    (here / "link").symlink_to(here / name)
    (here / "up").symlink_to(here)
    before = contents(here)
    for output in (name, f"./{name}", "link", f"up/{name}"):
        code, out, err = iiad(*COMMANDS[command].split(), output)
        assert (code, out) == (2, ""), output
        *_, line = err.splitlines()
        assert "expected another path than" in line, line
        assert line.endswith(f", got {Path(output)}")
    assert contents(here) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_to_nothing_is_no_output_unless_it_may_be_replaced(command, here, iiad):
    for target in ("nowhere", "new"):
        (here / "new").symlink_to(target)
        before = contents(here)
        arguments = [word for word in COMMANDS[command].split() if word != "--overwrite"]
        code, out, err = iiad(*arguments, "new")
        assert (code, out) == (2, "")
        assert "iiad: new: " in err.splitlines()[-1]
        assert contents(here) == before
        assert (here / "new").is_symlink()
        (here / "new").unlink()
