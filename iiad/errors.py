"""Errors that a user is meant to see, and other libraries' errors in one line."""

from __future__ import annotations

import re
import reprlib

__all__ = ["InputError", "Unfinished", "one_line", "require_least", "require_seed", "shorten"]

_MAX_SEED = 2**31 - 1

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class InputError(ValueError):
    """Input of the user's that cannot be used: a file, a field, a value or an artefact.

    The message is one line, `FIELD: expected WHAT, got WHAT`. The command line prints it and exits with 2.
    """


class Unfinished(Exception):  # noqa: N818  # nothing went wrong
    """End of a run before its time, in good order: its work is saved, and --resume goes on from there.

    The command line prints the message and exits with 75 (sysexits' "try again").
    """


def require_least(least: int, **values: int | None) -> None:
    """Raise InputError for the first value below the least; None is not checked."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"{name}: expected at least {least}, got {value}")


def require_seed(seed: int) -> int:
    """Return the seed. Raises InputError for one that not every random generator takes."""
    if not 0 <= seed <= _MAX_SEED:
        raise InputError(f"seed: expected from 0 to {_MAX_SEED}, got {seed}")
    return seed


def shorten(value: object) -> str:
    """Return a value's repr for a message, in one line and its middle left out where it is long or deep."""
    return _SHORT.repr(value)


def one_line(error: BaseException) -> str:
    """Return another library's error in one line, without what transformers' strict configurations wrap it in."""
    text = re.split(r"alidation error for .*\n    \w+: ", str(error))[-1]
    return " ".join(text.split()) or type(error).__name__
