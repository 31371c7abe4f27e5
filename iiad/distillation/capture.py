"""`iiad capture`: a teacher's signals for every token of a text, kept on disk for any number of distillations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiad.artefacts import Journal
from iiad.checkpoints import choose_device, label_models, load_config, load_identified, read_limits
from iiad.data import (
    AnyBlocks,
    PairBlocks,
    PairLimits,
    TokenBlocks,
    load_tokenizer,
    make_blocks,
    pack_for,
    resolve_inputs,
    tokenizer_fingerprint,
)
from iiad.errors import InputError
from iiad.files import atomic_file, file_sha256
from iiad.identities import DataIdentity
from iiad.memory import memory_explained
from iiad.outputs import lock_folder, require_capture_folder
from iiad.progress import print_status, progress
from iiad.training.batches import Batch
from iiad.training.head import asked_values
from iiad.training.scoring import COUNTED_TOKENS, require_knowledge, score_beginning

from .capture_checks import require, require_layers, require_plain_head, require_values
from .signal_encoding import encode_gaps, encode_ids, encode_states
from .signal_record import HEAD, JOURNAL, RECORD, ShardRecord, SignalLayout, SignalRecord, shard_name
from .stored_head import choose_scales, encode_head
from .teacher_outputs import BatchSignals, TeacherOutputs

__all__ = ["capture_signals"]

LONGEST_DEFAULT_BLOCK = 512
SHARD_BYTES = 1 << 26
LEAST_BLOCKS_PER_SHARD = 16  # so that blocks with hidden states still make whole batches
SCALED_BLOCKS = 16  # whose final hidden states decide on the scales of channels
_REMEDIES = ("a smaller batch", "shorter blocks", "bfloat16")


def capture_signals(
    teacher_folder: str | Path,
    inputs: Sequence[str],
    output_dir: str | Path,
    *,
    top_k: int | None = 64,
    temperature: float = 1.0,
    block_size: int | None = None,
    hidden_layers: Sequence[int] = (),
    compression: str | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    dtype: str = "float32",
    text_field: str = "text",
    cache_dir: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    blocks_per_shard: int | None = None,
    chunk_tokens: int | None = None,
    check_teacher: bool = True,
    limits: PairLimits | None = None,
) -> SignalRecord:
    """Run a teacher over a text; keep its distribution of every next token and, if asked, hidden states.

    The blocks are those that `iiad distill` packs of the same text. Batch and chunk size change nothing but the
    rounding of the teacher's arithmetic, and may be others when a capture is resumed.

    Args:
        teacher_folder: a model folder, with its tokenizer, or a hub name; it runs its own plan.
        inputs: files, patterns, folders or `stdlib`, which here is its training split; pairs for an encoder-decoder,
            of which the signals are the decoder's.
        output_dir: a new folder for signals.json and the shards.
        top_k: k, tokens whose probability is kept; None: the final hidden state, of which, with the head in
            head.safetensors, distilling makes the exact distribution.
        temperature: the logits are divided by it; 1 for final hidden states, which serve any.
        block_size: T, tokens of a block; default: 512, or the model's context where that is less. Of pairs: the most
            of a source and of a target.
        hidden_layers: which of the L + 1 hidden states to keep: 0 the embeddings, L those after the final norm.
        compression: of hidden states: "bfloat16", or "int8" with a scale for each token; default: "int8" with top_k,
            "bfloat16" without, as a distribution shows int8's rounding.
        batch_size: blocks at a time.
        max_tokens: use only whole blocks of this many tokens, from the start; None: all.
        dtype: of the teacher's arithmetic: "float32", or "bfloat16" for autocast, as in training.
        text_field: the jsonl field or parquet column with the text.
        cache_dir: where tokenized text is kept.
        resume: go on from the whole shards of a capture that was interrupted, if there are any.
        device: default: CUDA where there is one, else the CPU.
        blocks_per_shard: blocks that a kill can cost; default: as many as make 64 MiB, at least 16.
        chunk_tokens: tokens whose logits are held at a time; default: as many as make 64 MiB.
        limits: of pairs: those that a recipe's data section has.
        check_teacher: refuse a teacher that predicts the text no better than token counts do.

    Raises InputError where a model, text, folder or value cannot be used, a disk is full or memory runs out, or what
    is to be resumed is of something else; before the first shard nothing but signals.partial.jsonl is written then.
    """
    device = choose_device(device)
    compression = compression or ("bfloat16" if top_k is None else "int8")
    require_values(dtype, device, temperature, batch_size, blocks_per_shard, hidden_layers, compression)
    if top_k is None:
        require("temperature", temperature, temperature == 1, "1, as final hidden states serve any")
    with lock_folder(output_dir):
        folder = require_capture_folder(Path(output_dir), resume, RECORD, JOURNAL, "signals")
        context, vocab_size = read_limits(teacher_folder)
        T = min(LONGEST_DEFAULT_BLOCK, context) if block_size is None else block_size
        fits = top_k is None or 1 <= top_k <= vocab_size
        require("top_k", top_k, fits, f"1 to {vocab_size}, the teacher's vocabulary")
        require("block_size", T, 2 <= T <= context, f"2 to {context}, the teacher's context")
        require(
            "max_tokens", max_tokens, max_tokens is None or max_tokens >= T, f"at least {T}, a block's tokens"
        )
        blocks, tokenizer = _pack(teacher_folder, inputs, T, text_field, cache_dir, limits)
        if isinstance(blocks, PairBlocks) and max_tokens is not None:
            raise InputError(
                f"max_tokens: expected none for pairs, of which all are captured, got {max_tokens}"
            )
        T = blocks.num_outputs
        num_blocks = len(blocks) if max_tokens is None else min(len(blocks), max_tokens // T)
        teacher, identity = load_identified(teacher_folder, device, dtype, cast=False, kind=None)
        require_layers(hidden_layers, identity)
        head = scales = None
        if top_k is None:
            require_plain_head(teacher)
            hidden_layers = list({*hidden_layers, identity.num_decoder_layers})
            if compression == "int8":
                scales = _measure_scales(teacher, blocks, num_blocks, dtype)
            head = encode_head(teacher, scales)
        record = SignalRecord(
            teacher=identity,
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            data=DataIdentity(
                names=list(inputs), fingerprint=blocks.corpus.fingerprint, num_tokens=num_blocks * T
            ),
            layout=_layout(teacher.config, T, top_k, sorted(hidden_layers), compression, blocks_per_shard),
            num_blocks=num_blocks,
            temperature=temperature,
            dtype=dtype,
            head=None if head is None else hashlib.sha256(head).hexdigest(),
        )
        outputs = TeacherOutputs(
            teacher, top_k, temperature, record.layout.hidden_layers, dtype, chunk_tokens
        )
        where = f"capturing {label_models([teacher_folder])[0]} on {device}"
        with memory_explained(where, teacher, batch_size, T, cached=False, remedies=_REMEDIES):
            score, held = score_beginning(teacher, blocks.corpus, blocks.block_size, batch_size, dtype)
            override = "--no-check-teacher" if check_teacher else None
            known = blocks.corpus.targets(COUNTED_TOKENS)
            require_knowledge(score.nll, known, held, vocab_size, "the text", override)
            return _capture_shards(outputs, blocks, folder, record, batch_size, head, scales)


def _capture_shards(
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
                    signals = outputs(_take(blocks, batch, device), f"block {first}")
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


def _take(blocks: AnyBlocks, indices: range, device: torch.device) -> Batch:
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


def _measure_scales(teacher: Any, blocks: AnyBlocks, num_blocks: int, dtype: str) -> Tensor:
    """Return scales (D,) of the final hidden state's channels, found on the first blocks.

    One block at a time, so that they do not depend on the size of batches.
    """
    outputs = TeacherOutputs(teacher, None, 1.0, [teacher.config.num_layers], dtype)
    found = []
    for index in range(min(num_blocks, SCALED_BLOCKS)):
        batch = _take(blocks, range(index, index + 1), teacher.device)
        states = outputs(batch, f"block {index}").states
        assert states is not None
        found.append(asked_values(states[:, 0], batch))
    return choose_scales(torch.cat(found))


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


def _pack(
    teacher: str | Path,
    inputs: Sequence[str],
    block_size: int,
    text_field: str,
    cache_dir: str | Path | None,
    limits: PairLimits | None,
) -> tuple[AnyBlocks, Any]:
    """Return the text's blocks and the tokenizer. Raises InputError where one of them cannot be used."""
    sources = resolve_inputs(inputs, "train")
    tokenizer, config = load_tokenizer(teacher), load_config(teacher)
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{teacher}: tokenizer: expected at most {config.vocab_size} tokens, the model's, got {len(tokenizer)}"
        )
    options: dict[str, Any] = {"text_field": text_field, "cache_dir": cache_dir, "limits": limits}
    corpus = pack_for(config, sources, tokenizer, where=f"{teacher}: data", **options)
    return make_blocks(corpus, block_size), tokenizer


def _layout(
    config: Any,
    block_size: int,
    top_k: int | None,
    hidden_layers: list[int],
    compression: str,
    blocks_per_shard: int | None,
) -> SignalLayout:
    layout = SignalLayout(
        block_size=block_size,
        vocab_size=config.vocab_size,
        top_k=top_k,
        hidden_layers=hidden_layers,
        hidden_size=config.hidden_size,
        compression=compression if hidden_layers else None,
        blocks_per_shard=1,
    )
    default = max(LEAST_BLOCKS_PER_SHARD, SHARD_BYTES // layout.block_dtype.itemsize)
    return layout.model_copy(update={"blocks_per_shard": blocks_per_shard or default})
