"""The one error that a user is meant to see, and how other libraries' errors become part of it."""

from __future__ import annotations

__all__ = ["InputError", "Unfinished", "one_line"]


class InputError(ValueError):
    """What the user gave cannot be used: a file, a field, a value or an artefact.

    The message is one line that names where, what was found and what is accepted. At the command line it is
    printed as it is and the exit code is 2.
    """


class Unfinished(Exception):  # noqa: N818  # nothing went wrong
    """A run was ended before its time, in good order: what it did is saved, and --resume goes on from there.

    At the command line the message is printed and the exit code is 75 (sysexits' "try again").
    """


def one_line(error: BaseException) -> str:
    """Another library's error in one line, without the wrapping that transformers' strict configurations add."""
    text = str(error).rpartition("\n    ValueError: ")[2] if "validation error" in str(error) else str(error)
    return " ".join(text.split()) or type(error).__name__
