"""Errors that a user is meant to see, and other libraries' errors in one line."""

from __future__ import annotations

__all__ = ["InputError", "Unfinished", "one_line", "require_least"]


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


def one_line(error: BaseException) -> str:
    """Return another library's error in one line, without what transformers' strict configurations wrap it in."""
    text = str(error).rpartition("\n    ValueError: ")[2] if "validation error" in str(error) else str(error)
    return " ".join(text.split()) or type(error).__name__
