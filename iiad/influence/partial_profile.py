"""The batches of a profile that is not finished yet: a file that grows by a line a batch, to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iiad.artefacts import DataIdentity, ModelIdentity, write_whole
from iiad.errors import InputError

from .profile import BatchRecord, ProfileSettings

__all__ = ["Journal", "require_no_journal"]


class Journal:
    """Finished batches, each on disk before the next begins, so that a killed run loses one batch at most.

    The first line says what is measured: model, data, settings and metrics. A line that was cut off, which only the
    last one can be, is dropped.
    """

    def __init__(self, path: Path, heading: dict[str, Any]):
        self.path = path
        self.heading = heading
        self.records: list[BatchRecord] = []

    @classmethod
    def beside(
        cls,
        output: str | Path,
        model: ModelIdentity,
        data: Sequence[DataIdentity],
        settings: ProfileSettings,
        metrics: Sequence[str],
    ) -> Journal:
        """The journal of the profile that will be written to `output`: `output` with .partial behind it."""
        heading = {
            "kind": "unfinished profile",
            "model": model.model_dump(exclude={"name"}),
            "data": [entry.model_dump(exclude={"names"}) for entry in data],
            "settings": settings.model_dump(),
            "metrics": list(metrics),
        }
        return cls(cls.path_of(output), heading)

    @staticmethod
    def path_of(output: str | Path) -> Path:
        """Where the batches of a profile lie until it is written."""
        return Path(f"{output}.partial")

    def open(self, resume: bool) -> None:
        """Read what is there, or begin; whatever was there before is begun anew without `resume`.

        Nothing is written before the first batch is finished. Raises InputError where the file is of another model,
        other data, settings or metrics, or cannot be used.
        """
        if resume and self.path.exists():
            self._read()
        else:
            self.remove()
        if self.records:  # without a last line that was cut off
            write_whole(
                self.path,
                "".join(f"{line}\n" for line in (json.dumps(self.heading), *map(_line, self.records))),
            )

    def add(self, record: BatchRecord) -> None:
        """Put a finished batch on disk. Raises InputError where that fails; those before it stay whole."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.records else "w", encoding="utf-8") as file:
                if not self.records:
                    file.write(json.dumps(self.heading) + "\n")
                file.write(_line(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.records.append(record)

    def remove(self) -> None:
        """Forget the batches: the profile is written."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        first, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        try:
            found = json.loads(first)
        except ValueError:
            return  # killed before the first line was whole
        if found != json.loads(json.dumps(self.heading)):
            known = found if isinstance(found, dict) else {}
            other = [
                name for name in self.heading if known.get(name) != json.loads(json.dumps(self.heading[name]))
            ]
            raise InputError(
                f"{self.path}: holds batches of other {' and '.join(other) or 'profiles'}; give what they were "
                "measured with, or begin anew with --overwrite"
            )
        for line in lines:
            try:
                self.records.append(BatchRecord.model_validate_json(line))
            except ValidationError:
                return  # cut off; nothing whole comes after it


def require_no_journal(output: str | Path, accepted: bool) -> None:
    """Raise InputError where an interrupted run left batches of this profile, unless that is accepted."""
    path = Journal.path_of(output)
    if path.exists() and not accepted:
        raise InputError(
            f"{path}: an interrupted run left its batches here; go on from them with --resume, or begin anew with "
            "--overwrite"
        )


def _line(record: BatchRecord) -> str:
    return record.model_dump_json()
