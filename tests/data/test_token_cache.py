from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iiad.data import cache, packing, resolve_inputs, train_tokenizer
from iiad.data.cache import default_cache_dir


@pytest.fixture
def tokenized(monkeypatch):
    """How often a batch was tokenized, as a list that grows."""
    calls: list[int] = []
    original = packing._tokenize

    def counted(backend, batch, eos_token_id, dtype):
        calls.append(len(batch))
        return original(backend, batch, eos_token_id, dtype)

    monkeypatch.setattr(packing, "_tokenize", counted)
    return calls


@pytest.fixture
def file(tmp_path, code):
    path = tmp_path / "a.txt"
    path.write_text(code)
    return path


def test_the_second_time_nothing_is_tokenized(packed, file, tokenized):
    first, second = packed(file), packed(file)
    assert tokenized == [1]
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert vars(first).keys() == vars(second).keys()


def test_names_are_those_of_this_call(packed, file, tokenized):
    packed(file)
    moved = file.rename(file.with_name("b.txt"))
    assert packed(moved).names == ("b.txt",)
    assert tokenized == [1]


def test_another_tokenizer_order_or_field_is_another_corpus(packed, file, code, tmp_path):
    other = tmp_path / "b.txt"
    other.write_text("other")
    lines = tmp_path / "c.jsonl"
    lines.write_text('{"text": "a", "body": "b"}')
    prints = [
        packed(file, other).fingerprint,
        packed(other, file).fingerprint,
        packed(lines).fingerprint,
        packed(lines, text_field="body").fingerprint,
    ]
    assert len(set(prints)) == 4


def test_a_new_tokenizer_tokenizes_again(packed, file, code, tokenized, tmp_path):
    packed(file)
    other = train_tokenizer([code], 300)
    packing.pack(resolve_inputs([str(file)]), other, cache_dir=tmp_path / "cache", progress=False)
    assert tokenized == [1, 1]


def test_a_changed_file_is_noticed(packed, file, tokenized):
    before = packed(file)
    file.write_text("changed")
    assert packed(file).fingerprint != before.fingerprint
    assert tokenized == [1, 1]


def test_hashes_are_remembered_for_files_that_have_settled(packed, file, tmp_path, monkeypatch):
    packed(file)
    assert not (tmp_path / "cache" / cache.HASHES_FILE).exists()  # written to a moment ago
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    packed(file)
    monkeypatch.setattr(cache, "_sha256", lambda source: pytest.fail("read again"))
    packed(file)


def test_a_change_of_same_size_and_mtime_is_noticed(packed, file, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    before, stat = packed(file), file.stat()
    changed = file.read_text().replace("Stack", "Queue")
    while file.stat().st_ctime_ns == stat.st_ctime_ns:  # file systems' clocks tick every few milliseconds
        time.sleep(0.005)
        file.write_text(changed)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert packed(file).fingerprint != before.fingerprint


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"x": 1}', b'{"x": ["a", 1, 1, 1, "b"]}', b"\xff"])
def test_a_damaged_memory_of_hashes_is_made_anew(packed, file, tmp_path, monkeypatch, junk):
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / cache.HASHES_FILE).write_bytes(junk)
    packed(file)
    assert [*json.loads((tmp_path / "cache" / cache.HASHES_FILE).read_bytes())] == [str(file.resolve())]


def test_hashes_of_other_files_stay_remembered(packed, file, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    other = tmp_path / "b.txt"
    other.write_text("other")
    packed(file)
    packed(other)
    assert len(json.loads((tmp_path / "cache" / cache.HASHES_FILE).read_bytes())) == 2


def test_truncated_tokens_or_a_damaged_record_are_built_again(packed, file, tokenized, tmp_path):
    whole = packed(file)
    tokens = whole.tokens.tolist()
    folder = tmp_path / "cache"
    data, record = (folder / f"{whole.fingerprint}{suffix}" for suffix in (".bin", ".json"))
    damages = [
        lambda: data.write_bytes(data.read_bytes()[:-1]),
        lambda: data.unlink(),
        lambda: record.unlink(),
        lambda: record.write_text(record.read_text()[:20]),
        lambda: record.write_text("[]"),
        lambda: record.write_text("{}"),
        lambda: record.write_text(record.read_text().replace('"format": 1', '"format": 0')),
    ]
    for damage in damages:
        os.replace(data, folder / "kept")  # the open corpus keeps its file
        data.write_bytes((folder / "kept").read_bytes())
        damage()
        assert packed(file).tokens.tolist() == tokens
    assert len(tokenized) == 1 + len(damages)


def test_leftovers_of_killed_processes_are_harmless(packed, file, tmp_path, tokenized):
    fingerprint = packed(file, cache_dir=tmp_path / "other").fingerprint
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{fingerprint}.bin").write_bytes(b"junk")
    (tmp_path / "cache" / f"{fingerprint}.bin.1-0.tmp").write_bytes(b"junk")
    (tmp_path / "cache" / f"{fingerprint}.json.1-0.tmp").write_bytes(b"junk")
    packed(file)
    assert len(tokenized) == 2


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing_and_the_next_one_starts_over(
    packed, file, tmp_path, monkeypatch, fault
):
    def interrupted(*arguments):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_tokenize", interrupted)
        with pytest.raises(fault):
            packed(file)
    assert list((tmp_path / "cache").iterdir()) == []
    assert packed(file).num_documents == 1


KILLED = """
import os, signal, sys, types
room = types.ModuleType("iiad"); room.__path__ = ["iiad"]; sys.modules["iiad"] = room  # no need of torch
from tokenizers import Tokenizer
from iiad.data import packing, resolve_inputs

class Fast:
    backend_tokenizer = Tokenizer.from_file(sys.argv[1])
    eos_token_id = 0
    special_tokens_map = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")

def killed(folder, fingerprint, record):
    os.kill(os.getpid(), signal.SIGKILL)

def tokenize(*arguments, original=packing._tokenize, calls=[]):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

if sys.argv[4] == "tokenizing":
    packing._tokenize, packing.BATCH_PIECES = tokenize, 1
else:
    packing.store.write_record = killed
packing.pack(resolve_inputs([sys.argv[2]]), Fast(), cache_dir=sys.argv[3], progress=False)
"""


@pytest.mark.parametrize("moment", ["tokenizing", "before the record"])
def test_a_killed_process_never_leaves_a_corpus_that_is_taken_for_whole(
    packed, tmp_path, tokenizer, tokenized, moment
):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "document {n}"}}\n' for n in range(9)))
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = ("tokenizer.json", "a.jsonl", "cache")
    command = [sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in names), moment]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert left == ({".tmp"} if moment == "tokenizing" else {".bin"})
    corpus = packed(tmp_path / "a.jsonl")
    assert corpus.num_documents == 9
    assert tokenized == [9]
    if moment != "tokenizing":  # the same corpus, so the killed process's file was replaced
        assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".bin", ".json"}


def test_a_full_disk_is_one_line_and_the_temporary_file_is_removed(
    packed, file, tmp_path, refused, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused("cache_dir", tmp_path / "cache", "No space left", "IIAD_CACHE"):
        packed(file)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(packed, file, tmp_path, refused):
    (tmp_path / "plain").touch()
    with refused("cache_dir", tmp_path / "plain", "cannot be written"):
        packed(file, cache_dir=tmp_path / "plain" / "cache")


def test_a_whole_corpus_is_read_from_a_cache_that_cannot_be_written(packed, file, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    packed(file)
    (file.parent / "cache" / cache.HASHES_FILE).unlink()
    monkeypatch.setattr(os, "replace", lambda *paths: pytest.fail("written"))

    def read_only(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert packed(file).num_documents == 1


def test_a_file_that_changes_while_it_is_tokenized_is_refused(packed, file, refused, monkeypatch, tmp_path):
    original = packing.read_documents

    def changing(source, *arguments, **options):
        yield from original(source, *arguments, **options)
        file.write_text("changed")

    monkeypatch.setattr(packing, "read_documents", changing)
    with refused(file, "changed while"):
        packed(file)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_vanishes_before_hashing_is_named(packed, file, refused):
    sources = resolve_inputs([str(file)])
    file.unlink()
    with refused(file, "No such file"):
        packed(*sources)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("IIAD_CACHE", raising=False)
    assert default_cache_dir() == Path("/home/someone/.cache/iiad")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/iiad")
    monkeypatch.setenv("IIAD_CACHE", "~/own")
    assert default_cache_dir() == Path("/home/someone/own")
