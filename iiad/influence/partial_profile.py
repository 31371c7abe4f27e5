"""An unfinished profile: its finished batches, a line each, to resume from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iiad.artefacts import DataIdentity, Journal, ModelIdentity
from iiad.errors import InputError

from .profile import BatchRecord, ProfileSettings

__all__ = ["partial_path", "profile_journal", "require_no_partial"]


def partial_path(output: str | Path) -> Path:
    """Where the batches of the profile `output` lie until it is written: .partial is added to its name."""
    return Path(f"{output}.partial")


def profile_journal(
    output: str | Path,
    model: ModelIdentity,
    data: Sequence[DataIdentity],
    settings: ProfileSettings,
    metrics: Sequence[str],
) -> Journal[BatchRecord]:
    """The journal of the profile that will be written to `output`, bound to all that its scores depend on."""
    heading = {
        "kind": "unfinished profile",
        "model": model.model_dump(exclude={"name"}),
        "data": [entry.model_dump(exclude={"names"}) for entry in data],
        "settings": settings.model_dump(),
        "metrics": list(metrics),
    }
    return Journal(partial_path(output), heading, BatchRecord)


def require_no_partial(output: str | Path, accepted: bool) -> None:
    """Raise InputError where an interrupted run left batches of this profile, unless that is accepted."""
    path = partial_path(output)
    if path.exists() and not accepted:
        raise InputError(
            f"{path}: an interrupted run left its batches here; go on from them with --resume, or begin anew with "
            "--overwrite"
        )
