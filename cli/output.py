"""Results on stdout, as tables or as JSON, and --json and --quiet for every command. Nothing else prints results."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import require_bounds

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["is_json", "print_result", "with_output_options"]

_OPTIONS = {
    "json": Annotated[bool, typer.Option("--json", help="Print the result as a line of JSON.")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="Print no progress and no remarks.")],
}

_stdout: Any = None
"""The real stdout while a command runs with --json; anything else that is printed goes to stderr then."""


def with_output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json and --quiet to a command."""

    @wraps(command)
    def run(*arguments: Any, json: bool, quiet: bool, **options: Any) -> None:
        global _stdout
        from iiad.progress import console

        before, console.quiet = console.quiet, quiet or not _is_first_process()
        _stdout = sys.stdout if json else None
        try:
            with redirect_stdout(sys.stderr) if json else nullcontext():
                require_bounds(options)
                command(*arguments, **options)
        finally:
            console.quiet, _stdout = before, None

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    parameters = [*signature.parameters.values(), *added]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it
    return run


def is_json() -> bool:
    """True while a command runs with --json."""
    return _stdout is not None


def print_result(result: Any, show: Callable[[int], RenderableType]) -> None:
    """Print a result: with --json as one line of JSON, else as `show(width)` renders it. Of several processes, once.

    result: an artefact, a dataclass, or plain fields.
    """
    if not _is_first_process():
        return
    if _stdout is not None:
        from pydantic_core import to_json

        _stdout.write(to_json(result, inf_nan_mode="null").decode() + "\n")
        return
    from rich.console import Console

    console = Console()
    shown = show(console.width)
    print(shown) if isinstance(shown, str) else console.print(shown)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
