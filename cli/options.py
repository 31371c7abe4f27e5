"""Options that several commands share, and `--data` with several values."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "RECIPE_HELP",
    "CachePolicy",
    "Device",
    "Dtype",
    "MaxMinutes",
    "Overwrite",
    "Quantize",
    "Recipe",
    "Resume",
    "Settings",
    "TextField",
    "all_data",
    "gather_data",
    "split_data",
]

RECIPE_HELP = "A YAML recipe, or the name of one that ships with iiad."
Recipe = Annotated[str, typer.Argument(help=RECIPE_HELP)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Set a field of the recipe. Repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")]
MaxMinutes = Annotated[
    float | None, typer.Option(help="Save and leave with exit code 75 after this time, as on SIGTERM.")
]
CachePolicy = Annotated[
    str | None,
    typer.Option(help="Refuse weights unless for exact (a cache slot per evaluation) or shared (per layer)."),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32 or bfloat16. Default: float32 on the CPU, else bfloat16.")
]
Quantize = Annotated[
    list[str] | None,
    typer.Option(help="int8 or int4: add the first model with the weights of its blocks so. Repeatable."),
]
TextField = Annotated[str, typer.Option(help="jsonl field or parquet column with the text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]

_SEPARATOR = "\0"  # no argument of a process can hold it


def gather_data(arguments: list[str]) -> list[str]:
    """Join the values after each `--data`, up to the next option, into one value.

    So `--data texts/*.jsonl` takes what a shell makes of it; `split_data` takes the value apart again.
    """
    gathered: list[str] = []
    taking = False
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            taking = argument == "--data"
        elif taking and gathered[-1] != "--data":
            gathered[-1] += _SEPARATOR + argument
            continue
        gathered.append(argument)
    return gathered


def split_data(values: list[str]) -> list[list[str]]:
    """Return a data set per `--data`: `--data a b --data c` is [[a, b], [c]]."""
    return [value.split(_SEPARATOR) for value in values]


def all_data(values: list[str]) -> list[str]:
    """Return everything given to any `--data` as one data set."""
    return [name for names in split_data(values) for name in names]
