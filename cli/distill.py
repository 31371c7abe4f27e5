"""`iiad distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .data_sets import all_data

__all__ = ["distill"]


def distill(
    teacher: Annotated[str, typer.Argument(help="The teacher's folder (with its tokenizer).")],
    plan: Annotated[Path, typer.Argument(help="plan.json, as `iiad plan` writes it.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the finished E-IIET.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text to learn from: files, globs, folders or stdlib.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A YAML recipe, or the name of one that ships with iiad.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
) -> None:
    """Distil a teacher into an E-IIET in two stages: learn from the teacher, then recover on the text.

    Example:  iiad distill teacher plan.json --data texts/*.jsonl --output-dir student --set distillation.kl_weight=2
    """
    from iiad.distillation import distill as run
    from iiad.errors import InputError
    from iiad.training import DistillRecipe, load_recipe

    if data is None and recipe is None:
        raise InputError("no text to learn from: give --data, or data.train in a --recipe")
    overrides = {"data": {"train": all_data(data)}} if data else {}
    results = run(
        teacher, plan, load_recipe(DistillRecipe, recipe, set_ or [], overrides), output_dir, resume
    )
    line = f"{output_dir}: overhead cut {100 * results['overhead_cut']:.0f} %"
    if "validation_nll" in results:
        line += (
            f", validation {results['validation_nll']:.4f} nats a token"
            f" (teacher {results['teacher_validation_nll']:.4f})"
        )
    print(line)
