"""Journals: cut anywhere they give what is whole; other than cut they are refused."""

import json
from contextlib import suppress

import pytest

from iiad.artefacts import Journal
from iiad.distillation import ShardRecord
from iiad.errors import InputError
from tests.helpers import refused

HEADING = {"kind": "unfinished signals", "layout": {"top_k": 8}}
SHARDS = [ShardRecord(index=index, sha256="a" * 64, kept_mass=0.5) for index in range(3)]


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", HEADING, ShardRecord)
    journal.start(SHARDS[:1])
    for shard in SHARDS[1:]:
        journal.append(shard)
    return journal


def test_a_journal_cut_anywhere_gives_the_lines_that_are_whole(journal):
    content = journal.path.read_bytes()
    heading = content.index(b"\n")
    for end in range(len(content) + 1):
        journal.path.write_bytes(content[:end])
        if 0 < end < heading:
            with refused(journal.path, "cannot be resumed"):
                journal.read()
        else:
            assert journal.read() == SHARDS[: max(content[:end].count(b"\n") - 1, 0)]


@pytest.mark.parametrize(
    ("field", "value"),
    [("index", True), ("index", "1"), ("index", -1), ("index", 1.0), ("index", 10**30), ("sha256", 1),
     ("kept_mass", "1"), ("kept_mass", float("nan")), ("kept_mass", True), ("kept_mass", None), ("unheard-of", 1)],
)  # fmt: skip
def test_a_whole_line_with_a_wrong_field_is_refused_by_line_and_field(field, value, journal):
    lines = journal.path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), field: value})
    journal.path.write_text("\n".join([*lines, ""]))
    with refused(f"{journal.path}: line 3: {field}: "):
        journal.read()


@pytest.mark.parametrize(
    "line", ["", "null", "[]", "{", "[" * 100_000, '{"index": 1, "index": 2}', "\ufffd", "{}"]
)
def test_a_whole_line_that_is_no_record_is_refused_by_line(line, journal):
    lines = journal.path.read_text().splitlines()
    journal.path.write_text("\n".join([*lines[:2], line, *lines[3:], ""]))
    with refused(f"{journal.path}: line 3"):
        journal.read()


def test_a_journal_with_any_byte_changed_is_read_or_refused(journal):
    content = journal.path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 + place % 255
        journal.path.write_bytes(changed)
        with suppress(InputError):
            journal.read()
