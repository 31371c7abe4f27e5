import gzip
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiad.data import Source, read_documents, resolve_inputs
from iiad.data.documents import cut_pieces
from tests.helpers import refused


@pytest.fixture
def read(tmp_path):
    """Write a file and read it back as a list of whole documents."""

    def run(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content)
        [source] = resolve_inputs([str(path)])
        return ["".join(document) for document in read_documents(source, **options)]

    return run


def parquet_bytes(column, name="text"):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({name: column}), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


NOT_UTF8 = pyarrow.array([b"x", b"\xff"]).view(pyarrow.string())


def test_text_is_one_document_a_file_and_jsonl_one_a_line_exactly_as_it_lies(read):
    text = "é\r\nline\r\n\n 🙂"
    lines = '{"text": "one\\r\\n"}\n\n   \r\n{"id": 1, "text": "\\u00e9"}'
    for name, content, documents in (("a.txt", text, [text]), ("a.jsonl", lines, ["one\r\n", "é"])):
        assert read(name, content.encode()) == documents
        assert read(f"{name}.gz", gzip.compress(content.encode(), mtime=0)) == documents


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), None])
def test_a_parquet_file_is_one_document_a_row_of_the_text_field(read, kind):
    rows = ["one", "", "é\n", "four", "one"]
    column = pyarrow.array(rows, kind) if kind else pyarrow.array(rows).dictionary_encode()
    assert read("a.parquet", parquet_bytes(column)) == rows
    assert read("a.parquet", parquet_bytes(column, "body"), text_field="body") == rows


def test_a_byte_order_mark_is_dropped_at_the_start_only(read):
    assert read("a.txt", "\ufeffx\ufeff".encode()) == ["x\ufeff"]
    assert read("a.jsonl", b'\xef\xbb\xbf{"text": "x"}') == ["x"]


def test_characters_survive_a_cut_anywhere_in_the_file(read):
    assert read("a.txt", ("🙂é" * 50).encode(), read_bytes=3) == ["🙂é" * 50]
    with refused("at byte 300"):
        read("a.txt", ("🙂é" * 50).encode() + b"\xf0\x9f\x99", read_bytes=3)


@given(st.lists(st.text(alphabet="ab \n\t"), max_size=6), st.integers(1, 12))
def test_pieces_join_to_the_text_within_the_limit_whatever_the_parts(texts, limit):
    pieces = list(cut_pieces(texts, limit))
    assert "".join(pieces) == "".join(texts)
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert pieces == list(cut_pieces(["".join(texts)], limit))


def test_pieces_end_where_no_token_crosses_if_there_is_such_a_place():
    assert list(cut_pieces(["ab\ncd\n\nef\n  gh"], 12)) == ["ab\n", "cd\n\nef\n  gh"]
    assert list(cut_pieces(["a b\r\ncc  ddd"], 11)) == ["a b\r\ncc ", " ddd"]
    assert list(cut_pieces(["abcdef"], 4)) == ["abcd", "ef"]


def test_memory_does_not_grow_with_a_text_file(read, tmp_path):
    def peak(num_lines):
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some line of text\n" * num_lines, 1, mtime=0))
        [source] = resolve_inputs([str(tmp_path / "a.txt.gz")])
        tracemalloc.start()
        for document in read_documents(source, piece_chars=1 << 14, read_bytes=1 << 14):
            for _ in document:
                pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(60_000) < peak(15_000) * 1.1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"abc\xff", ["UTF-8 text, got invalid start byte at byte 3"]),
        ("a.txt", b"abc\xc3", ["unexpected end of data at byte 3"]),
        ("a.txt", b"ab\0c", ["UTF-8 text, got NUL at byte 2"]),
        ("a.txt", "ab".encode("utf-16"), ["NUL at byte 3", "UTF-16"]),
        ("a.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], ["a whole gzip file"]),
        ("a.txt.gz", b"not gzip", ["gzip"]),
        ("a.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:12] + b"\xff" * 20, ["gzip"]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-9], ["gzip"]),
        (
            "a.jsonl",
            b'{"text": "x"}\n\n{"text": }\n',
            ["line 3", "column 10", "Expecting value", "JSON"],
        ),
        ("a.jsonl", b'{"text": "x"}\n["x"]', ["line 2", "a string field 'text', got a list"]),
        ("a.jsonl", b'"x"', ["line 1", "got a string"]),
        ("a.jsonl", b'{"body": "x", "id": 1}', ["line 1", "'text'", "'body', 'id'"]),
        ("a.jsonl", b"{}", ["line 1", "got fields none"]),
        ("a.jsonl", json.dumps({f"f{n}": n for n in range(25)}).encode(), ["'f9' and 15 more"]),
        ("a.jsonl", b'{"text": 3}', ["line 1", "got a number in it"]),
        ("a.jsonl", b'{"text": null}', ["line 1", "got null in it"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', ["line 2", "UTF-8 text", "at byte 24"]),
        ("a.jsonl", b'{"text": "x"}\n\0', ["line 2", "NUL at byte 14"]),
        ("a.jsonl", b'{"text": "a\\ud83d"}', ["line 1", "surrogate", "character 1"]),
        ("a.jsonl", b"[" * 200_000, ["line 1", "JSON"]),
        ("a.jsonl", b'{"text": "a", "text": "b"}', ["line 1", "'text' is there twice"]),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", ["line 1", "JSON"]),
        ("a.parquet", b"not parquet", ["a readable parquet file"]),
        ("a.parquet", parquet_bytes(pyarrow.array(["x"]))[:-20], ["a readable parquet file"]),
        ("a.parquet", parquet_bytes(pyarrow.array(["x"]), "body"), ["column 'text'", "got columns 'body'"]),
        ("a.parquet", parquet_bytes(pyarrow.array([1, 2])), ["string column 'text', got type int64"]),
        ("a.parquet", parquet_bytes(pyarrow.array(["x", None])), ["row 2", "null"]),
        ("a.parquet", parquet_bytes(NOT_UTF8), ["row 2", "UTF-8"]),
    ],
)
def test_a_fault_is_named_with_its_place_in_one_line(read, tmp_path, name, content, words):
    with refused(tmp_path / name, *words):
        read(name, content)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_a_file_that_vanishes_is_named(tmp_path, kind):
    with refused(tmp_path / "gone", "No such file"):
        [list(document) for document in read_documents(Source(tmp_path / "gone", "gone", kind))]


def test_position_is_told_and_stays_within_the_file(read):
    rows = parquet_bytes(pyarrow.array(["x"] * 20))
    for name, content in (
        ("a.txt", b"text\n" * 20),
        ("a.jsonl", b'{"text": "x"}\n' * 20),
        ("a.parquet", rows),
    ):
        positions = []
        read(name, content, on_position=positions.append, read_bytes=8)
        assert positions == sorted(positions) != []
        assert positions[-1] <= len(content)
