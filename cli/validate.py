"""`iiad validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Recipe, Settings
from .output import is_json, print_result

__all__ = ["validate"]


def validate(
    recipe: Recipe,
    set_: Settings = None,
    kind: Annotated[
        str | None, typer.Option(help="train or distill, the command it is for. Default: by its sections.")
    ] = None,
) -> None:
    """Check a recipe before anything loads: list its problems, a line each, or say what it comes to.

    Exit code 0 for a valid recipe, 2 for any other.

    Example:  iiad validate 55m --set training.max_steps=1000
    """
    from iiad.errors import InputError
    from iiad.progress import print_status
    from iiad.training.estimates import find_excess
    from iiad.training.problems import find_problems
    from iiad.training.recipe_files import change_fields, read_fields
    from iiad.training.recipe_summary import summarize_recipe
    from iiad.training.recipes import COMMANDS, commands_of, missing_inputs, shortened_fields

    if kind not in (None, *COMMANDS):
        raise InputError(f"--kind: expected one of {', '.join(COMMANDS)}, got {kind}")
    fields = change_fields(read_fields(recipe), set_ or [])
    own = [kind] if kind else commands_of(fields)
    problems = {name: find_problems(COMMANDS[name], fields) for name in COMMANDS}
    command = own[0] if len(own) == 1 else min(problems, key=lambda name: len(problems[name]))
    if len(own) != 1:
        print_status(f"note: sections do not tell train from distill; checked for {command} (--kind)")
    found = problems[command]
    checked = None if found else COMMANDS[command].model_validate(fields)
    if checked is not None and (excess := find_excess(checked)):
        found = [excess]
    if checked is None or found:
        if is_json():
            print_result({"command": command, "problems": found}, lambda width: "")
        typer.echo(f"{recipe}: {len(found)} problem{'s' if len(found) > 1 else ''}", err=True)
        for problem in found:
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(2)
    summary, notes = summarize_recipe(checked), shortened_fields(checked) + missing_inputs(checked)
    lines = [f"{recipe}: a valid recipe for `iiad {command}`"]
    lines += [f"  {name:12} {text}" for name, text in summary.items()]
    lines += [f"note: {note}" for note in notes]
    made = {"command": command, "problems": [], "summary": summary, "notes": notes}
    print_result(made, lambda width: "\n".join(lines))
