"""Reading signals: damage and misfit are named, items are what a distillation needs, loaders may copy them."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from iiad import InputError
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs
from iiad.distillation.signal_record import ShardRecord, SignalRecord
from iiad.distillation.stored_signals import SignalBlocks, StoredSignals
from iiad.files import file_sha256

from .conftest import NUM_BLOCKS, T


@pytest.fixture
def corpus(teacher, little_text, cache_dir):
    return pack(resolve_inputs([str(little_text)], "train"), load_tokenizer(teacher), cache_dir=cache_dir)


@pytest.fixture
def copied(signals, tmp_path):
    return shutil.copytree(signals, tmp_path / "signals")


def test_damage_is_found(copied):
    shard = copied / "shard-00003.bin"
    content = bytearray(shard.read_bytes())
    content[50] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00003\.bin: is damaged"):
        StoredSignals.open(copied).verify()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"shard-00003\.bin: expected \d+ bytes, got \d+"):
        StoredSignals.open(copied)
    shard.unlink()
    with pytest.raises(InputError, match=r"shard-00003\.bin: is missing"):
        StoredSignals.open(copied)


@pytest.mark.parametrize(
    ("field", "place", "value", "message"),
    [
        ("ids", (3, 1), 300, r"block 5: expected different token ids below 300, got others"),
        ("ids", (3, 1), None, r"block 5: expected different token ids below 300, got others"),
        ("scales", (2, 9), np.nan, r"block 5: expected finite hidden states, got others"),
        ("scales", (0, 0), np.inf, r"block 5: expected finite hidden states, got others"),
    ],
)
def test_signals_that_cannot_be_are_refused_even_with_a_hash_that_fits(field, place, value, message, copied):
    path, record = copied / "shard-00001.bin", SignalRecord.load(copied / "signals.json")
    blocks = np.memmap(path, record.layout.block_dtype, mode="r+")
    blocks[1][field][place] = blocks[1][field][3, 0] if value is None else value
    blocks.flush()
    forged = ShardRecord(index=1, sha256=file_sha256(path), kept_mass=record.shards[1].kept_mass)
    shards = [record.shards[0], forged, *record.shards[2:]]
    record.model_copy(update={"shards": shards}).save(copied / "signals.json")
    stored = StoredSignals.open(copied)
    stored.verify()
    stored.read(4)
    with pytest.raises(InputError, match=rf"shard-00001\.bin: {message}"):
        stored.read(5)


def test_a_shard_that_goes_away_while_reading_is_one_line(copied):
    stored = StoredSignals.open(copied)
    (copied / "shard-00001.bin").unlink()
    with pytest.raises(InputError, match=r"shard-00001\.bin: cannot be read"):
        stored.read(5)
    with pytest.raises(InputError, match=r"shard-00001\.bin: cannot be read"):
        stored.verify()


def test_records_that_cannot_be_are_refused(copied, tmp_path):
    with pytest.raises(InputError, match="no such folder of signals"):
        StoredSignals.open(tmp_path / "missing")
    with pytest.raises(InputError, match=r"signals\.json: no such file"):
        StoredSignals.open(tmp_path)
    path = copied / "signals.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "shards": fields["shards"][:-1]}))
    with pytest.raises(InputError, match="shards: expected the 8 of 30 blocks, in order, got 7"):
        StoredSignals.open(copied)
    path.write_text(json.dumps({**fields, "kind": "plan"}))
    with pytest.raises(InputError, match="kind: expected 'signals', got"):
        StoredSignals.open(copied)
    path.write_text(json.dumps({**fields, "layout": {**fields["layout"], "top_k": 301}}))
    with pytest.raises(InputError, match="top_k: expected at most vocab_size"):
        StoredSignals.open(copied)


def test_what_does_not_fit_is_refused_by_name(stored):
    record = stored.record
    fits = {
        "teacher": record.teacher.model_copy(update={"name": "moved"}),
        "tokenizer_fingerprint": record.tokenizer_fingerprint,
        "corpus_fingerprint": record.data.fingerprint,
        "block_size": T,
        "temperature": 2.0,
        "hidden_layers": [2, 0],
    }
    stored.require(**fits)
    stored.require()
    zeros = "0" * 64
    for name, value, message in (
        (
            "teacher",
            record.teacher.model_copy(update={"fingerprint": zeros}),
            "teacher: .*, got 000000000000",
        ),
        (
            "teacher",
            record.teacher.model_copy(update={"num_iterations": [1, 1]}),
            r"iterations: .*, got \[1, 1\]",
        ),
        (
            "teacher",
            record.teacher.model_copy(update={"extrapolation": [[], [], [0.5]]}),
            r"teacher.extrapolation: .*, got \[\[\], \[\], \[0.5\]\]",
        ),
        (
            "teacher",
            record.teacher.model_copy(
                update={"shape": record.teacher.shape.model_copy(update={"vocab_size": 301})}
            ),
            r"layout.vocab_size: expected 300, as captured, got 301",
        ),
        ("tokenizer_fingerprint", zeros, "tokenizer: expected .*, got 000000000000"),
        ("corpus_fingerprint", zeros, "data: expected .*, got 000000000000"),
        ("block_size", 32, "block_size: expected 16, as captured, got 32"),
        ("temperature", 1.0, "temperature: expected 2.0, as captured, got 1.0"),
        ("hidden_layers", [0, 3], r"hidden_layers: expected some of \[0, 1, 2\], got \[3\]"),
    ):
        with pytest.raises(InputError, match=message) as error:
            stored.require(**{**fits, name: value})
        assert "\n" not in str(error.value)


def test_items_are_the_corpus_blocks_with_the_teachers_signals(stored, corpus):
    data = SignalBlocks(TokenBlocks(corpus, T), stored)
    assert len(data) == NUM_BLOCKS < len(TokenBlocks(corpus, T))
    item = data[-1]
    assert {name: tuple(value.shape) for name, value in item.items()} == {
        "input_ids": (T,),
        "labels": (T,),
        "top_ids": (T, 8),
        "top_log_probs": (T, 8),
        "top_tail": (T,),
        "hidden_states": (3, T, 32),
    }
    assert torch.equal(item["input_ids"], TokenBlocks(corpus, T)[NUM_BLOCKS - 1]["input_ids"])
    assert all(torch.equal(item[name], value) for name, value in stored.read(NUM_BLOCKS - 1).items())
    total = item["top_log_probs"].double().exp().sum(1) + item["top_tail"].double().exp()
    torch.testing.assert_close(total, torch.ones(T).double(), rtol=0, atol=1e-6)
    with pytest.raises(IndexError):
        data[NUM_BLOCKS]


def test_hidden_states_are_read_only_where_they_are_wanted(stored, corpus):
    blocks = TokenBlocks(corpus, T)
    assert "hidden_states" not in SignalBlocks(blocks, stored, hidden_layers=())[0]
    two = SignalBlocks(blocks, stored, hidden_layers=[2, 0])[0]["hidden_states"]
    assert torch.equal(two, stored.read(0)["hidden_states"][[2, 0]])
    with pytest.raises(InputError, match="hidden_layers"):
        SignalBlocks(blocks, stored, hidden_layers=[3])


def test_blocks_of_other_text_or_length_are_refused(stored, corpus, teacher, cache_dir, tmp_path):
    with pytest.raises(InputError, match=r"block_size: .* got 32"):
        SignalBlocks(TokenBlocks(corpus, 32), stored)
    (tmp_path / "other.txt").write_text("The plan keeps the token. " * 50)
    other = pack(
        resolve_inputs([str(tmp_path / "other.txt")], "train"), load_tokenizer(teacher), cache_dir=cache_dir
    )
    with pytest.raises(InputError, match="data: expected"):
        SignalBlocks(TokenBlocks(other, T), stored)


def test_a_loader_makes_batches_and_its_workers_get_small_copies(stored, corpus):
    data = SignalBlocks(TokenBlocks(corpus, T), stored)
    assert len(pickle.dumps(stored)) < 10_000
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[7]["top_log_probs"], data[7]["top_log_probs"])
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert batch["hidden_states"].shape == (4, 3, T, 32)
    assert batch["top_ids"].shape == (4, T, 8)
