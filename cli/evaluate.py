"""`iiad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Device,
    Dtype,
    Overwrite,
    Quantize,
    TextField,
    TrustRemoteCode,
    all_data,
    claim_outputs,
    require_models,
    require_plan,
    require_text,
)
from .output import print_result

__all__ = ["evaluate"]


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Model folders or hub names; the others are compared with the first.",
            callback=require_models,
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Text, after the models: files, globs, folders or stdlib (its validation split).",
            callback=require_text,
        ),
    ],
    plan: Annotated[
        Path | None,
        typer.Option(
            help="plan.json: add the first model truncated to it, untrained.", callback=require_plan
        ),
    ] = None,
    quantize: Quantize = None,
    output: Annotated[Path | None, typer.Option(help="evaluation.json to write.")] = None,
    text_field: TextField = "text",
    block_size: Annotated[
        int | None, typer.Option(help="Tokens of context. Default: 512, or less if a model takes less.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks at a time.")] = 8,
    max_tokens: Annotated[int | None, typer.Option(help="Read at most this many tokens of the text.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure perplexity, bits per byte, accuracy and cost of models on a text.

    Example:  iiad evaluate teacher student --data valid.jsonl --plan plan.json --output evaluation.json
    """
    claim_outputs([*models, plan], all_data(data), files={"output": output}, overwrite=overwrite)
    from iiad.evaluation import evaluate_models
    from iiad.reporting.evaluation_tables import evaluation_table

    evaluation = evaluate_models(
        models,
        all_data(data),
        plan=plan,
        quantize=quantize or [],
        text_field=text_field,
        block_size=block_size,
        batch_size=batch_size,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    )
    if output is not None:
        evaluation.save(output)
    print_result(evaluation, lambda width: evaluation_table(evaluation, width))
