"""Checkpoints of a stage: whole or not there, the newest and the best pointed to, the others pruned.

Legend: a checkpoint-<step> folder is a model with its tokenizer and card, and beside them
    optimizer.pt            optimizer and schedule
    average.safetensors     the weights' average, if the recipe asks for one
    state.json              StageState
    manifest.json           size and sha256 of all other files; written last
Random numbers and the order of the data follow from seed and step, and need no file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from iiad.artefacts import Count, check_fields
from iiad.errors import InputError
from iiad.files import atomic_folder, file_sha256, read_json, write_text
from iiad.progress import print_status

__all__ = ["Checkpoints", "StageState", "find_damage", "write_manifest"]

LATEST, BEST = "LATEST", "BEST"
"""Files beside the checkpoints that hold the name of one."""
MANIFEST, STATE = "manifest.json", "state.json"

_REQUIRED = {"config.json", "optimizer.pt", STATE}


@dataclass
class StageState:
    """Progress of a stage, kept in every checkpoint.

    run: identity of run and stage. logged: the stage's lines in the log. window: sums, over the window_steps good
    steps since the last log line, of each logged loss; so that a resumed run logs what an unbroken one does. newest:
    the newest of each measure, for the model card. best: step and eval_loss. stopped: reason for an early end.
    """

    run: str = ""
    step: Count = 0
    logged: Count = 0
    skipped_steps: Count = 0
    skipped_in_a_row: Count = 0
    window_steps: Count = 0
    window: dict[str, float] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """Read a checkpoint's state. Raises InputError where it cannot be one."""
        return check_fields(cls, read_json(checkpoint / STATE), checkpoint / STATE)

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (checkpoint / STATE).write_text(text + "\n", encoding="utf-8")

    def figures(self) -> dict[str, Any]:
        """Figures for the model card."""
        notes = {"skipped_steps": self.skipped_steps, "best": self.best, "stopped": self.stopped}
        return {"step": self.step, **self.newest, **{name: value for name, value in notes.items() if value}}


class Checkpoints:
    """The checkpoints in a stage's folder.

    A checkpoint is written under another name and renamed: what is called checkpoint-<step> is whole unless somebody
    has touched it since, which its manifest tells.
    limit: how many to keep, the newest ones; the best is kept besides. None keeps all. run: StageState's, to tell the
    checkpoints of other runs.
    """

    def __init__(self, folder: Path, limit: int | None = None, run: str = ""):
        self.folder, self.limit, self.run = folder, limit, run

    def all(self) -> list[Path]:
        """All checkpoints, oldest first."""
        found = [
            path for path in self.folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()
        ]
        return sorted(found, key=_step_of)

    def newest(self) -> Path | None:
        """The newest checkpoint by name, if there is one."""
        return next(reversed(self.all()), None)

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that is as it was saved, with a remark on newer ones that are not; None without any.

        Removes what a kill has left. Raises InputError if there are or were checkpoints and none of them is whole.
        """
        for pattern in (".checkpoint-*", f".{LATEST}-*", f".{BEST}-*"):
            for leftover in self.folder.glob(pattern):
                _delete(leftover)
        damages = self._missing()
        for checkpoint in reversed(self.all()):
            damage = find_damage(checkpoint, _REQUIRED) or self._find_other(checkpoint)
            if damage is None:
                for found in damages:
                    print_status(f"{found}; going on from {checkpoint.name}")
                return checkpoint
            damages.append(f"{checkpoint}: {damage}")
        if damages:
            raise InputError(
                f"{'; '.join(damages)}; no whole checkpoint is left: remove them to start afresh"
            )
        return None

    def _missing(self) -> list[str]:
        """Report the checkpoint that LATEST names, if it is not there."""
        pointer = self.folder / LATEST
        for path in (pointer, self.folder / BEST):
            if os.path.lexists(path) and not path.is_file():
                raise InputError(f"{path}: expected a file with the name of a checkpoint; remove it")
        name = (
            pointer.read_text(encoding="utf-8", errors="replace").strip()[:40] if pointer.exists() else None
        )
        found = name is None or name in [path.name for path in self.all()]
        return [] if found else [f"{pointer}: names {name!r}, which is no checkpoint here"]

    def _find_other(self, checkpoint: Path) -> str | None:
        """Tell a whole checkpoint of another step, stage or run."""
        try:
            state = StageState.load(checkpoint)
        except InputError:
            return f"{STATE} is none of iiad's"
        if state.run != self.run:
            return "is of another run, stage or recipe"
        return None if state.step == _step_of(checkpoint) else f"is of step {state.step}"

    def save(self, step: int, write: Callable[[Path], None], best_step: int | None = None) -> None:
        """Make checkpoint-<step> of what `write` puts into a folder; point to it, and prune.

        Raises InputError, with the last checkpoint named, where something cannot be written: a full disk, say.
        """
        final, best = self.folder / f"checkpoint-{step}", self.folder / f"checkpoint-{best_step}"
        try:
            if os.path.lexists(final):  # damaged, or this step would not be made again
                _remove(final)
            with atomic_folder(final) as made:
                write(made)
                write_manifest(made)
            write_text(self.folder / LATEST, final.name + "\n")
            if best.is_dir():
                write_text(self.folder / BEST, best.name + "\n")
        except InputError as error:
            last = self.newest() or "none yet in this stage"
            raise InputError(f"{error}; last whole checkpoint: {last}") from error
        for old in self.all()[: -self.limit] if self.limit else []:
            if old != best:
                _remove(old)


def write_manifest(folder: Path) -> None:
    """Note size and sha256 of all files of a folder that is complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): (path.stat().st_size, file_sha256(path)) for path in files}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path, required: Set[str] = frozenset()) -> str | None:
    """Name the first file that is not as `write_manifest` found it; None if all are, and the required ones there."""
    try:
        if not (folder / MANIFEST).is_file():
            return f"{MANIFEST} is missing"
        sums = check_fields(dict[str, tuple[int, str]], read_json(folder / MANIFEST), folder / MANIFEST)
    except InputError:
        return f"{MANIFEST} is damaged"
    for name in sorted(required | sums.keys()):
        path = folder / name
        if name not in sums or not path.is_file():
            return f"{name} is missing"
        if sums[name] != (path.stat().st_size, file_sha256(path)):
            return f"{name} is not as it was saved"
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that at no moment a part of it has a checkpoint's name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}-deleted")
    os.replace(checkpoint, doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
