import os
import sysconfig

import pytest

from iiad.data import resolve_inputs
from tests.helpers import refused


@pytest.fixture
def folder(tmp_path):
    names = "b.txt a.jsonl sub/c.parquet sub/d.txt.gz sub/e.JSONL.gz notes.md x.csv.gz .hidden/f.txt"
    for name in names.split():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "in" / "empty").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe.txt")
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


def test_patterns_recurse_and_are_sorted_names_like_patterns_are_found_and_tilde_is_home(folder, monkeypatch):
    assert [s.name for s in resolve_inputs([f"{folder}/**/[bd].txt*"])] == ["b.txt", "d.txt.gz"]
    (folder / "a[1].txt").write_text("x")
    assert [s.name for s in resolve_inputs([str(folder / "a[1].txt")])] == ["a[1].txt"]
    monkeypatch.setenv("HOME", str(folder))
    assert resolve_inputs(["~/b.txt"])[0].path == folder / "b.txt"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("", ["a file, folder or pattern that matches one, got ''"]),
        ("gone.txt", ["a file, folder or pattern", "gone.txt"]),
        ("*.csv", ["a file, folder or pattern", "*.csv"]),
        ("notes.md", ["ends in .txt, .jsonl, .parquet, .txt.gz, .jsonl.gz or has no suffix", "notes.md"]),
        ("*.md", ["ends in", "notes.md"]),
        ("x.csv.gz", ["ends in", "x.csv.gz"]),
        ("pipe.txt", ["a regular file", "pipe.txt"]),
        ("empty", ["ends in", "got none in empty"]),
        ("stdlib:test", ["split train or validation, as in stdlib:train, got 'test'"]),
    ],
)
def test_an_input_that_cannot_be_resolved_is_named_in_one_line(folder, monkeypatch, item, words):
    monkeypatch.chdir(folder)
    with refused("inputs: expected ", *words):
        resolve_inputs([item])


TEXTS = [b"", b"plain", "\ufeffÜ漢🙂".encode(), "🙂".encode() * 20_000, b"x" * (1 << 16) + b"\xe9"]
BINARIES = [b"\x7fELF\0\0", b"\xe9t\xe9", "text".encode("utf-16"), b"x" * 999 + b"\0"]


def test_a_file_without_a_suffix_is_text_if_it_begins_as_utf_8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate(TEXTS):
        (tmp_path / f"LICENSE{number}").write_bytes(content)
    names = [f"LICENSE{number}" for number in range(len(TEXTS))]
    for inputs in (names, ["LICENSE*"], ["."]):
        found = resolve_inputs(inputs)
        assert [source.path.name for source in found] == names
        assert {(source.kind, source.compressed) for source in found} == {("text", False)}
    for content in BINARIES:
        (tmp_path / "binary").write_bytes(content)
        for inputs in (["binary"], ["LICENSE0", "bin*"], ["."]):
            with refused("inputs: expected UTF-8 text in a file without a suffix, got binary"):
                resolve_inputs(inputs)


def test_everything_that_cannot_be_read_is_named_in_one_message(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for number in range(12):
        (folder / f"binary{number:02}").write_bytes(b"\0")
    with refused("got notes.md, x.csv.gz;", "a regular file, got pipe.txt", "one, got 'gone'"):
        resolve_inputs(["gone", "*[de]*", "x.*", "*.txt"])
    with refused("without a suffix, got binary00, binary01, ", "binary09 and 2 more"):
        resolve_inputs(["*[0-9]"])
    with refused("in/binary00, ", "binary09 and 2 more"):
        resolve_inputs([str(folder)])


def test_inputs_are_a_list_and_splits_are_known():
    for inputs in ([], "data.txt"):
        with refused("inputs: expected a list"):
            resolve_inputs(inputs)
    with refused("got 'dev'"):
        resolve_inputs(["stdlib"], split="dev")


def test_a_file_without_read_permission_is_named(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with refused("no permission", folder / "b.txt"):
        resolve_inputs([str(folder / "b.txt")])


def test_stdlib_splits_are_disjoint_text_without_tests_or_packages():
    train, validation = resolve_inputs(["stdlib"]), resolve_inputs(["stdlib"], "validation")
    names = {source.name for source in (*train, *validation)}
    assert len(names) == len(train) + len(validation)
    assert "stdlib/argparse.py" in names
    left_out = {"site-packages", "test", "tests", "idle_test"}
    assert not [name for name in names if left_out & set(name.split("/"))]
    assert 0.01 < len(validation) / len(names) < 0.1
    assert {source.kind for source in train} == {"text"}


def test_stdlib_files_depend_on_relative_paths_alone(tmp_path, monkeypatch):
    splits = []
    for root in (tmp_path / "one", tmp_path / "two"):
        root.mkdir()
        monkeypatch.setattr(sysconfig, "get_path", lambda name, root=root: str(root))
        for number in range(60):
            (root / f"m{number}.py").write_text(str(root))
        (root / "latin.py").write_bytes(b"\xe9")
        found = [resolve_inputs([f"stdlib:{split}"]) for split in ("train", "validation")]
        splits.append([[source.name for source in sources] for sources in found])
    assert splits[0] == splits[1]
    assert "stdlib/latin.py" not in {*splits[0][0], *splits[0][1]}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    with refused("Python source files for stdlib", tmp_path / "none"):
        resolve_inputs(["stdlib"])


def test_a_file_whose_name_utf8_cannot_hold_is_refused(tmp_path):
    (tmp_path / "a\udcff.txt").write_text("text")
    for item in (tmp_path, tmp_path / "*.txt", tmp_path / "a\udcff.txt"):
        with refused("inputs: name of a file in", "expected UTF-8, got"):
            resolve_inputs([str(item)])
