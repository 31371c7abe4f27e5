"""Errors that a user is meant to see, and other libraries' errors in one line."""

from __future__ import annotations

import re
import reprlib
from typing import Any

__all__ = [
    "InputError",
    "Unfinished",
    "one_line",
    "printable",
    "require_least",
    "require_printable",
    "require_seed",
    "require_utf8",
    "shorten",
]

LONGEST_MESSAGE, LONGEST_WORD = 4000, 400
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line ends and halves of characters, which a terminal obeys or nothing can encode."""
_MAX_SEED = 2**31 - 1


class InputError(ValueError):
    """Input of the user's that cannot be used: a file, a field, a value or an artefact.

    The message is one printable line, `FIELD: expected WHAT, got WHAT`. The command line prints it and exits with 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


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


def require_utf8(what: str, text: str) -> None:
    """Raise InputError for text that UTF-8 cannot hold: other bytes of an argument or file name, half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what}: expected UTF-8, got {shorten(text)}") from None


def require_printable(value: Any, where: object) -> None:
    """Raise InputError, naming the field, for a text in nested values that does not print; line ends and tabs do."""
    left: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    while left:
        place, found = left.pop()
        if isinstance(found, str) and UNPRINTABLE.search(re.sub(r"[\t\n\r]", "", found)):
            raise InputError(f"{where}: {place}: expected text that can be printed, got {shorten(found)}")
        if isinstance(found, dict | list) and id(found) not in seen:  # YAML may name one of them many times
            seen.add(id(found))
            for name, part in found.items() if isinstance(found, dict) else enumerate(found):
                field = f"{place}.{str(name)[:60]}".removeprefix(".")
                left += [(field, name), (field, part)]


def one_line(error: BaseException) -> str:
    """Return another library's error in one line, without what transformers' strict configurations wrap it in."""
    text = re.split(r"alidation error for .*\n    \w+: ", str(error))[-1]
    return printable(" ".join(text.split())) or type(error).__name__


def printable(text: str) -> str:
    """Return a text as one line of bounded length: unprintable characters escaped, long words and ends cut."""
    text = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)
    text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:200]}...{found[0][-100:]}", text)
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."


_BRIEF = reprlib.Repr()
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 20
_BRIEF.maxstring = _BRIEF.maxother = 60
_BRIEF.maxlevel = 3


def shorten(value: Any) -> str:
    """Show a value in at most 60 characters, a hash by its first 12; its size does not matter."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # Python does not print them
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
