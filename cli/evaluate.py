"""`iiad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iiad.errors import InputError

from .listed_plans import resolve_plan
from .options import (
    CutSources,
    Device,
    Dtype,
    MaxSourceTokens,
    MaxTargetTokens,
    Overwrite,
    Quantize,
    TextField,
    TrustRemoteCode,
    all_data,
    claim_outputs,
    pair_limits,
    refuse_options,
    require_models,
    require_plan,
    require_tasks,
    require_text,
    require_text_metrics,
)
from .output import print_result

__all__ = ["evaluate"]


_OF_TEXT = (
    "text_field",
    "max_source_tokens",
    "max_target_tokens",
    "cut_sources",
    "block_size",
    "max_tokens",
)


_OF_TEXTS_MADE = ("num_beams", "length_penalty", "max_new_tokens", "hypotheses")


def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Model folders or hub names; the others are compared with the first.",
            callback=require_models,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text or pairs, after the models: files, globs, folders, stdlib or docstrings (validation split).",
            callback=require_text,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FOLDER...",
            help="Tasks of lm-evaluation-harness (extra eval): its names, or folders of YAML, whose Python is run.",
            callback=require_tasks,
        ),
    ] = None,
    task_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE...", help="Data for tasks that ship with iiad (piqa, blimp) or ask for it."
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before a question. Default: each task's.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Documents of each task, or below 1 a share of them. Default: all.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="bleu|chrf|rouge...",
            help="Of pairs: make a text of each source, and score it against its target (extra eval).",
            callback=require_text_metrics,
        ),
    ] = None,
    num_beams: Annotated[int, typer.Option(help="Beams to search texts by; 1: greedy.")] = 4,
    length_penalty: Annotated[
        float | None,
        typer.Option(
            help="Compare beams by log likelihood over length to this power: more is longer. Default: 1."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of a text, at most. Default: 128, or less if a model takes less."),
    ] = None,
    hypotheses: Annotated[
        Path | None, typer.Option(help="jsonl to write: source, target and each model's text.")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME|CUT",
            help="plan.json, or a plan that an elastic student lists: add the first model truncated to it.",
            callback=require_plan,
        ),
    ] = None,
    quantize: Quantize = None,
    output: Annotated[Path | None, typer.Option(help="evaluation.json to write.")] = None,
    text_field: TextField = "text",
    max_source_tokens: MaxSourceTokens = None,
    max_target_tokens: MaxTargetTokens = None,
    cut_sources: CutSources = False,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens of context. Default: 512, or less if a model takes less.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks, requests of tasks, or texts at a time.")] = 8,
    max_tokens: Annotated[int | None, typer.Option(help="Read at most this many tokens of the text.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure perplexity, accuracy and cost of models on a text or pairs, and scores of tasks or of their own texts.

    Example:  iiad evaluate teacher student --data valid.jsonl --plan plan.json --output evaluation.json

    Example:  iiad evaluate teacher student --data docstrings --metrics bleu chrf rouge --plan plan.json
    """
    text, names = all_data(data or []), all_data(tasks or [])
    if not text:
        refuse_options(context, "without --data", *_OF_TEXT)
    if not names:
        refuse_options(context, "without --tasks", "task_data", "num_fewshot", "limit")
    scores = all_data(metrics or [])
    if not scores:
        refuse_options(context, "without --metrics", *_OF_TEXTS_MADE)
    limits = pair_limits(context, max_source_tokens, max_target_tokens, cut_sources)
    named = _split_names(all_data(task_data or []))
    claim_outputs(
        [*models, plan, *names, *named.values()],
        text,
        files={"output": output, "hypotheses": hypotheses},
        overwrite=overwrite,
    )
    from iiad.evaluation import Tasks, Texts, evaluate_models
    from iiad.reporting.evaluation_tables import evaluation_table

    evaluation = evaluate_models(
        models,
        text,
        tasks=Tasks(names, num_fewshot, limit, named) if names else None,
        texts=Texts(scores, num_beams, length_penalty, max_new_tokens, hypotheses) if scores else None,
        plan=resolve_plan(plan, models[0]),
        quantize=quantize or [],
        text_field=text_field,
        limits=limits,
        block_size=block_size,
        batch_size=batch_size,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    )
    if output is not None:
        evaluation.save(output)
    print_result(evaluation, lambda width: evaluation_table(evaluation, width))


def _split_names(values: list[str]) -> dict[str, str]:
    """Return the files of NAME=FILE by name. Raises InputError for another form, a name given twice, or no file."""
    found: dict[str, str] = {}
    for value in values:
        name, _, path = value.partition("=")
        if not name or not path:
            raise InputError(f"task-data: expected NAME=FILE, got {value}")
        if name in found:
            raise InputError(f"task-data: expected each name once, got {name} twice")
        if not Path(path).exists():
            raise InputError(f"task-data: expected a file for {name}, got {path}, which is not there")
        found[name] = path
    return found
