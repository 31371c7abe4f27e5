"""`iiad profile`: measure what each iteration of a model contributes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CutSources,
    Details,
    Device,
    Dtype,
    MaxSourceTokens,
    MaxTargetTokens,
    Overwrite,
    Seed,
    TextField,
    all_data,
    claim_outputs,
    pair_limits,
    require_models,
    require_text,
    split_data,
)
from .output import print_result

__all__ = ["profile"]


def profile(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Teacher: a model folder with its tokenizer, or a hub name.", callback=require_models
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Calibration text, or pairs for an encoder-decoder: files, globs, folders, stdlib or "
            "docstrings. Repeat for further data sets, kept apart.",
            callback=require_text,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Profile to write (JSON).")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="kl, loss, taylor, cosine or relative_l2; repeat for several. Default: all."),
    ] = None,
    text_field: TextField = "text",
    max_source_tokens: MaxSourceTokens = None,
    max_target_tokens: MaxTargetTokens = None,
    cut_sources: CutSources = False,
    block_size: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a block; of pairs, of the longest source and target to use. "
            "Default: 512, or the model's context if shorter."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks of a batch.")] = 8,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens to draw of each data set, in whole blocks.")
    ] = 65536,
    seed: Seed = 0,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Show how stable the plan at this threshold is. Default: the threshold at the curve's knee."
        ),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            help="Limit of memory beside the weights; no score depends on it. "
            "Default: 1.5 times the logits and states of a batch."
        ),
    ] = None,
    extrapolate: Annotated[
        bool,
        typer.Option(
            "--extrapolate",
            help="Score each stop extrapolated: an iteration's influence is what cannot be. As many evaluations.",
        ),
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for pictures of the scores (PNG, SVG).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the finished batches of an interrupted run.")
    ] = False,
    details: Details = False,
    overwrite: Overwrite = False,
) -> None:
    """Score each iteration of a model by its contribution to the output.

    The model must have iterations (an IIET or PCformer). `kl` and `loss` are
    exact and run the layers above again for each iteration; `taylor` takes one
    backward pass; `cosine` and `relative_l2` come with the forward pass.

    Example:  iiad profile teacher --data stdlib --output profile.json
    """
    limits = pair_limits(context, max_source_tokens, max_target_tokens, cut_sources)
    claim_outputs([model], all_data(data), files={"output": output}, overwrite=overwrite)
    if plot is not None:
        from iiad.reporting.pictures import require_pictures

        require_pictures(plot)
    from iiad.influence.measurement import measure_influence, require_no_partial
    from iiad.planning.trust import assess_trust
    from iiad.reporting.profile_tables import InfluenceReport

    if not (resume or overwrite):
        require_no_partial(output)
    measured = measure_influence(
        model,
        split_data(data),
        metrics=metric,
        text_field=text_field,
        block_size=block_size,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
        memory=None if memory_gib is None else int(memory_gib * 2**30),
        extrapolate=extrapolate,
        device=device,
        dtype=dtype,
        limits=limits,
        output=output,
        resume=resume,
    )
    print_result(
        measured, lambda width: InfluenceReport(measured, assess_trust(measured, threshold, seed), details)
    )
    if plot is not None:
        from iiad.progress import print_status
        from iiad.reporting.pictures import draw_influence

        for metric_name in measured.scores:
            for path in draw_influence(measured, metric_name, plot):
                print_status(f"drawn: {path}")
