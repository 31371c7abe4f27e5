"""How `--data` is read: `--data a b --data c` is two data sets, the first of two files."""

from __future__ import annotations

__all__ = ["all_data", "gather_data", "split_data"]

_TOGETHER = "\0"  # no argument of a process can hold it


def gather_data(arguments: list[str]) -> list[str]:
    """Let `--data` take several values, as a shell's `--data texts/*.jsonl` gives them: up to the next option.

    They become one value, which `split_data` takes apart again.
    """
    gathered: list[str] = []
    taking = False
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            taking = argument == "--data"
        elif taking and gathered[-1] != "--data":
            gathered[-1] += _TOGETHER + argument
            continue
        gathered.append(argument)
    return gathered


def split_data(values: list[str]) -> list[list[str]]:
    """The data sets: for each `--data` what was given to it."""
    return [value.split(_TOGETHER) for value in values]


def all_data(values: list[str]) -> list[str]:
    """Everything that was given to any `--data`, as one data set."""
    return [name for names in split_data(values) for name in names]
