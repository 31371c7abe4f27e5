"""Pairs: files, parallel files and docstrings as source and target ids, and batches of like length."""

import gzip
import json
import textwrap
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.data import (
    PairBlocks,
    PairCorpus,
    PairLimits,
    Source,
    evaluation_windows,
    input_paths,
    make_blocks,
    output_labels,
    pack_for,
    read_rows,
    read_texts,
    resolve_inputs,
    train_tokenizer,
)
from iiad.training.batches import micro_batches, steps_per_epoch
from iiad.training.head import asked_labels, asked_values
from iiad.training.sections import OptimizationSection
from tests.helpers import refused

PAIRS = [
    {"source": "class Stack:", "target": "Last in, first out."},
    {"source": "self._items", "target": "the items"},
    {"source": "# 漢字 and\nmore", "target": "Ünïcödé 🙂", "more": 1},
]
TEXT = {"text": "some words"}


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        content = "\n".join(json.dumps(row) for row in rows).encode() + b"\n\n"
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def texts_of(corpus, tokenizer):
    rows = [corpus.row(number) for number in range(corpus.num_documents)]
    return [tuple(tokenizer.decode(ids) for ids in row) for row in rows]


def with_ends(rows, end):
    return [(row["source"] + end, row["target"] + end) for row in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.gz"])
def test_each_side_of_a_pair_is_tokenized_alone_and_ends(name, tmp_path, packed, tokenizer):
    corpus = packed(write(tmp_path / name, PAIRS))
    assert texts_of(corpus, tokenizer) == with_ends(PAIRS, tokenizer.eos_token)
    for row, pair in zip(map(corpus.row, range(3)), PAIRS, strict=True):
        for ids, side in zip(row, ("source", "target"), strict=True):
            assert ids.tolist() == [*tokenizer(pair[side])["input_ids"], tokenizer.eos_token_id]
    assert corpus.num_tokens == sum(len(ids) for number in range(3) for ids in corpus.row(number))
    assert corpus.targets(corpus.num_tokens).tolist() == [
        token for number in range(3) for token in corpus.row(number)[1]
    ]


def test_two_files_are_pairs_line_by_line(tmp_path, packed, tokenizer):
    (tmp_path / "a.en").write_text("no")
    for name, text in (("s.txt", "one\r\ntwo \nthree"), ("t,.txt", "eins\nzwei\n drei\n")):
        (tmp_path / name).write_bytes(text.encode())
    corpus = packed(f"pairs:source={tmp_path}/s.txt,target={tmp_path}/t,.txt")
    wanted = [("one", "eins"), ("two ", "zwei"), ("three", " drei")]
    assert texts_of(corpus, tokenizer) == [
        tuple(text + tokenizer.eos_token for text in row) for row in wanted
    ]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\nc\n", "a\nb\n", "t.txt: expected 3 lines, as many as"),
        ("a\n", "a\nb\nc\n", "got 3"),
        ("a\nb\n", "a\n\n", "s.txt: line 2: target: expected text, got none"),
        ("", "", "expected at least one pair, got none in pairs:source=s.txt,target=t.txt"),
        ("a\0\n", "a\n", "expected UTF-8 text, got NUL"),
    ],
)
def test_files_that_are_no_pairs_are_refused(source, target, message, tmp_path, packed):
    (tmp_path / "s.txt").write_text(source)
    (tmp_path / "t.txt").write_text(target)
    with refused(message):
        packed(f"pairs:source={tmp_path}/s.txt,target={tmp_path}/t.txt")
    assert not list((tmp_path / "cache").glob("*.bin"))


def test_names_of_parallel_files_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.txt").write_text("a\n")
    write(tmp_path / "a.jsonl", PAIRS)
    with refused("expected a file, got 'none.txt'"):
        resolve_inputs(["pairs:source=s.txt,target=none.txt"])
    with refused("expected text, a pair a line", "a.jsonl"):
        resolve_inputs(["pairs:source=a.jsonl,target=s.txt"])
    with refused("expected pairs:source=FILE,target=FILE, got 'pairs:s.txt'"):
        resolve_inputs(["pairs:s.txt"])
    assert input_paths("pairs:source=s.txt,target=t.txt") == ["s.txt", "t.txt"]
    assert input_paths("docstrings:train") == input_paths("stdlib") == input_paths("states:length=3") == []
    assert input_paths("docs/*.txt") == ["docs/*.txt"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*PAIRS, TEXT], "line 4: expected fields source and target, as in the first row, got text"),
        (
            [*PAIRS, {"source": "a"}],
            "line 4: expected fields source and target, as in the first row, got source",
        ),
        ([*PAIRS, {"source": "a", "target": " "}], "line 4: target: expected text, got none"),
        ([{"source": "", "target": "a"}], "line 1: source: expected text, got none"),
        ([{"source": "a", "target": None}], "line 1: target: expected a string, got null in it"),
        ([{"source": ["a"], "target": "a"}], "line 1: source: expected a string, got a list in it"),
        ([{"source": "a", "target": "\ud83d"}], "line 1: target: expected a string, got half a surrogate"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows, message, tmp_path, packed):
    with refused(message):
        packed(write(tmp_path / "a.jsonl", rows))
    assert not list((tmp_path / "cache").glob("*.bin"))


def test_columns_of_other_types_are_named(tmp_path, packed):
    for value, name in ((b"a", "bytes"), (["a"], "a list"), (1.5, "a number")):
        with refused(f"row 1: target: expected a string, got {name} in it"):
            packed(write(tmp_path / "a.parquet", [{"source": "a", "target": value}]))


def test_pairs_are_not_mixed_and_nothing_else_has_limits(tmp_path, packed):
    pairs, text = write(tmp_path / "a.jsonl", PAIRS), write(tmp_path / "b.jsonl", [TEXT])
    with refused("got rows of source and target and text"):
        packed(pairs, text)
    with refused("max_source_tokens, max_target_tokens: expected pairs, got text"):
        packed(text, limits=PairLimits(8, 8))
    assert packed(pairs, text_field="target").num_documents == 3
    assert not isinstance(packed(pairs, text_field="target"), PairCorpus)


def test_a_model_reads_what_its_kind_does_behind_its_own_start_token(tmp_path, tokenizer):
    (pairs,) = resolve_inputs([str(write(tmp_path / "a.jsonl", PAIRS))])
    (text,) = resolve_inputs([str(write(tmp_path / "b.jsonl", [TEXT]))])
    config = SimpleNamespace(is_encoder_decoder=True, model_type="bart", decoder_start_token_id=7)
    with refused("data: expected pairs of source and target, for an encoder-decoder (bart), got text"):
        pack_for(config, [text], tokenizer, cache_dir=tmp_path / "cache")
    causal = SimpleNamespace(is_encoder_decoder=False, model_type="llama")
    with refused("data: expected text or labelled rows, for a causal model (llama), got pairs"):
        pack_for(causal, [pairs], tokenizer, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    corpus = pack_for(config, [pairs], tokenizer, cache_dir=tmp_path / "cache")
    assert PairBlocks(corpus, 64).batch([0])["decoder_input_ids"][0, 0] == 7


def test_pairs_are_found_again_and_built_anew_where_the_cache_is_damaged(tmp_path, packed, tokenizer):
    path = write(tmp_path / "a.jsonl", PAIRS)
    first = texts_of(packed(path), tokenizer)
    assert packed.tokenized
    assert texts_of(packed(path), tokenizer) == first
    assert not packed.tokenized
    for suffix in ("bin", "lengths", "json"):
        (stored,) = (tmp_path / "cache").glob(f"*[0-9a-f].{suffix}")
        content = stored.read_bytes()
        for change in (content[:-2], b"", bytes([content[0] ^ 1]) + content[1:]):
            stored.write_bytes(change)
            assert texts_of(packed(path), tokenizer) == first
            assert packed.tokenized


def test_limits_leave_out_or_cut_and_say_how_many(tmp_path, packed, tokenizer, capsys):
    rows = [{"source": "a b " * n, "target": "c " * m} for n, m in ((1, 1), (9, 1), (1, 9), (9, 9))]
    path = write(tmp_path / "a.jsonl", rows)
    whole = packed(path)
    limits = PairLimits(source=int(whole.lengths[0, 0]), target=int(whole.lengths[0, 1]))
    kept = packed(path, limits=limits)
    assert not packed.tokenized
    assert "1 of 4 pairs used; 3 left out: 2 sources above" in capsys.readouterr().err
    assert texts_of(kept, tokenizer) == texts_of(whole, tokenizer)[:1]
    assert (kept.num_left_out, kept.num_cut) == (3, 0)
    assert kept.numbers.tolist() == [
        number for number, lengths in enumerate(whole.lengths) if (lengths <= limits[:2]).all()
    ]
    cut = packed(path, limits=limits._replace(cut=True))
    assert "2 of 4 pairs used; 2 left out: 0 sources above" in capsys.readouterr().err
    assert (cut.num_left_out, cut.num_cut) == (2, 1)
    source, target = cut.row(1)
    assert source.tolist() == [*whole.row(1)[0][: limits.source - 1], tokenizer.eos_token_id]
    assert target.tolist() == whole.row(1)[1].tolist()
    assert len({whole.fingerprint, kept.fingerprint, cut.fingerprint}) == 3
    with refused("expected limits that at least one pair keeps, got 2 and 2; the shortest pair has"):
        packed(path, limits=PairLimits(2, 2))
    with refused("max_target_tokens: expected at least 2, got 1"):
        packed(path, limits=PairLimits(2, 1))


def test_both_sides_are_text_to_train_a_tokenizer_on(tmp_path):
    (source,) = resolve_inputs([str(write(tmp_path / "a.jsonl", PAIRS))])
    texts = ["".join(document) for document in read_texts(source, "text")]
    assert texts == [text for pair in PAIRS for text in (pair["source"], pair["target"])]


def test_padding_may_have_a_token_of_its_own_that_decoders_start_with(tmp_path, packed, code):
    own = train_tokenizer([code], 300, padding=True)
    assert (own.eos_token_id, own.pad_token_id, len(own)) == (0, 1, 300)
    corpus = packed(write(tmp_path / "a.jsonl", PAIRS), tokenizer=own)
    assert corpus.start_token_id == corpus.pad_token_id == 1
    with refused("vocab_size: expected at least 258, got 257"):
        train_tokenizer([code], 257, padding=True)


CODE = '''
class Stack(list):
    """Last in,
    first out.

    More of it.
    """

    @property
    def top(self):  # the last
        "Item that `pop` returns."
        return self[-1]

    async def one_line(self): """Wait."""; return 1

    def nothing(self):
        """Do nothing."""

    def plain(self):
        return "ü"
'''


def test_docstrings_are_taken_out_of_their_code(tmp_path):
    path = tmp_path / "stack.py"
    path.write_text(CODE)
    rows = list(read_rows(Source(path, "stack.py", "docstrings"), ("source", "target")))
    assert [place.rpartition(": ")[2] for place, _ in rows] == ["line 2", "line 10", "line 14", "line 16"]
    sources, targets = zip(*(values for _, values in rows), strict=True)
    assert targets == ("Last in, first out.", "Item that `pop` returns.", "Wait.", "Do nothing.")
    assert sources[1:] == (
        "@property\ndef top(self):  # the last\n    return self[-1]",
        "async def one_line(self):return 1",
        "def nothing(self):",
    )
    assert sources[0] == CODE.strip().replace(CODE[CODE.index('    """Last') : CODE.index("\n    @prop")], "")
    for broken in ("def f(:", "\0", "def f():\n" + textwrap.indent("(" * 500, " ")):
        path.write_text(broken)
        assert not list(read_rows(Source(path, "stack.py", "docstrings"), ("source", "target")))


def test_docstrings_of_the_standard_library_are_split_by_file():
    train, validation = (resolve_inputs(["docstrings"], split) for split in ("train", "validation"))
    assert [source.path for source in validation] == [
        source.path for source in resolve_inputs(["stdlib:validation"])
    ]
    assert not {source.path for source in train} & {source.path for source in validation}
    rows = [values for source in validation for _, values in read_rows(source, ("source", "target"))]
    assert len(rows) > 100
    for code, docstring in rows:
        assert docstring
        assert "\n" not in docstring
        assert code.startswith(("def ", "class ", "async ", "@"))
    with refused("expected split train or validation, as in stdlib:train, got 'test'"):
        resolve_inputs(["docstrings:test"])


# Batches


def corpus_of(lengths):
    """A corpus whose pair i is of source ids 10 + i and target ids 1000 + i, each with the end, 0."""
    lengths = np.array(lengths, dtype=np.int64).reshape(-1, 2)
    parts = []
    for number, (source, target) in enumerate(lengths):
        parts += [[10 + number] * (source - 1), [0], [1000 + number] * (target - 1), [0]]
    ends = lengths.ravel().cumsum()
    starts = np.concatenate([[0], ends[:-1]]).reshape(-1, 2)
    numbers = np.arange(len(lengths))
    return PairCorpus(np.concatenate(parts).astype("<u2"), starts, lengths, numbers, "f", ("a",), 0, 2, 1)


some_lengths = st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(some_lengths, st.one_of(st.none(), st.integers(80, 400)), st.integers(1, 7), st.integers(0, 9))
def test_an_epoch_has_every_pair_once_in_batches_within_the_bound(lengths, most, size, seed):
    blocks = PairBlocks(corpus_of(lengths), 40, most)
    numbers = range(blocks.num_batches(size))
    batches = blocks.draw(seed, size, numbers)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        batch = blocks.batch(rows.tolist())
        if most is not None:
            assert batch["input_ids"].numel() + batch["labels"].numel() <= most
        else:
            assert len(rows) <= size
    again = PairBlocks(corpus_of(lengths), 40, most)
    later = again.draw(seed, size, numbers[len(numbers) // 2 :])  # as a run that goes on in the middle
    assert [rows.tolist() for rows in later] == [rows.tolist() for rows in batches[len(numbers) // 2 :]]


def test_epochs_differ_in_order_and_in_company():
    rng = np.random.default_rng(0)
    blocks = PairBlocks(corpus_of(rng.integers(2, 20, (200, 2))), 20, 200)
    numbers = range(blocks.num_batches(1))
    first, second = (blocks.draw(seed, 1, numbers) for seed in (0, 1))
    assert len(first) == len(second)
    assert {frozenset(rows.tolist()) for rows in first} != {frozenset(rows.tolist()) for rows in second}
    padded = sum(blocks.batch(rows.tolist())["input_ids"].numel() for rows in first)
    assert padded < 1.35 * blocks.corpus.lengths[:, 0].sum()  # neighbours are alike


def test_a_batch_holds_what_encoder_decoders_of_transformers_take():
    batch = PairBlocks(corpus_of([(4, 3), (2, 5)]), 9).batch([1, 0])
    assert batch["input_ids"].tolist() == [[11, 0, 1, 1], [10, 10, 10, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[1001, 1001, 1001, 1001, 0], [1000, 1000, 0, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[2, 1001, 1001, 1001, 1001], [2, 1000, 1000, 1, 1]]
    assert batch["asked"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert asked_labels(batch).tolist() == [1001, 1001, 1001, 1001, 0, 1000, 1000, 0]
    values = torch.arange(10).view(2, 5)
    assert asked_values(values, batch).tolist() == list(range(8))
    assert output_labels(batch) is batch["labels"]
    text = {"labels": torch.tensor([[1, 2, 3]])}
    assert output_labels(text).tolist() == [[2, 3, -100]]


def test_pairs_above_what_is_taken_are_refused():
    corpus = corpus_of([(4, 3), (2, 5)])
    with refused("max_target_tokens: expected a limit of at most 4", "got a target of 5 tokens"):
        make_blocks(corpus, 4)
    with refused("max_batch_tokens: expected at least 7, the tokens of the longest pair, got 6"):
        make_blocks(corpus, 5, 6)


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_weights_make_the_steps_loss_a_mean_over_all_its_targets(accumulation):
    rng = np.random.default_rng(1)
    blocks = PairBlocks(corpus_of(rng.integers(2, 20, (50, 2))), 20, 100)
    optimization = OptimizationSection(gradient_accumulation_steps=accumulation)
    steps = steps_per_epoch(blocks, optimization)
    assert steps == blocks.num_batches(8) // accumulation
    seen = []
    for step in range(steps):
        batches = list(micro_batches(blocks, step, optimization, 0, torch.device("cpu")))
        asked = [len(batch["asked"]) for batch, _ in batches]
        for number, (batch, weight) in zip(asked, batches, strict=True):
            assert weight == pytest.approx(number * accumulation / sum(asked))
            seen += (batch["input_ids"][:, 0] - 10).tolist()
    assert len(set(seen)) == len(seen)
    if accumulation == 1:
        assert sorted(seen) == list(range(50))


def test_windows_ask_for_every_target_once_in_a_fixed_order():
    rng = np.random.default_rng(2)
    corpus = corpus_of(rng.integers(2, 20, (23, 2)))
    windows = list(evaluation_windows(corpus, 20, batch_size=4))
    targets = torch.cat([window.targets[window.targets >= 0] for window in windows])
    assert sorted(targets.tolist()) == sorted(corpus.targets(corpus.num_tokens).tolist())
    assert set(windows[0].inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    again = list(evaluation_windows(corpus, 20, batch_size=4))
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(windows, again, strict=True))
    few = list(evaluation_windows(corpus, 20, max_tokens=int(corpus.lengths[:3].sum()), batch_size=4))
    assert [len(window.targets) for window in few] == [3]
