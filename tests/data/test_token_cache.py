"""The token cache: nothing is tokenized twice, and nothing is taken for whole that is not."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from iiad.data import corpus, hashes, packing, resolve_inputs, train_tokenizer
from iiad.data.corpus import default_cache_dir
from tests.helpers import refused


@pytest.fixture
def settled(monkeypatch):
    """Let files count as settled at once, so that their hashes are remembered."""
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)


def test_the_second_time_nothing_is_tokenized_and_names_are_those_of_the_call(packed, file):
    first = packed(file)
    assert packed.tokenized
    second = packed(file)
    assert not packed.tokenized
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert packed(file.rename(file.with_name("b.txt"))).names == ("b.txt",)
    assert not packed.tokenized


def test_another_content_order_field_or_tokenizer_is_another_corpus(packed, file, code, tmp_path):
    other, lines = tmp_path / "b.txt", tmp_path / "c.jsonl"
    other.write_text("other")
    lines.write_text('{"text": "a", "body": "b"}')
    corpora = [packed(file, other), packed(other, file), packed(lines), packed(lines, text_field="body")]
    corpora.append(packed(file, other, tokenizer=train_tokenizer([code], 300)))
    file.write_text("changed")
    corpora.append(packed(file, other))
    assert len({corpus.fingerprint for corpus in corpora}) == 6


def test_hashes_are_remembered_for_files_that_have_settled(packed, file, tmp_path, monkeypatch):
    memory = tmp_path / "cache" / hashes.HASHES_FILE
    packed(file)
    assert not memory.exists()  # written to a moment ago
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    fingerprint = packed(file).fingerprint
    other = tmp_path / "b.txt"
    other.write_text("other")
    packed(other)
    entries = json.loads(memory.read_bytes())
    assert sorted(entries) == [str(file.resolve()), str(other.resolve())]
    entries[str(file.resolve())][4] = entries[str(other.resolve())][4]
    memory.write_text(json.dumps(entries))
    assert packed(file).fingerprint != fingerprint  # the memory was believed, not the file


def test_a_change_of_same_size_and_mtime_is_noticed(packed, file, settled):
    before, stat = packed(file), file.stat()
    changed = file.read_text().replace("Stack", "Queue")
    while file.stat().st_ctime_ns == stat.st_ctime_ns:  # file systems' clocks tick every few milliseconds
        time.sleep(0.005)
        file.write_text(changed)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert packed(file).fingerprint != before.fingerprint


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"x": 1}', b'{"x": ["a", 1, 1, 1, "b"]}', b"\xff"])
def test_a_damaged_memory_of_hashes_is_made_anew(packed, file, tmp_path, settled, junk):
    memory = tmp_path / "cache" / hashes.HASHES_FILE
    memory.parent.mkdir()
    memory.write_bytes(junk)
    packed(file)
    assert [*json.loads(memory.read_bytes())] == [str(file.resolve())]


def test_truncated_tokens_or_a_damaged_record_are_built_again(packed, file, tmp_path):
    whole = packed(file)
    tokens = whole.tokens.tolist()
    data, record = (tmp_path / "cache" / f"{whole.fingerprint}{suffix}" for suffix in (".bin", ".json"))
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
        os.replace(data, tmp_path / "kept")  # the open corpus keeps its file
        data.write_bytes((tmp_path / "kept").read_bytes())
        damage()
        assert packed(file).tokens.tolist() == tokens
        assert packed.tokenized


def test_changed_tokens_and_ids_beyond_the_vocabulary_are_noticed_and_built_again(
    packed, file, tmp_path, capsys
):
    whole = packed(file)
    data, record = (tmp_path / "cache" / f"{whole.fingerprint}{suffix}" for suffix in (".bin", ".json"))
    content, fields = data.read_bytes(), json.loads(record.read_text())

    def forge(ids):
        forged = np.array(ids, fields["dtype"]).tobytes()
        record.write_text(json.dumps({**fields, "sha256": hashlib.sha256(forged).hexdigest()}))
        return forged

    valid = np.resize(np.array([5, 7], fields["dtype"]), 8).tobytes()
    for damage in (
        lambda: valid + content[len(valid) :],
        lambda: content[:-1] + bytes([content[-1] ^ 1]),
        lambda: forge([320] + [0] * (whole.num_tokens - 1)),
    ):
        damaged = damage()
        os.replace(data, tmp_path / "kept")  # the open corpus keeps its file
        data.write_bytes(damaged)
        assert packed(file).tokens.tobytes() == content
        assert packed.tokenized
        assert f"{data}: its tokens are not as they were written" in capsys.readouterr().err
    assert packed(file).tokens.tobytes() == content
    assert not packed.tokenized


def test_tokens_are_read_through_once_in_a_process_unless_their_file_is_touched(packed, file, monkeypatch):
    read = Mock(wraps=corpus.report_progress)
    monkeypatch.setattr(corpus, "report_progress", read)
    whole = packed(file)
    packed(file)
    assert read.call_count == 1
    os.utime(whole.tokens.filename, ns=(0, 0))
    packed(file)
    assert read.call_count == 2


@pytest.mark.parametrize(
    "field", ["format", "dtype", "num_tokens", "num_documents", "num_bytes", "sha256", "settings"]
)
def test_a_record_with_a_field_that_is_none_of_ours_is_built_again(field, packed, file, tmp_path):
    whole = packed(file)
    record = tmp_path / "cache" / f"{whole.fingerprint}.json"
    fields = json.loads(record.read_text())
    for value in (None, True, -1, 0, "1", float("nan"), 10**30, [], "<f8", "|O", {}):
        if field == "settings" and value == {}:
            continue
        record.write_text(json.dumps({**fields, field: value}))
        assert packed(file).num_tokens == whole.num_tokens
        assert packed.tokenized, value
    record.write_text(json.dumps({name: value for name, value in fields.items() if name != field}))
    packed(file)
    assert packed.tokenized == (field != "format")


def test_tokens_without_a_record_and_other_leftovers_are_harmless(packed, file, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            packed(file)
    [data] = (tmp_path / "cache").iterdir()
    data.write_bytes(b"junk")
    (tmp_path / "cache" / f".{data.name}-x.tmp").write_bytes(b"junk")
    assert packed(file).num_documents == 1
    assert packed.tokenized


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing_and_the_next_one_starts_over(packed, file, tmp_path, fault):
    def interrupt(done, total):
        raise fault

    with pytest.raises(fault):
        packed(file, progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []
    assert packed(file).num_documents == 1


KILLED = """
import os, signal, sys
from tokenizers import Tokenizer
from iiad.data import pack, resolve_inputs

class Fast:
    backend_tokenizer = Tokenizer.from_file(sys.argv[1])
    eos_token_id = 0
    special_tokens_map = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")

def kill(done, total):
    os.kill(os.getpid(), signal.SIGKILL)

pack(resolve_inputs([sys.argv[2]]), Fast(), cache_dir=sys.argv[3], progress=kill)
"""


def test_a_killed_process_never_leaves_a_corpus_that_is_taken_for_whole(packed, file, tmp_path, tokenizer):
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    arguments = map(str, (tmp_path / "tokenizer.json", file, tmp_path / "cache"))
    command = [sys.executable, "-c", KILLED, *arguments]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".tmp"}
    assert packed(file).num_documents == 1
    assert packed.tokenized


def test_a_cache_that_is_full_or_cannot_be_written_is_one_line(packed, file, tmp_path, monkeypatch):
    (tmp_path / "plain").touch()
    with refused("cache_dir", tmp_path / "plain", "cannot be written"):
        packed(file, cache_dir=tmp_path / "plain" / "cache")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused("cache_dir", tmp_path / "cache", "No space left", "IIAD_CACHE"):
        packed(file)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_whole_corpus_is_read_from_a_cache_that_cannot_be_written(packed, file, settled, monkeypatch):
    packed(file)
    (file.parent / "cache" / hashes.HASHES_FILE).unlink()
    monkeypatch.setattr(os, "replace", lambda *paths: pytest.fail("written"))

    def read_only(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert packed(file).num_documents == 1


def test_a_file_that_changes_or_vanishes_meanwhile_is_named(packed, file, tmp_path):
    with refused(file, "changed while"):
        packed(file, progress=lambda done, total: file.write_text("changed"))
    assert list((tmp_path / "cache").iterdir()) == []
    sources = resolve_inputs([str(file)])
    file.unlink()
    with refused(file, "No such file"):
        packed(*sources)


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("IIAD_CACHE", raising=False)
    for name, value, wanted in (
        ("HOME", "/home/someone", "/home/someone/.cache/iiad"),
        ("XDG_CACHE_HOME", "/xdg", "/xdg/iiad"),
        ("IIAD_CACHE", "~/own", "/home/someone/own"),
    ):
        monkeypatch.setenv(name, value)
        assert default_cache_dir() == Path(wanted)
