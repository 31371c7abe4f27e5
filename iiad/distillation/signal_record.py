"""signals.json: the teacher and the text of stored signals, their layout, and the hashes of their files.

Needs no torch. Legend: T tokens of a block, V vocabulary, k entries kept, n hidden states kept, D model width,
L layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

import iiad
from iiad.artefacts import Amount, Artefact, Count, Journal, Record, Size, check_fields, without_empty
from iiad.errors import InputError
from iiad.files import MOST_JSON_BYTES, parse_json, read_whole
from iiad.identities import DataIdentity, ModelIdentity

__all__ = [
    "COMPRESSIONS",
    "HEAD",
    "JOURNAL",
    "RECORD",
    "Compression",
    "ShardRecord",
    "SignalLayout",
    "SignalRecord",
    "read_record",
    "shard_name",
]

RECORD = "signals.json"
HEAD = "head.safetensors"
"""The teacher's head, (V, D), where its final hidden states are kept; with int8 also their channels' scales, (D,)."""
JOURNAL = "signals.partial.jsonl"
"""The whole shards of a capture that is not finished, a line each."""
Compression = Literal["int8", "bfloat16"]
COMPRESSIONS: tuple[Compression, ...] = ("int8", "bfloat16")
SMALL_VOCABULARY = 1 << 16
"""Up to so many tokens, two bytes hold an id; beyond, three do, of which there are 2^24."""


def shard_name(index: int) -> str:
    """The file of a shard, numbered from 0."""
    return f"shard-{index:05d}.bin"


class SignalLayout(Record):
    """All that the bytes of a block follow from (ours)."""

    block_size: Size = Field(ge=2, description="T")
    vocab_size: Size = Field(le=1 << 24, description="V")
    top_k: Size | None = Field(
        description="k: tokens whose probability is kept, the rest being one mass; null: none, as the head makes the "
        "whole distribution of the last of hidden_layers"
    )
    log_probs: Literal["gaps, uint16 of 2^-10 nat"] = "gaps, uint16 of 2^-10 nat"
    hidden_layers: list[Count] = Field(
        default=[], description="which hidden states: 0 the embeddings, L those after the final norm"
    )
    hidden_size: Size = Field(description="D")
    compression: Compression | None = Field(
        default=None,
        description="of hidden states: bfloat16, or int8 with a scale for each token (without top_k, of final ones, "
        "also one for each channel, beside the head); null: none kept",
    )
    blocks_per_shard: Size = Field(description="of all shards but the last")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_k is None and not self.hidden_layers:
            raise ValueError("hidden_layers: expected the last one without top_k, got none")
        if self.top_k is not None and self.top_k > self.vocab_size:
            raise ValueError(f"top_k: expected at most vocab_size ({self.vocab_size}), got {self.top_k}")
        if (self.compression is None) == bool(self.hidden_layers):
            raise ValueError("compression: expected one with hidden_layers, null without them")
        if sorted(set(self.hidden_layers)) != self.hidden_layers:
            raise ValueError(f"hidden_layers: expected each once, ascending, got {self.hidden_layers}")
        try:
            _ = self.block_dtype
        except ValueError:
            raise ValueError(
                f"block_size: expected blocks below 2 GiB, got {self.block_size} tokens"
            ) from None
        return self

    @property
    def block_dtype(self) -> np.dtype:
        """One block as a numpy record, without padding: all of a block lies together, and is read at once."""
        T, k, n, D = self.block_size, self.top_k, len(self.hidden_layers), self.hidden_size
        fields: list[tuple[str, str, tuple[int, ...]]] = []
        if k is not None:
            fields.append(("ids", "<u2", (T, k)))
            if self.vocab_size > SMALL_VOCABULARY:
                fields.append(("high_ids", "u1", (T, k)))
            fields.append(("gaps", "<u2", (T, k)))
        if self.compression == "int8":
            fields += [("scales", "<f4", (n, T)), ("states", "i1", (n, T, D))]
        elif self.compression == "bfloat16":
            fields.append(("states", "<u2", (n, T, D)))
        return np.dtype(fields)

    @property
    def bytes_per_token(self) -> float:
        """Bytes that a token takes on disk."""
        return self.block_dtype.itemsize / self.block_size


class ShardRecord(Record):
    """A shard that is whole."""

    index: Count
    sha256: str = Field(description="of its file")
    kept_mass: Amount = Field(
        description="mean over its tokens of the probability of the k entries, 0 to 1; else 1"
    )


class SignalRecord(Artefact):
    """Written when every shard is whole: without it a folder holds no signals."""

    kind: Literal["signals"] = "signals"
    teacher: ModelIdentity = Field(description="the model and the plan that it ran")
    tokenizer_fingerprint: str
    data: DataIdentity = Field(description="the packed corpus, and how many tokens from its start were used")
    layout: SignalLayout
    num_blocks: Size
    temperature: Amount = Field(
        gt=0, description="the logits were divided by it; 1 without top_k, which serves any"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        description="of the teacher's arithmetic; its head: float32"
    )
    iiad_version: str = Field(default_factory=lambda: iiad.__version__)
    head: str | None = Field(
        default=None, description=f"sha256 of {HEAD}, which is there without top_k; not written with it"
    )
    shards: list[ShardRecord] = Field(default=[], description="in order")

    @model_validator(mode="after")
    def _has_head(self) -> Self:
        layout = self.layout
        if (self.head is None) == (layout.top_k is None):
            raise ValueError("head: expected a hash without top_k, null with it")
        if layout.top_k is None and layout.hidden_layers[-1] != self.teacher.num_decoder_layers:
            expected = f"the teacher's last one, {self.teacher.num_decoder_layers}, without top_k"
            raise ValueError(f"layout.hidden_layers: expected {expected}, got {layout.hidden_layers}")
        return self

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "head")

    @property
    def num_shards(self) -> int:
        """Shards of the whole, whether or not they are there yet."""
        return -(-self.num_blocks // self.layout.blocks_per_shard)

    def blocks_of(self, shard: int) -> range:
        """The blocks that a shard holds."""
        first = shard * self.layout.blocks_per_shard
        return range(first, min(first + self.layout.blocks_per_shard, self.num_blocks))

    @property
    def num_tokens(self) -> int:
        """Tokens that signals are held of."""
        return self.num_blocks * self.layout.block_size

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return self.num_blocks * self.layout.block_dtype.itemsize

    @property
    def kept_mass(self) -> float:
        """Mean over all tokens of the probability of the k entries, 0 to 1."""
        masses = (shard.kept_mass * len(self.blocks_of(shard.index)) for shard in self.shards)
        return sum(masses) / max(1, sum(len(self.blocks_of(shard.index)) for shard in self.shards))


def read_record(folder: Path) -> SignalRecord:
    """Read the record of a folder of signals; of an unfinished capture, with the shards that are there.

    Raises InputError for a folder without either, or a file that is none.
    """
    path = folder / JOURNAL
    if (folder / RECORD).exists() or not path.exists():
        return SignalRecord.load(folder / RECORD)
    heading = parse_json(read_whole(path, MOST_JSON_BYTES).partition("\n")[0], path)
    if not isinstance(heading, dict) or not all(
        isinstance(heading.get(n), dict) for n in ("teacher", "data")
    ):
        raise InputError(f"{path}: expected a journal of iiad, got another file")
    unnamed = {"teacher": {**heading["teacher"], "name": "teacher"}, "data": {**heading["data"], "names": []}}
    record = check_fields(SignalRecord, {**heading, **unnamed, "kind": "signals"}, path)
    return record.model_copy(update={"shards": Journal(path, heading, ShardRecord).read()})
