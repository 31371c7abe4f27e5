from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.data import Source, TokenBlocks, pack, packing, resolve_inputs, train_tokenizer
from iiad.data import cache as cache_room
from iiad.data import documents as documents_room
from iiad.data.tokenizers import END_OF_TEXT


def write_jsonl(path: Path, texts: list[str]) -> Source:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(path, path.name, "jsonl")


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=6).filter(any),
    block_size=st.integers(2, 9),
)
def test_blocks_decode_to_the_documents_each_with_an_end(tokenizer, tmp_path_factory, texts, block_size):
    folder = tmp_path_factory.mktemp("packing")
    corpus = pack([write_jsonl(folder / "a.jsonl", texts)], tokenizer, cache_dir=folder, progress=False)
    assert tokenizer.decode(corpus.tokens) == "".join(text + END_OF_TEXT for text in texts if text)
    assert corpus.num_documents == sum(map(bool, texts)) == np.count_nonzero(corpus.tokens == 0)
    assert corpus.num_bytes == sum(len(text.encode()) for text in texts)
    if corpus.num_tokens >= block_size:
        blocks = TokenBlocks(corpus, block_size)
        joined = np.concatenate([block["input_ids"] for block in blocks])
        assert joined.tolist() == corpus.tokens[: len(joined)].tolist()
        assert 0 <= corpus.num_tokens - len(joined) < block_size


def test_every_kind_of_file_gives_the_same_tokens(packed, tmp_path, code, monkeypatch):
    monkeypatch.setattr(packing, "SHORT_PIECE_CHARS", 60)
    texts = [code, "a\r\nb\r\n" * 40, "x" * 200, "é🙂\n" * 50]
    write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes(), mtime=0))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "c.parquet")
    for number, text in enumerate(texts):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / f"{number}.txt").write_bytes(text.encode())
        (tmp_path / "e").mkdir(exist_ok=True)
        (tmp_path / "e" / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    corpora = [packed(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d", "e")]
    for corpus in corpora[1:]:
        np.testing.assert_array_equal(corpus.tokens, corpora[0].tokens)
        assert (corpus.num_documents, corpus.num_bytes) == (4, corpora[0].num_bytes)


@pytest.mark.parametrize("piece_chars", [40, 61, 200])
def test_tokens_do_not_depend_on_where_pieces_are_cut(
    packed, tmp_path, code, tokenizer, monkeypatch, piece_chars
):
    text = code * 20 + code.replace("\n", "\r\n") * 5
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(packing, "SHORT_PIECE_CHARS", piece_chars)
    assert packed(tmp_path / "a.txt").tokens.tolist() == [*tokenizer(text)["input_ids"], 0]


def test_a_tokenizer_that_adds_a_space_before_text_gets_long_pieces(tokenizer):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {token: number for number, token in enumerate(["▁", *"onetw\n"])}
    spaced = Tokenizer(models.BPE(vocab, []))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert packing._piece_chars(spaced) == documents_room.PIECE_CHARS
    assert packing._piece_chars(tokenizer.backend_tokenizer) == packing.SHORT_PIECE_CHARS


def test_an_end_of_text_spelt_out_in_the_text_ends_nothing(packed, tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(f"a{END_OF_TEXT}b")
    corpus = packed(tmp_path / "a.txt")
    assert np.count_nonzero(corpus.tokens == 0) == 1
    assert tokenizer.decode(corpus.tokens) == f"a{END_OF_TEXT}b{END_OF_TEXT}"


def test_the_callers_padding_and_truncation_neither_count_nor_change(packed, tmp_path, code):
    tokenizer = train_tokenizer([code], 300)
    (tmp_path / "a.txt").write_text(code)
    before = pack(
        resolve_inputs([str(tmp_path / "a.txt")]), tokenizer, cache_dir=tmp_path / "1", progress=False
    )
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    after = pack(
        resolve_inputs([str(tmp_path / "a.txt")]), tokenizer, cache_dir=tmp_path / "2", progress=False
    )
    assert after.tokens.tolist() == before.tokens.tolist()
    assert after.fingerprint == before.fingerprint
    assert tokenizer.backend_tokenizer.truncation is not None


def test_ids_are_as_wide_as_the_vocabulary_needs(packed, tmp_path, code):
    (tmp_path / "a.txt").write_text(code)
    assert packed(tmp_path / "a.txt").tokens.dtype == np.uint16
    wide = train_tokenizer([code], 300)
    wide.add_tokens([f"<{n}>" for n in range(1 << 16)])
    corpus = pack(resolve_inputs([str(tmp_path / "a.txt")]), wide, cache_dir=tmp_path / "c", progress=False)
    assert corpus.tokens.dtype == np.uint32
    assert wide.decode(corpus.tokens) == code + END_OF_TEXT


def test_a_corpus_says_what_it_is(packed, tmp_path, code):
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt"):
        (tmp_path / "in" / name).write_text(code)
    corpus = packed(tmp_path / "in")
    assert corpus.names == ("in/a.txt", "in/b.txt")
    assert corpus.num_tokens == len(corpus.tokens)
    assert corpus.eos_token_id == 0
    assert corpus.tokens_per_byte == corpus.num_tokens / (2 * len(code.encode()))
    with pytest.raises(ValueError, match="read-only"):
        corpus.tokens[0] = 1


def test_sources_without_text_are_named_in_one_line(packed, tmp_path, refused, tokenizer):
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    with refused("no text in", "0.txt, 1.txt, 2.txt and 2 more"):
        packed(tmp_path / "*.txt")
    assert list((tmp_path / "cache").iterdir()) == []
    with refused("sources"):
        pack([], tokenizer, cache_dir=tmp_path)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path, refused, code):
    tokenizer = train_tokenizer([code], 300)
    tokenizer.eos_token = None
    (tmp_path / "a.txt").write_text(code)
    with refused("eos_token"):
        pack(resolve_inputs([str(tmp_path / "a.txt")]), tokenizer, cache_dir=tmp_path, progress=False)


def test_a_fault_in_a_file_leaves_nothing_behind(packed, tmp_path, refused):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": 1}\n')
    with refused(tmp_path / "a.jsonl", "line 2"):
        packed(tmp_path / "a.jsonl")
    assert list((tmp_path / "cache").iterdir()) == []


def test_memory_does_not_grow_with_the_corpus(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "BATCH_CHARS", 1 << 15)
    monkeypatch.setattr(cache_room, "READ_BYTES", 1 << 12)
    monkeypatch.setattr(packing, "SHORT_PIECE_CHARS", 1 << 12)
    monkeypatch.setattr(documents_room, "READ_BYTES", 1 << 12)

    def peak(num_lines: int) -> int:
        (tmp_path / "a.txt").write_bytes(b"some line of text\n" * num_lines)
        tracemalloc.start()
        packed(tmp_path / "a.txt")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1_000)  # imports count once
    assert peak(80_000) < peak(8_000) * 1.2


def test_many_tiny_documents_are_batched_within_bounds(monkeypatch):
    monkeypatch.setattr(packing, "BATCH_PIECES", 3)
    monkeypatch.setattr(packing, "BATCH_CHARS", 10)
    pieces = [("a", True)] * 7 + [("b" * 9, True), ("c" * 30, False), ("d", True)]
    batches = list(packing._batches(iter(pieces)))
    assert [len(batch) for batch in batches] == [3, 3, 2, 1, 1]
    assert [pair for batch in batches for pair in batch] == pieces
