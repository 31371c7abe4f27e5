"""`iiad capture`: a teacher's signals for every token of a text, kept on disk for any number of distillations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.checkpoints import choose_device, label_models, load_config, load_identified, read_limits
from iiad.data import (
    AnyBlocks,
    PairBlocks,
    PairLimits,
    load_tokenizer,
    make_blocks,
    pack_for,
    resolve_inputs,
    tokenizer_fingerprint,
)
from iiad.errors import InputError
from iiad.identities import DataIdentity
from iiad.memory import memory_explained
from iiad.outputs import lock_folder, require_capture_folder
from iiad.training.head import asked_values
from iiad.training.scoring import COUNTED_TOKENS, require_knowledge, score_beginning

from .capture_checks import require, require_layers, require_plain_head, require_values
from .shards import capture_shards, take_blocks
from .signal_record import JOURNAL, RECORD, SignalLayout, SignalRecord
from .stored_head import choose_scales, encode_head
from .teacher_outputs import TeacherOutputs

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
            return capture_shards(outputs, blocks, folder, record, batch_size, head, scales)


def _measure_scales(teacher: Any, blocks: AnyBlocks, num_blocks: int, dtype: str) -> Tensor:
    """Return scales (D,) of the final hidden state's channels, found on the first blocks.

    One block at a time, so that they do not depend on the size of batches.
    """
    outputs = TeacherOutputs(teacher, None, 1.0, [teacher.config.num_layers], dtype)
    found = []
    for index in range(min(num_blocks, SCALED_BLOCKS)):
        batch = take_blocks(blocks, range(index, index + 1), teacher.device)
        states = outputs(batch, f"block {index}").states
        assert states is not None
        found.append(asked_values(states[:, 0], batch))
    return choose_scales(torch.cat(found))


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
