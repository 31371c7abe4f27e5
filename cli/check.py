"""`iiad check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .listed_plans import resolve_plan
from .options import (
    Overwrite,
    Seed,
    claim_outputs,
    require_models,
    require_plan,
)
from .output import print_result

__all__ = ["check"]


def check(
    model: Annotated[
        str,
        typer.Argument(help="Folder or hub name of any causal language model.", callback=require_models),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(help="The model that it was made of, to compare with.", callback=require_models),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME|CUT",
            help="plan.json for the teacher, which the model should run; without --teacher the model runs it. Or a "
            "plan that an elastic student lists.",
            callback=require_plan,
        ),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens of each prompt.")] = 24,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each sequence after its prompt.")] = 16,
    seed: Seed = 0,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Check the compiled model too, which takes most of the time."
        ),
    ] = True,
    served: Annotated[
        str | None,
        typer.Option(metavar="PYTHON", help="Interpreter with vLLM, to check that served is generated."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help="float32, or bfloat16, whose rounding hides small faults."),
    ] = "float32",
    output: Annotated[Path | None, typer.Option(help="check.json to write.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Check that a model decodes, trains, saves and loads correctly, a row per claim.

    Exit code 0 if every claim that applies holds, 1 if any fails, 2 for bad input.

    Example:  iiad check student --teacher teacher --plan plan.json --output check.json
    """
    claim_outputs([model, teacher, plan], files={"output": output}, overwrite=overwrite)
    from iiad.evaluation.checks import check_model
    from iiad.reporting.check_tables import check_table

    made = check_model(
        model,
        teacher=teacher,
        plan=resolve_plan(plan, teacher or model),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        compile=compile_,
        served=served,
    )
    if output is not None:
        made.save(output)
    print_result(made, lambda width: check_table(made))
    if not made.passed:
        raise typer.Exit(1)
