"""`iiad distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["distill"]


def distill(
    teacher: Annotated[str, typer.Argument(help="The teacher's folder (with its tokenizer).")],
    plan: Annotated[Path, typer.Argument(help="plan.json, as `iiad plan` writes it.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the finished E-IIET.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text to learn from: file, glob, folder or stdlib. Repeatable.")
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
    from iiad.training import DistillRecipe, load_recipe

    settings = [*([f"data.train={_as_yaml(data)}"] if data else []), *(set_ or [])]
    results = run(teacher, plan, load_recipe(DistillRecipe, recipe, settings), output_dir, resume)
    line = f"{output_dir}: overhead cut {100 * results['overhead_cut']:.0f} %"
    if "validation_nll" in results:
        line += (
            f", validation {results['validation_nll']:.4f} nats a token"
            f" (teacher {results['teacher_validation_nll']:.4f})"
        )
    print(line)


def _as_yaml(values: list[str]) -> str:
    import json

    return json.dumps(values)  # JSON is YAML
