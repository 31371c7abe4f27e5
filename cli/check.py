"""`iiad check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite

__all__ = ["check"]


def check(
    model: Annotated[str, typer.Argument(help="A model folder or hub name: any causal language model.")],
    teacher: Annotated[
        str | None, typer.Option(help="The model that it was made of, to be compared with.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="plan.json for the teacher: what the model should run.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens of each prompt.")] = 24,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each sequence after its prompt.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the tokens.")] = 0,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Check the compiled model too, which takes most of the time."
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help="Of weights and cache: float32 or bfloat16, whose rounding hides small faults."),
    ] = "float32",
    output: Annotated[Path | None, typer.Option(help="Where to write check.json.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prove that a model decodes, trains, saves and loads as it should, a row a claim.

    Exit code 0 if every claim holds that applies to it, 1 if any fails, 2 for bad input.

    Example:  iiad check student --teacher teacher --plan plan.json --output check.json
    """
    from rich.console import Console

    from iiad.files import require_new_file

    if output is not None:
        require_new_file(output, overwrite)
    from iiad.evaluation.checks import check_model
    from iiad.reporting.check_tables import check_table

    made = check_model(
        model,
        teacher=teacher,
        plan=plan,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        compile=compile_,
    )
    if output is not None:
        made.save(output)
    Console().print(check_table(made))
    if not made.passed:
        raise typer.Exit(1)
