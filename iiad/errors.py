"""The one error that a user is meant to see."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """What the user gave cannot be used: a file, a field, a value or an artefact.

    The message is one line that names where, what was found and what is accepted. At the command line it is
    printed as it is and the exit code is 2.
    """
