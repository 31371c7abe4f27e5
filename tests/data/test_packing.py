"""Packing gives the documents' tokens exactly, whatever the kind of file and wherever pieces and batches are cut."""

import gzip
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from iiad import files
from iiad.data import Source, TokenBlocks, pack, packing, train_tokenizer
from iiad.data.tokenizers import END_OF_TEXT
from iiad.errors import InputError
from tests.helpers import refused


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(path, path.name, "jsonl")


def tokenizer_of(backend):
    """The part of a tokenizer that packing uses, on a backend whose token 0 ends documents."""
    return SimpleNamespace(
        backend_tokenizer=backend, eos_token_id=0, special_tokens_map={"eos_token": "</s>"}
    )


@settings(max_examples=8)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=6).filter(any), block_size=st.integers(2, 9))
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
    for name in "de":
        (tmp_path / name).mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "d" / f"{number}.txt").write_bytes(text.encode())
        (tmp_path / "e" / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    corpora = [packed(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d", "e")]
    for corpus in corpora[1:]:
        np.testing.assert_array_equal(corpus.tokens, corpora[0].tokens)
        assert (corpus.num_documents, corpus.num_bytes) == (4, corpora[0].num_bytes)


def test_tokens_do_not_depend_on_where_pieces_are_cut(packed, file, code, tokenizer, monkeypatch):
    text = code * 20 + code.replace("\n", "\r\n") * 5
    file.write_bytes(text.encode())
    for piece_chars in (40, 61, 200):
        monkeypatch.setattr(packing, "SHORT_PIECE_CHARS", piece_chars)
        assert packed(file).tokens.tolist() == [*tokenizer(text)["input_ids"], 0]
        assert packed.tokenized


def test_a_tokenizer_that_adds_a_space_before_text_gets_whole_documents(packed, file, monkeypatch):
    monkeypatch.setattr(packing, "SHORT_PIECE_CHARS", 4)
    spaced = Tokenizer(models.BPE({token: n for n, token in enumerate(["</s>", "▁", *"onetw\n"])}, []))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    file.write_text("one\ntwo\none")
    assert packed(file, tokenizer=tokenizer_of(spaced)).tokens.tolist().count(1) == 1


def test_an_end_of_text_spelt_out_in_the_text_ends_nothing(packed, file, tokenizer):
    file.write_text(f"a{END_OF_TEXT}b")
    corpus = packed(file)
    assert np.count_nonzero(corpus.tokens == 0) == 1
    assert tokenizer.decode(corpus.tokens) == f"a{END_OF_TEXT}b{END_OF_TEXT}"


def test_the_callers_padding_and_truncation_neither_count_nor_change(packed, tmp_path, code, file):
    tokenizer = train_tokenizer([code], 300)
    before = packed(file, tokenizer=tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    after = packed(file, tokenizer=tokenizer, cache_dir=tmp_path / "other")
    assert after.tokens.tolist() == before.tokens.tolist()
    assert after.fingerprint == before.fingerprint
    assert tokenizer.backend_tokenizer.truncation is not None


@pytest.mark.parametrize(("largest", "dtype"), [((1 << 16) - 1, np.uint16), (1 << 16, np.uint32)])
def test_ids_are_as_wide_as_the_vocabulary_needs(packed, file, largest, dtype):
    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": largest}, "</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file.write_text("a b")
    tokens = packed(file, tokenizer=tokenizer_of(words)).tokens
    assert (tokens.tolist(), tokens.dtype) == ([1, largest, 0], dtype)


def test_a_corpus_says_what_it_is_and_progress_is_told_in_bytes(packed, tmp_path, code, capsys):
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt"):
        (tmp_path / "in" / name).write_text(code)
    calls = []
    corpus = packed(tmp_path / "in", progress=lambda *done_and_total: calls.append(done_and_total))
    assert corpus.names == ("in/a.txt", "in/b.txt")
    assert corpus.num_tokens == len(corpus.tokens)
    assert corpus.eos_token_id == 0
    assert corpus.tokens_per_byte == corpus.num_tokens / (2 * len(code.encode()))
    with pytest.raises(ValueError, match="read-only"):
        corpus.tokens[0] = 1
    assert calls == sorted(calls)
    assert calls[-1] == (2 * len(code.encode()),) * 2
    packed(tmp_path / "in" / "a.txt", progress=False)
    assert capsys.readouterr() == ("", "")


def test_sources_without_text_and_tokenizers_without_an_end_are_refused(packed, tmp_path, code, file):
    endless = train_tokenizer([code], 300)
    endless.eos_token = None
    with refused("tokenizer: expected an eos_token"):
        packed(file, tokenizer=endless)
    file.unlink()
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    with refused("with text, got none in 0.txt, 1.txt, 2.txt and 2 more"):
        packed(tmp_path / "*.txt")
    assert list((tmp_path / "cache").iterdir()) == []
    with refused("sources: expected at least one"):
        packed()


def test_memory_does_not_grow_with_the_corpus_of_one_or_many_documents(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_BYTES", 1 << 12)
    monkeypatch.setattr(packing, "BATCH_CHARS", 1 << 13)
    monkeypatch.setattr(packing, "BATCH_PIECES", 1 << 8)
    monkeypatch.setattr(packing, "SHORT_PIECE_CHARS", 1 << 12)

    def peak(name, line, num_lines):
        (tmp_path / name).write_bytes(line * num_lines)
        tracemalloc.start()
        packed(tmp_path / name)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    lines = (("a.txt", b"some line of text\n", 20_000), ("a.jsonl", b'{"text": "a"}\n', 1_000))
    for name, line, num_lines in lines:
        peak(name, line, 500)  # imports count once
        assert peak(name, line, 2 * num_lines) < peak(name, line, num_lines) * 1.2


def test_all_sources_that_cannot_be_read_are_named_before_any_is_tokenized(packed, tmp_path):
    bad = {"a.txt": b"\0", "b.jsonl": b'{"body": "x"}', "c.txt.gz": b"no gzip", "d.parquet": b"no parquet"}
    good = {"e.txt": b"text", "f.jsonl": b'\n{"text": "x"}\n', "g": b"text"}
    for name, content in (bad | good).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        packed(*(tmp_path / name for name in bad | good))
    assert [name for name in bad | good if str(tmp_path / name) in str(caught.value)] == list(bad)
    assert not packed.tokenized
    many = [tmp_path / f"{number:02}.txt" for number in range(13)]
    for path in many:
        path.write_bytes(b"\0")
    with refused(*many[:10], "; and 3 files more"):
        packed(*many)
