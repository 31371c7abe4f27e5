"""Files and folders that appear whole with the usual mode, locks, and outputs that are no inputs."""

import json
import os
import signal
import stat
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from iiad.files import atomic_file, atomic_folder
from iiad.outputs import lock_file, lock_folder, require_apart, require_new_file, require_new_folder
from tests.helpers import held_by_another, refused


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_written_file_has_the_mode_that_the_umask_leaves(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "file") as file:
            file.write(b"x")
        with atomic_folder(tmp_path / "folder") as stage:
            save_file({}, stage / "model.safetensors")  # with 0600 by itself
            (stage / "config.json").write_text("{}")
            (stage / "inner").mkdir()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop("folder") == modes.pop("inner") == mode | (mode & 0o444) >> 2
    assert modes == dict.fromkeys(["file", "model.safetensors", "config.json"], mode)


@pytest.mark.parametrize("lock", [lock_folder, lock_file])
def test_a_lock_is_refused_by_name_of_its_holder_and_not_after_a_kill(lock, tmp_path):
    path = tmp_path / "output"
    with held_by_another(lock.__name__, path) as process:
        with refused(f"{path}: is being written by process {process.pid} on "), lock(path):
            pass
        [left] = tmp_path.rglob(".*")
    assert process.returncode == -signal.SIGKILL
    assert left.exists()
    with lock(path), lock(path):  # a command and the function that it calls
        pass
    assert list(tmp_path.rglob(".*")) == []


def test_a_lock_file_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with refused(f"{tmp_path}: cannot be written: "), lock_folder(tmp_path):
        pass
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with refused(f"{tmp_path}: cannot be written: "), lock_folder(tmp_path):
        pass
    with refused("precious/run: cannot be written: Not a directory"), lock_folder(tmp_path / "precious/run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_lock_leaves_what_was_written_and_no_folder_that_it_made(tmp_path):
    with lock_folder(tmp_path / "a/b"):
        (tmp_path / "a/file").write_text("mine")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    with lock_folder(tmp_path / "c/d"):
        pass
    assert not (tmp_path / "c").exists()


def test_a_lock_whose_file_its_holder_removes_is_taken_anew(tmp_path, monkeypatch):
    """Between opening and locking: the lock of a removed file would keep nobody out."""
    opened, original = [], os.open

    def open_then_remove(path, *arguments):
        descriptor = original(path, *arguments)
        if not opened and Path(path).name == ".lock":
            Path(path).unlink()
        opened.append(path)
        return descriptor

    monkeypatch.setattr(os, "open", open_then_remove)
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert len(opened) == 2


@pytest.mark.parametrize(
    "make", [lambda link: link.symlink_to("nowhere"), lambda link: link.symlink_to(link)]
)
def test_a_link_to_nothing_is_replaced_only_when_asked(make, tmp_path):
    link = tmp_path / "link"
    make(link)
    with refused(link, "is a link to nothing"):
        require_new_file(link)
    with refused(link, "is a link to nothing"):
        require_new_folder(link)
    assert require_new_file(link, overwrite=True) == link
    with refused(link), lock_folder(link):
        pass
    assert link.is_symlink()


def test_what_is_no_file_is_replaced_never(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/null"):
        with refused(f"{path}: expected a file, got a "):
            require_new_file(path, overwrite=True)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A model folder, texts and a plan, with links to them; the working folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "texts/inner", "links"):
        Path(folder).mkdir(parents=True)
    for name in ("model/config.json", "texts/v.txt", "texts/inner/w.txt", "plan.json"):
        Path(name).write_text("{}")
    for name, kind in (("model/evaluation.json", "evaluation"), ("model/run.json", "run")):
        Path(name).write_text(json.dumps({"kind": kind}))
    Path("links/model").symlink_to(tmp_path / "model")
    Path("links/plan.json").symlink_to(tmp_path / "plan.json")
    Path("links/loop").symlink_to("loop")
    os.link("texts/v.txt", "links/hard")
    return tmp_path


SAME = [
    ("plan.json", "plan.json"), ("./plan.json", "links/plan.json"), ("links/plan.json", "plan.json"),
    ("texts/v.txt", "links/hard"), ("texts", "texts/v.txt"), ("texts", "texts/inner/w.txt"),
    ("texts/*", "texts/v.txt"), ("texts/**/*.txt", "texts/inner/w.txt"), ("model", "model/config.json"),
    ("model", "links/model/config.json"), ("links/model", "model/config.json"), ("model", "model/run.json"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "written"), SAME)
def test_a_file_that_is_read_is_no_output(read, written, given):
    for inputs, texts in (([None, "hub/name"], [read, "stdlib"]), ([read], []))[: 1 if "*" in read else 2]:
        with refused("output: expected another path than", "which is an input", f"got {written}"):
            require_apart(inputs, texts, files={"output": written})


@pytest.mark.parametrize(
    ("read", "folder"),
    [
        *[(name, name) for name in ("texts", "model")], ("plan.json", "."), ("texts/v.txt", "texts"),
        ("texts", "texts/new"), ("links/model", "model"), ("texts/*.txt", "texts"), ("texts", "texts/inner"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_an_input_or_lies_among_texts_is_no_output(read, folder, given):
    with refused("output_dir: expected another path than", f"got {folder}"):
        require_apart([], [read], folders={"output_dir": folder})


def test_other_outputs_are_free(given):
    files = {
        "output": "model/evaluation.json",
        "verification": "texts/new.json",
        "c": "links/loop",
        "d": None,
    }
    require_apart(["model", "hub/name", None, "links/loop"], ["texts", "stdlib", "none*"], files)
    require_apart(["model", "plan.json"], ["texts/inner"], folders={"output_dir": "model/student"})
    require_apart(["hub/name"], folders={"output_dir": "hub/name"})


def test_two_outputs_are_two_files(given):
    for first, second in (("a.json", "./a.json"), ("plan.json", "links/plan.json"), ("a", "links/../a")):
        with refused("verification: expected another path than", "which is an output"):
            require_apart([], files={"output": first, "verification": second})
