"""`iiad capture`: what a teacher says about every token of a text, kept on disk for any number of distillations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiad.artefacts import DataIdentity, ModelIdentity
from iiad.checkpoints import DTYPES, choose_device, label_models, load_identified, read_limits
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs, tokenizer_fingerprint
from iiad.errors import InputError
from iiad.files import lock_folder
from iiad.memory import memory_explained
from iiad.progress import print_status, progress
from iiad.training.scoring import measure_naive_losses, require_knowledge, score_beginning

from .capture_journal import CaptureJournal, remove_leftovers, require_signal_folder
from .signal_record import COMPRESSIONS, ShardRecord, SignalLayout, SignalRecord, shard_name
from .signal_shards import ShardWriter, encode_gaps, encode_ids, encode_states
from .teacher_outputs import TeacherOutputs

__all__ = ["capture_signals"]

LONGEST_DEFAULT_BLOCK = 512
SHARD_BYTES = 1 << 26
LEAST_BLOCKS_PER_SHARD = 16  # so that blocks with hidden states still make whole batches
_REMEDIES = ("a smaller batch", "shorter blocks", "bfloat16")


def capture_signals(
    teacher_folder: str | Path,
    inputs: Sequence[str],
    output_dir: str | Path,
    *,
    top_k: int = 64,
    temperature: float = 1.0,
    block_size: int | None = None,
    hidden_layers: Sequence[int] = (),
    compression: str = "int8",
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
) -> SignalRecord:
    """Run a teacher over a text and keep its likeliest tokens, the mass of the others and, if asked, hidden states.

    The blocks are those that `iiad distill` packs of the same text. Batch and chunk size change nothing but the
    rounding of the teacher's arithmetic, and may be others when a capture is resumed.

    Args:
        teacher_folder: a model folder, with its tokenizer, or a hub name; it runs its own plan.
        inputs: files, patterns, folders or `stdlib`, which here is its training split.
        output_dir: a new folder for signals.json and the shards.
        top_k: k, tokens whose probability is kept.
        temperature: the logits are divided by it.
        block_size: T, tokens of a block; default: 512, or the model's context where that is less.
        hidden_layers: which of the L + 1 hidden states to keep: 0 the embeddings, L those after the final norm.
        compression: of hidden states: "bfloat16", or "int8" with a scale for each token.
        batch_size: blocks at a time.
        max_tokens: use only whole blocks of this many tokens, from the start; None: all.
        dtype: of the teacher's arithmetic: "float32", or "bfloat16" for autocast, as in training.
        text_field: the jsonl field or parquet column with the text.
        cache_dir: where tokenized text is kept.
        resume: go on from the whole shards of a capture that was interrupted, if there are any.
        device: default: CUDA where there is one, else the CPU.
        blocks_per_shard: blocks that a kill can cost; default: as many as make 64 MiB, at least 16.
        chunk_tokens: tokens whose logits are held at a time; default: as many as make 64 MiB.

        check_teacher: refuse a teacher that predicts the text no better than token counts do.

    Raises InputError where a model, text, folder or value cannot be used, a disk is full or memory runs out, or what
    is to be resumed is of something else; before the first shard nothing but signals.partial.jsonl is written then.
    """
    device = choose_device(device)
    _require_values(dtype, device, temperature, batch_size, blocks_per_shard, hidden_layers, compression)
    folder = require_signal_folder(output_dir, resume)
    context, vocab_size = read_limits(teacher_folder)
    if not 1 <= top_k <= vocab_size:
        raise InputError(f"top_k: found {top_k}; accepted: 1 to {vocab_size}, the teacher's vocabulary")
    T = min(LONGEST_DEFAULT_BLOCK, context) if block_size is None else block_size
    if not 2 <= T <= context:
        raise InputError(f"block_size: found {T}; accepted: 2 to {context}, the teacher's context")
    blocks, tokenizer = _pack(teacher_folder, inputs, T, vocab_size, text_field, cache_dir)
    num_blocks = _count_blocks(blocks, max_tokens)
    teacher, identity = load_identified(teacher_folder, device, dtype, cast=False)
    _require_layers(hidden_layers, identity)
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
    )
    outputs = TeacherOutputs(teacher, top_k, temperature, record.layout.hidden_layers, dtype, chunk_tokens)
    where = f"capturing {label_models([teacher_folder])[0]} on {device}"
    with memory_explained(where, teacher, batch_size, T, cached=False, remedies=_REMEDIES):
        score, held = score_beginning(teacher, blocks.corpus, T, batch_size, dtype)
        naive = measure_naive_losses(blocks.corpus.tokens, held, vocab_size)
        print_status(
            require_knowledge(score.nll, naive, "the text", "--no-check-teacher" if check_teacher else None)
        )
        with lock_folder(folder):
            remove_leftovers(folder)
            return _capture_shards(outputs, blocks, CaptureJournal(folder, record), batch_size, device)


def _capture_shards(
    outputs: TeacherOutputs, blocks: TokenBlocks, journal: CaptureJournal, batch_size: int, device: str
) -> SignalRecord:
    """Capture what the journal does not hold, shard by shard, and finish."""
    record = journal.record
    journal.begin()
    missing = [index for index in range(record.num_shards) if index not in journal.shards]
    T = record.layout.block_size
    print_status(
        f"{record.num_tokens:,} tokens at {record.layout.bytes_per_token:,.0f} bytes each, "
        f"in {record.num_shards} shards"
    )
    if len(missing) < record.num_shards:
        print_status(f"{record.num_shards - len(missing)} shards were captured before")
    left = sum(len(record.blocks_of(index)) for index in missing) * T
    with progress("capturing", left, "tokens") as advance:
        for index in missing:
            span, kept_mass = record.blocks_of(index), 0.0
            with ShardWriter.open(journal.folder / shard_name(index)) as shard:
                # A batch never reaches into the next shard: so a resumed run makes the same batches.
                for first in range(span.start, span.stop, batch_size):
                    batch = range(first, min(first + batch_size, span.stop))
                    input_ids = torch.stack([blocks[i]["input_ids"] for i in batch]).to(device)  # (B, T)
                    encoded, mass = _encode(outputs, input_ids, record.layout, f"block {first}")
                    shard.write(encoded)
                    kept_mass += mass
                    advance(len(batch) * T)
            journal.add(ShardRecord(index=index, sha256=shard.sha256, kept_mass=kept_mass / (len(span) * T)))
    return journal.finish()


def _encode(
    outputs: TeacherOutputs, input_ids: Tensor, layout: SignalLayout, where: str
) -> tuple[np.ndarray, float]:
    """input_ids: (B, T) -> blocks (B,) as they are stored, and the mass kept, summed over the tokens."""
    signals = outputs(input_ids, where)
    encoded = np.zeros(len(input_ids), layout.block_dtype)
    encode_ids(signals.ids, encoded)
    encoded["gaps"] = encode_gaps(signals.gaps)
    if signals.states is not None and layout.compression is not None:
        encode_states(signals.states, layout.compression, encoded)
    return encoded, signals.kept_mass


def _pack(
    teacher: str | Path,
    inputs: Sequence[str],
    block_size: int,
    vocab_size: int,
    text_field: str,
    cache_dir: str | Path | None,
) -> tuple[TokenBlocks, Any]:
    """The text's blocks and the tokenizer. Raises InputError where one of them cannot be used."""
    sources = resolve_inputs(inputs, "train")
    tokenizer = load_tokenizer(teacher)
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{teacher}: its tokenizer has {len(tokenizer)} tokens, its model a vocabulary of {vocab_size}"
        )
    corpus = pack(sources, tokenizer, text_field=text_field, cache_dir=cache_dir)
    return TokenBlocks(corpus, block_size), tokenizer


def _count_blocks(blocks: TokenBlocks, max_tokens: int | None) -> int:
    if max_tokens is None:
        return len(blocks)
    if max_tokens < blocks.block_size:
        raise InputError(
            f"max_tokens: found {max_tokens}; accepted: at least {blocks.block_size}, the tokens of a block"
        )
    return min(len(blocks), max_tokens // blocks.block_size)


def _layout(
    config: Any,
    block_size: int,
    top_k: int,
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


def _require_layers(hidden_layers: Sequence[int], teacher: ModelIdentity) -> None:
    for layer in hidden_layers:
        if not 0 <= layer <= teacher.num_layers:
            raise InputError(
                f"hidden_layers: found {layer}; accepted: 0 (the embeddings) to {teacher.num_layers} "
                "(after the final norm)"
            )


def _require_values(
    dtype: str,
    device: str,
    temperature: float,
    batch_size: int,
    blocks_per_shard: int | None,
    hidden_layers: Sequence[int],
    compression: str,
) -> None:
    """Raise InputError for what is wrong whatever the teacher is."""
    if dtype not in DTYPES:
        raise InputError(f"dtype: found {dtype!r}; accepted: {', '.join(DTYPES)}")
    if dtype == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        raise InputError("dtype: found 'bfloat16', which this GPU does not have; accepted here: float32")
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature: found {temperature}; accepted: a number above 0")
    for name, value in (("batch_size", batch_size), ("blocks_per_shard", blocks_per_shard)):
        if value is not None and value < 1:
            raise InputError(f"{name}: found {value}; accepted: at least 1")
    if compression not in COMPRESSIONS:
        raise InputError(f"compression: found {compression!r}; accepted: {', '.join(COMPRESSIONS)}")
    if len(set(hidden_layers)) < len(hidden_layers):
        raise InputError(f"hidden_layers: found {list(hidden_layers)}; accepted: each once")
