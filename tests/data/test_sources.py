from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iiad.data import resolve_inputs
from iiad.data import stdlib as stdlib_room


@pytest.fixture
def folder(tmp_path):
    for name in (
        "b.txt",
        "a.jsonl",
        "sub/c.parquet",
        "sub/d.txt.gz",
        "sub/e.JSONL.gz",
        "notes.md",
        ".hidden/f.txt",
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


def test_a_folder_gives_its_files_of_known_suffix_sorted_with_kind_and_compression(folder):
    found = [(s.name, s.kind, s.compressed) for s in resolve_inputs([str(folder)])]
    assert found == [
        ("in/a.jsonl", "jsonl", False),
        ("in/b.txt", "text", False),
        ("in/sub/c.parquet", "parquet", False),
        ("in/sub/d.txt.gz", "text", True),
        ("in/sub/e.JSONL.gz", "jsonl", True),
    ]


def test_inputs_keep_their_order_and_a_file_named_twice_is_kept_once_where_it_first_stood(folder):
    inputs = [f"{folder}/sub/d*", f"{folder}/b.txt", str(folder), f"{folder}/sub/../b.txt"]
    names = [source.path.name for source in resolve_inputs(inputs)]
    assert names == ["d.txt.gz", "b.txt", "a.jsonl", "c.parquet", "e.JSONL.gz"]


def test_a_pattern_recurses_with_two_stars_and_is_sorted(folder):
    assert [s.name for s in resolve_inputs([f"{folder}/**/*.txt*"])] == ["b.txt", "d.txt.gz"]


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert [s.name for s in resolve_inputs([str(tmp_path / "a[1].txt")])] == ["a[1].txt"]


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert resolve_inputs(["~/b.txt"])[0].path == folder / "b.txt"


def test_what_cannot_be_resolved_is_named_in_one_line(folder, refused):
    with refused("inputs", "accepted"):
        resolve_inputs([])
    with refused("inputs", "accepted"):
        resolve_inputs("data.txt")
    with refused("''", "no such file"):
        resolve_inputs([""])
    with refused(folder / "gone.txt", "no such file"):
        resolve_inputs([str(folder / "gone.txt")])
    with refused(folder / "*.csv", "matches no file"):
        resolve_inputs([str(folder / "*.csv")])
    with refused("notes.md", "'.md'", ".txt, .jsonl, .parquet, .txt.gz, .jsonl.gz"):
        resolve_inputs([str(folder / "notes.md")])
    with refused("notes.md", "'.md'"):
        resolve_inputs([str(folder / "*")])
    os.mkfifo(folder / "pipe.txt")
    with refused("pipe.txt", "not a regular file"):
        resolve_inputs([str(folder / "pipe.txt")])
    (folder / "x.csv.gz").touch()
    with refused("x.csv.gz", "'.csv.gz'"):
        resolve_inputs([str(folder / "x.csv.gz")])
    (folder / "empty").mkdir()
    with refused(folder / "empty", ".parquet"):
        resolve_inputs([str(folder / "empty")])
    with refused("'stdlib:test'", "stdlib:validation"):
        resolve_inputs(["stdlib:test"])
    with refused("split", "'dev'", "train, validation"):
        resolve_inputs(["stdlib"], split="dev")


def test_a_file_without_read_permission_is_named(folder, refused, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with refused(folder / "b.txt", "permission"):
        resolve_inputs([str(folder / "b.txt")])


def test_stdlib_splits_are_disjoint_text_without_tests_or_packages():
    train, validation = resolve_inputs(["stdlib:train"]), resolve_inputs(["stdlib:validation"])
    names = {source.name for source in train} | {source.name for source in validation}
    assert len(names) == len(train) + len(validation)
    assert "stdlib/argparse.py" in names
    assert not [
        name for name in names if {"site-packages", "test", "tests", "idle_test"} & set(name.split("/"))
    ]
    assert 0.01 < len(validation) / len(names) < 0.1
    assert {source.kind for source in train} == {"text"}


def test_plain_stdlib_is_the_split_asked_for():
    assert resolve_inputs(["stdlib"], "validation") == resolve_inputs(["stdlib:validation"])
    assert resolve_inputs(["stdlib"]) == resolve_inputs(["stdlib:train"])


def test_stdlib_files_depend_on_relative_paths_alone(tmp_path, monkeypatch, refused):
    splits = []
    for root in (tmp_path / "one", tmp_path / "two"):
        monkeypatch.setattr(stdlib_room.sysconfig, "get_path", lambda name, root=root: str(root))
        for number in range(60):
            (root / f"m{number}.py").parent.mkdir(exist_ok=True)
            (root / f"m{number}.py").write_text(str(root))
        (root / "latin.py").write_bytes(b"\xe9")
        splits.append([name for _, name in stdlib_room.stdlib_files("validation")])
    assert splits[0] == splits[1] != []
    assert "latin.py" not in splits[0] + [name for _, name in stdlib_room.stdlib_files("train")]
    monkeypatch.setattr(stdlib_room.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    with refused("stdlib", tmp_path / "none"):
        resolve_inputs(["stdlib"])


def test_the_room_opens_without_torch_or_transformers():
    # A bare `iiad` stands in for the package, whose own __init__ brings in the models and torch.
    script = (
        "import sys, types; room = types.ModuleType('iiad'); room.__path__ = ['iiad']; sys.modules['iiad'] = room;"
        "import iiad.data;"
        "heavy = {'torch', 'transformers', 'tokenizers', 'pyarrow', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
