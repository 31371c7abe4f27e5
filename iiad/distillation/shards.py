"""Shards of a capture: the signals of so many blocks each, written whole or not at all, and noted in a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiad.artefacts import Journal
from iiad.data import AnyBlocks, TokenBlocks
from iiad.errors import InputError
from iiad.files import atomic_file, file_sha256
from iiad.progress import print_status, progress
from iiad.training.batches import Batch

from .signal_encoding import encode_gaps, encode_ids, encode_states
from .signal_record import HEAD, JOURNAL, RECORD, ShardRecord, SignalLayout, SignalRecord, shard_name
from .teacher_outputs import BatchSignals, TeacherOutputs

__all__ = ["capture_shards", "take_blocks"]


def capture_shards(
    outputs: TeacherOutputs,
    blocks: AnyBlocks,
    folder: Path,
    record: SignalRecord,
    batch_size: int,
    head: bytes | None,
    scales: Tensor | None,
) -> SignalRecord:
    """Capture the shards that are not there, note each once it is on disk, and write the record at last.

    head: content of its file, if there is to be one. scales: by which final hidden states are divided.
    """
    device = outputs.model.device
    for pattern in (f".{JOURNAL}-*", f".{RECORD}-*", f".{HEAD}-*", ".shard-*.tmp"):
        for leftover in folder.glob(pattern):  # half-written by a capture that was killed
            leftover.unlink()
    # The version is that of who finishes; names may change where content does not.
    mutable: dict[str, Any] = {
        "kind": True,
        "shards": True,
        "iiad_version": True,
        "teacher": {"name"},
        "data": {"names"},
    }
    heading = {"kind": "unfinished signals", **record.model_dump(exclude=mutable)}
    journal = Journal(folder / JOURNAL, heading, ShardRecord)
    shards = _whole_shards(folder, journal, record.num_shards)
    journal.start([shards[index] for index in sorted(shards)])
    if head is not None:
        with atomic_file(folder / HEAD, "; make room and go on with --resume") as file:
            file.write(head)
    missing = [index for index in range(record.num_shards) if index not in shards]
    T = record.layout.block_size
    print_status(
        f"{record.num_tokens:,} tokens at {record.layout.bytes_per_token:,.0f} bytes each, "
        f"in {record.num_shards} shards"
    )
    if shards:
        print_status(f"{len(shards)} shards were captured before")
    advice = "; the shards before it are whole: make room and go on with --resume"
    with progress("capturing", sum(len(record.blocks_of(i)) for i in missing) * T, "tokens") as advance:
        for index in missing:
            span, path, kept_mass = record.blocks_of(index), folder / shard_name(index), 0.0
            with atomic_file(path, advice) as file:
                # A batch never reaches into the next shard: so a resumed run makes the same batches.
                for first in range(span.start, span.stop, batch_size):
                    batch = range(first, min(first + batch_size, span.stop))
                    signals = outputs(take_blocks(blocks, batch, device), f"block {first}")
                    file.write(_encode(signals, record.layout, scales).tobytes())
                    kept_mass += signals.kept_mass
                    advance(len(batch) * T)
            num_asked = None if blocks.num_asked is None else blocks.num_asked[span.start : span.stop].sum()
            kept_mass /= len(span) * T if num_asked is None else num_asked
            shards[index] = ShardRecord(index=index, sha256=file_sha256(path), kept_mass=kept_mass)
            journal.append(shards[index])
    record = record.model_copy(update={"shards": [shards[index] for index in sorted(shards)]})
    record.save(folder / RECORD)  # makes the folder signals: only then may the journal go
    journal.remove()
    return record


def take_blocks(blocks: AnyBlocks, indices: range, device: torch.device) -> Batch:
    """Return blocks as a batch, rows and targets padded to the longest of all."""
    batch = (
        blocks.batch(indices)
        if isinstance(blocks, TokenBlocks)
        else blocks.batch(indices, blocks.num_outputs)
    )
    return {name: value.to(device) for name, value in batch.items()}


def _whole_shards(folder: Path, journal: Journal[ShardRecord], num_shards: int) -> dict[int, ShardRecord]:
    """Return the noted shards whose files have their hashes, by index.

    Raises InputError where the journal is of another teacher, of other data or settings, naming what differs.
    """
    shards = {}
    for number, shard in enumerate(journal.read(), 2):
        if shard.index >= num_shards:
            expected = f"a shard from 0 to {num_shards - 1}"
            raise InputError(f"{journal.path}: line {number}: index: expected {expected}, got {shard.index}")
        path = folder / shard_name(shard.index)
        if path.exists() and file_sha256(path) == shard.sha256:
            shards[shard.index] = shard
        else:
            print_status(f"{path}: is missing or damaged; it is captured again")
    return shards


def _encode(signals: BatchSignals, layout: SignalLayout, scales: Tensor | None) -> np.ndarray:
    """Signals of B blocks -> (B,) as they are stored."""
    given = signals.states if signals.ids is None else signals.ids
    assert given is not None
    encoded = np.zeros(len(given), layout.block_dtype)
    if signals.ids is not None and signals.gaps is not None:
        encode_ids(signals.ids, encoded)
        encoded["gaps"] = encode_gaps(signals.gaps)
    if signals.states is not None and layout.compression is not None:
        states = signals.states
        if scales is not None:
            states = torch.cat([states[:, :-1].float(), states[:, -1:] / scales], dim=1)
        encode_states(states, layout.compression, encoded)
    return encoded
