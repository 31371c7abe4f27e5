"""`iiad capture`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    CutSources,
    Device,
    MaxSourceTokens,
    MaxTargetTokens,
    TextField,
    all_data,
    claim_outputs,
    pair_limits,
    refuse_options,
    require_models,
    require_text,
)
from .output import print_result

__all__ = ["capture"]

_OF_SIGNALS = """
keep top_k temperature hidden_layers compression block_size max_tokens blocks_per_shard text_field check_teacher
""".split()


def capture(
    context: typer.Context,
    teacher: Annotated[
        str, typer.Argument(help="A model folder with its tokenizer, or a hub name.", callback=require_models)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Text, after the teacher, or pairs: files, globs, folders, stdlib.", callback=require_text
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", help="A new folder for signals.json and the shards.")
    ],
    beam: Annotated[
        int | None,
        typer.Option(
            help="Of an encoder-decoder: write what it makes of each source, by so many beams, as pairs."
        ),
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(help="Of beams: compare them by log likelihood over length to this power. Default: 1."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="With --beam: most tokens of a target. Default: 128, or the model's positions."),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(help="top-k, or final-hidden: the last hidden state and, once, the head: all tokens."),
    ] = "top-k",
    top_k: Annotated[int, typer.Option(help="Tokens whose probability is kept.")] = 64,
    temperature: Annotated[float, typer.Option(help="The logits are divided by it.")] = 1.0,
    hidden_layers: Annotated[
        str | None,
        typer.Option(help="Hidden states to keep, as in 0,6,12: 0 embeddings, L after the final norm."),
    ] = None,
    compression: Annotated[
        str | None,
        typer.Option(
            "--compression",
            "--dtype",
            help="Of hidden states: int8 (a scale for each token) or bf16. Default: int8; of final-hidden bf16.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks run at a time.")] = 8,
    block_size: Annotated[
        int | None,
        typer.Option(help="Tokens of a block. Default: 512, or the model's context if shorter."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Whole blocks of so many tokens, from the start. Default: all.")
    ] = None,
    blocks_per_shard: Annotated[
        int | None, typer.Option(help="Blocks that a kill can cost. Default: 64 MiB of them.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run the teacher in bfloat16, its head not.")] = False,
    device: Device = None,
    text_field: TextField = "text",
    max_source_tokens: MaxSourceTokens = None,
    max_target_tokens: MaxTargetTokens = None,
    cut_sources: CutSources = False,
    check_teacher: Annotated[
        bool, typer.Option(help="Refuse a teacher that predicts the text no better than token counts do.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the whole shards of an interrupted capture.")
    ] = False,
) -> None:
    """Keep a teacher's signals for a text, for any number of distillations.

    For every token: the likeliest tokens with their log-probabilities, the mass
    of all others and, if asked for, hidden states. With --keep final-hidden: the
    last hidden state, of which distill makes the exact distribution over all
    tokens, at any temperature. The signals are bound to teacher, tokenizer and
    text by their hashes.

    With --beam: the teacher's own targets of all sources, as pairs.jsonl
    (sequence-level distillation), which train and distill take as data.

    Example:  iiad capture teacher --data texts/*.jsonl --output signals --top-k 64

    Example:  iiad capture teacher --data texts/*.jsonl --output signals --keep final-hidden --dtype bf16

    Example:  iiad capture translator --data pairs.jsonl --beam 5 --output beams
    """
    import time

    final = _is_final(keep)
    if beam is not None:
        refuse_options(context, "with --beam", *_OF_SIGNALS)
    else:
        refuse_options(context, "without --beam", "length_penalty", "max_new_tokens")
        if final:
            refuse_options(context, "with --keep final-hidden", "top_k", "temperature")
        elif hidden_layers is None:
            refuse_options(context, "without --hidden-layers or --keep final-hidden", "compression")
    limits = pair_limits(context, max_source_tokens, max_target_tokens, cut_sources)
    claim_outputs([teacher], all_data(data), folders={"output": output})
    common: dict[str, Any] = {"limits": limits, "batch_size": batch_size, "device": device, "resume": resume}
    if beam is not None:
        from iiad.generation.beam_targets import capture_beams
        from iiad.reporting.signal_tables import beams_line

        pairs = capture_beams(
            teacher,
            all_data(data),
            output,
            num_beams=beam,
            length_penalty=length_penalty,
            max_new_tokens=max_new_tokens,
            dtype="bfloat16" if bf16 else None,
            **common,
        )
        print_result(pairs, lambda width: f"{output}: {beams_line(pairs)}")
        return
    from iiad.distillation.capture import capture_signals
    from iiad.reporting.signal_tables import signals_line

    started = time.monotonic()
    record = capture_signals(
        teacher,
        all_data(data),
        output,
        top_k=None if final else top_k,
        temperature=temperature,
        block_size=block_size,
        hidden_layers=_layers(hidden_layers),
        compression="bfloat16" if compression == "bf16" else compression,
        max_tokens=max_tokens,
        dtype="bfloat16" if bf16 else "float32",
        text_field=text_field,
        blocks_per_shard=blocks_per_shard,
        check_teacher=check_teacher,
        **common,
    )
    line = f"{output}: {signals_line(record)}, in {time.monotonic() - started:.1f} s"
    print_result(record, lambda width: line)


def _is_final(keep: str) -> bool:
    """Return whether final hidden states are to be kept. Raises InputError for a word that is none of the two."""
    from iiad.errors import InputError

    if keep not in ("top-k", "final-hidden"):
        raise InputError(f"keep: expected top-k or final-hidden, got {keep!r}")
    return keep == "final-hidden"


def _layers(text: str | None) -> list[int]:
    """Return numbers between commas. Raises InputError for anything else."""
    from iiad.errors import InputError

    try:
        return [int(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise InputError(f"hidden_layers: expected numbers, as in 0,6,12, got {text!r}") from None
