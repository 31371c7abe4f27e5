"""Labelled rows: files and tasks as tokens and labels, and rows that do not see each other."""

import json
from itertools import islice

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from iiad.data import (
    RowBlocks,
    evaluation_windows,
    make_blocks,
    next_labels,
    parse_task,
    read_texts,
    resolve_inputs,
    task_tokenizer,
)
from iiad.training.batches import micro_batches
from iiad.training.sections import OptimizationSection
from tests.helpers import VARIANTS, refused

PAIRS = [
    {"prompt": "class Stack:", "completion": " push"},
    {"prompt": "", "completion": "items"},
    {"prompt": "# 漢字 and", "completion": " 🙂", "more": 1},
]
IDS = [{"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}, {"input_ids": [1, 2], "labels": [-100, 9]}]


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def rows_of(corpus):
    cells = [corpus.row(number) for number in range(corpus.num_documents)]
    return [(row["token"].tolist(), row["label"].tolist()) for row in cells]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_of_a_pair_the_completion_and_its_end_are_asked_for(suffix, tmp_path, packed, tokenizer):
    corpus = packed(write(tmp_path / f"a{suffix}", PAIRS))
    for (ids, labels), pair in zip(rows_of(corpus), PAIRS, strict=True):
        num_prompt = len(tokenizer(pair["prompt"])["input_ids"])
        assert tokenizer.decode(ids[:num_prompt]) == pair["prompt"]
        assert tokenizer.decode(ids[num_prompt:]) == pair["completion"] + tokenizer.eos_token
        first = max(1, num_prompt)  # nothing comes before the first token
        assert labels == [-100] * first + ids[first:]
    assert corpus.num_tokens == sum(len(ids) for ids, _ in rows_of(corpus))
    assert corpus.targets(corpus.num_tokens).tolist() == [
        x for _, row in rows_of(corpus) for x in row if x >= 0
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_ids_are_taken_as_they_are(suffix, tmp_path, packed):
    corpus = packed(write(tmp_path / f"a{suffix}", IDS))
    assert rows_of(corpus) == [([5, 6, 7], [-100, 6, -100]), ([1, 2], [-100, 9])]


def test_rows_are_found_again_and_built_anew_where_the_cache_is_damaged(tmp_path, packed):
    path = write(tmp_path / "a.jsonl", PAIRS)
    first = packed(path)
    assert packed.tokenized
    (stored,) = (tmp_path / "cache").glob("*.npz")
    assert rows_of(packed(path)) == rows_of(first)
    assert not packed.tokenized
    content = bytearray(stored.read_bytes())
    for change in (
        bytes(content[:-9]),
        b"",
        bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:]),
    ):
        stored.write_bytes(change)
        assert rows_of(packed(path)) == rows_of(first)
        assert packed.tokenized


TEXT = {"text": "some words"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*PAIRS, TEXT], "line 4: expected fields prompt and completion, as in the first row, got text"),
        (
            [*PAIRS, *IDS],
            "line 4: expected fields prompt and completion, as in the first row, got input_ids, labels",
        ),
        ([*PAIRS, {"prompt": "a", "completion": ""}], "line 4: completion: expected text, got none"),
        ([{"prompt": 3, "completion": "a"}], "line 1: prompt: expected a string, got a number in it"),
        ([{"prompt": "a", "completion": None}], "line 1: completion: expected a string, got null in it"),
        ([{"input_ids": [1, 320], "labels": [1, 2]}], "line 1: input_ids: expected 0 to 319, got 320"),
        ([{"input_ids": [1, 2], "labels": [1, 320]}], "line 1: labels: expected -100 or 0 to 319, got 320"),
        ([{"input_ids": [1, 2], "labels": [1, -1]}], "line 1: labels: expected -100 or 0 to 319, got -1"),
        ([{"input_ids": [1, True], "labels": [1, 2]}], "line 1: input_ids: expected 0 to 319, got True"),
        ([{"input_ids": [1, 2], "labels": [1]}], "line 1: labels: expected 2, as many as input_ids, got 1"),
        (
            [{"input_ids": [1, 2], "labels": [5, -100]}],
            "line 1: labels: expected one to ask for after the first",
        ),
        ([{"input_ids": [], "labels": []}], "line 1: input_ids: expected a list of whole numbers"),
        (
            [{"input_ids": "ab", "labels": [1, 2]}],
            "line 1: input_ids: expected a list of whole numbers, got str",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows, message, tmp_path, packed, tokenizer):
    assert len(tokenizer) == 320
    with refused(message):
        packed(write(tmp_path / "a.jsonl", rows))
    assert not list((tmp_path / "cache").glob("*.npz"))


def test_text_rows_and_tasks_are_not_mixed(tmp_path, packed):
    pairs, text = write(tmp_path / "a.jsonl", PAIRS), write(tmp_path / "b.jsonl", [TEXT])
    with refused("got rows of prompt and completion and text"):
        packed(pairs, text)
    with refused("got text and states:group=s3,length=24,seed=0"):
        packed(text, "states")


def test_a_text_field_makes_text_of_rows_that_have_labels_too(tmp_path, packed, tokenizer):
    path = write(tmp_path / "a.jsonl", [{**TEXT, **pair} for pair in PAIRS])
    assert not hasattr(packed(path), "starts")
    assert packed(path, text_field="prompt").num_documents == 2  # one is empty


def test_prompts_and_completions_are_text_to_train_a_tokenizer_on(tmp_path):
    (source,) = resolve_inputs([str(write(tmp_path / "a.jsonl", PAIRS))])
    texts = ["".join(document) for document in read_texts(source, "text")]
    assert texts == [text for pair in PAIRS for text in (pair["prompt"], pair["completion"])]
    (source,) = resolve_inputs([str(write(tmp_path / "a.jsonl", IDS))])
    with refused("tokenizer.path: expected the tokenizer of", "whose rows are token ids"):
        list(read_texts(source, "text"))


@pytest.fixture(scope="module")
def words():
    """The tokenizer of small expressions."""
    return task_tokenizer(parse_task("expressions:operations=4,modulus=5").words)


@pytest.fixture
def expressions(words, packed):
    return packed("expressions:operations=4,modulus=5,rows=40", tokenizer=words)


def test_tasks_are_words_of_the_tokenizer_and_need_all_of_theirs(words, packed, tokenizer):
    corpus = packed("expressions:operations=4,modulus=5", tokenizer=words, num_rows=7)
    rows = list(islice(parse_task("expressions:operations=4,modulus=5").generate("train"), 7))
    for (ids, labels), row in zip(rows_of(corpus), rows, strict=True):
        assert words.convert_ids_to_tokens(ids) == row.words
        assert words.decode(ids) == " ".join(row.words)
        assert labels == [-100] * (len(ids) - 1) + ids[-1:]
    assert words(" ".join(rows[0].words))["input_ids"] == rows_of(corpus)[0][0]
    with refused("expected one with the words of states:group=s5,length=24,seed=0,steps=all, got none for"):
        packed("states:group=s5", tokenizer=tokenizer)


def test_the_fingerprint_of_a_task_is_of_its_rows_and_not_of_their_number(words, packed):
    def pack(spec, **options):
        return packed(f"expressions:operations=4,modulus=5{spec}", tokenizer=words, **options).fingerprint

    assert pack("") == pack(",rows=3") == pack("", num_rows=9)
    assert pack("") != pack(",seed=1")
    validation = resolve_inputs(["expressions:operations=4,modulus=5"], "validation")
    assert packed(*validation, tokenizer=words).fingerprint != pack("")


def test_several_tasks_take_turns(packed):
    specs = ["states:length=3,rows=2", "states:length=5"]
    tokenizer = task_tokenizer(parse_task("states").words)
    corpus = packed(*specs, tokenizer=tokenizer, num_rows=5)
    assert corpus.lengths.tolist() == [4, 6, 4, 6, 6]
    assert corpus.grouped_by == "length"


def test_batches_are_padded_to_their_longest_row_and_name_what_is_asked(expressions):
    blocks = make_blocks(expressions, 64)
    assert isinstance(blocks, RowBlocks)
    assert blocks.block_size == expressions.lengths.max()
    batch = blocks.batch([3, 0, 7])
    lengths = expressions.lengths[[3, 0, 7]]
    assert batch["input_ids"].shape == batch["labels"].shape == (3, max(lengths))
    for row, (number, length) in enumerate(zip([3, 0, 7], lengths, strict=True)):
        one = blocks[number]
        assert batch["input_ids"][row, :length].tolist() == one["input_ids"].tolist()
        assert batch["labels"][row].tolist() == one["labels"].tolist() + [-100] * (max(lengths) - length)
    wanted = [row * max(lengths) + length - 2 for row, length in enumerate(lengths)]
    assert batch["asked"].tolist() == wanted
    assert (next_labels(batch["labels"]).flatten()[batch["asked"]] >= 0).all()
    assert blocks.num_asked.tolist() == [1] * 40
    with refused(f"block_size: expected at least the {blocks.block_size} tokens of row", "got 4"):
        make_blocks(expressions, 4)


@pytest.mark.parametrize("kind", ["history", "plain", "pcformer-rk2", "shared"])
def test_the_output_for_a_row_does_not_depend_on_its_neighbours(kind, expressions):
    model, blocks = VARIANTS[kind](), make_blocks(expressions, 64)
    shortest = int(np.argmin(expressions.lengths))
    length = int(expressions.lengths[shortest])
    with torch.no_grad():
        alone = model(blocks.batch([shortest])["input_ids"]).logits[0]
        for others in ([0, 1], [5, 2]):
            batch = blocks.batch([shortest, *others])
            assert batch["input_ids"].shape[1] > length
            together = model(batch["input_ids"]).logits[0, :length]
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_windows_ask_for_each_answer_once_with_its_group(expressions):
    windows = list(evaluation_windows(expressions, 63, batch_size=7))
    asked = [window.targets >= 0 for window in windows]
    assert sum(int(mask.sum()) for mask in asked) == 40
    targets = torch.cat([window.targets[mask] for window, mask in zip(windows, asked, strict=True)])
    assert targets.tolist() == expressions.targets(expressions.num_tokens).tolist()
    groups = torch.cat([window.groups[mask] for window, mask in zip(windows, asked, strict=True)])
    assert set(groups.tolist()) == {1, 2, 3, 4}
    few = list(evaluation_windows(expressions, 63, max_tokens=int(expressions.starts[3]) + 1))
    assert len(few) == 3


def test_weights_make_the_steps_loss_a_mean_over_all_that_it_asks_for(packed, tmp_path):
    rows = [{"input_ids": [1] * n, "labels": [-100] + [1] * (n - 1)} for n in range(2, 10)]
    blocks = make_blocks(packed(write(tmp_path / "a.jsonl", rows)), 16)
    settings = OptimizationSection(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    batches = list(micro_batches(blocks, 0, settings, 0, torch.device("cpu")))
    total = sum(range(1, 9))
    for batch, weight in batches:
        assert weight == pytest.approx(len(batch["asked"]) * 4 / total)
    assert sum(weight for _, weight in batches) == pytest.approx(4)
