"""`iiad bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str], typer.Argument(help="Model folders or hub names; the others are compared with the first.")
    ],
    plan: Annotated[
        Path | None, typer.Option(help="plan.json: adds the first model truncated to it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt (random ones).")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded after it, one forward call each.")] = 64,
    repeats: Annotated[int, typer.Option(help="Measured rounds over all models.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of weights and cache: float32 or bfloat16. Default: float32 on the CPU, else bfloat16."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write bench.json.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Prefill and decoding speed and the cache of models, beside what their evaluations predict.

    Example:  iiad bench teacher student --plan plan.json --new-tokens 128 --output bench.json
    """
    from rich.console import Console

    from iiad.artefacts import require_new_file

    if output is not None:
        require_new_file(output, overwrite)
    from iiad.benchmarking import bench_models
    from iiad.reporting.benchmark import bench_table

    results = bench_models(
        models,
        plan=plan,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    if output is not None:
        results.save(output)
    console = Console()
    console.print(bench_table(results, console.width))
