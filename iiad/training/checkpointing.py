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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from iiad.errors import InputError, one_line
from iiad.files import atomic_folder, file_sha256, write_text
from iiad.progress import print_status

__all__ = ["Checkpoints", "StageState"]

LATEST, BEST = "LATEST", "BEST"
"""Files beside the checkpoints that hold the name of one."""
MANIFEST, STATE = "manifest.json", "state.json"

_MANIFEST = TypeAdapter(dict[str, tuple[int, str]])
_REQUIRED = {"model.safetensors", "optimizer.pt", STATE}


@dataclass
class StageState:
    """Progress of a stage, kept in every checkpoint.

    window: sums, over the window_steps good steps since the last log line, of each logged loss; so that a resumed run
    logs what an unbroken one does. newest: the newest of each measure, for the model card. best: step and eval_loss.
    stopped: reason for an early end.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    window_steps: int = 0
    window: dict[str, float] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """Read a checkpoint's state."""
        return cls(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))

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
    limit: how many to keep, the newest ones; the best is kept besides. None keeps all.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.limit = folder, limit

    def all(self) -> list[Path]:
        """All checkpoints, oldest first."""
        found = [path for path in self.folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def newest(self) -> Path | None:
        """The newest checkpoint by name, if there is one."""
        return next(reversed(self.all()), None)

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that is as it was saved, with a remark on newer ones that are not; None without any.

        Removes what a kill has left. Raises InputError if there are checkpoints and none of them is whole.
        """
        for pattern in (".checkpoint-*", f".{LATEST}-*", f".{BEST}-*"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        damages: list[str] = []
        for checkpoint in reversed(self.all()):
            damage = _find_damage(checkpoint)
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

    def save(self, step: int, write: Callable[[Path], None], best_step: int | None = None) -> None:
        """Make checkpoint-<step> of what `write` puts into a folder; point to it, and prune.

        Raises InputError, with the last checkpoint named, where something cannot be written: a full disk, say.
        """
        final, best = self.folder / f"checkpoint-{step}", self.folder / f"checkpoint-{best_step}"
        try:
            if final.exists():  # damaged, or this step would not be made again
                _remove(final)
            with atomic_folder(final) as made:
                write(made)
                files = sorted(path for path in made.rglob("*") if path.is_file())
                sums = {
                    str(path.relative_to(made)): (path.stat().st_size, file_sha256(path)) for path in files
                }
                (made / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
            write_text(self.folder / LATEST, final.name + "\n")
            if best.is_dir():
                write_text(self.folder / BEST, best.name + "\n")
        except (InputError, SafetensorError) as error:
            problem = (
                error if isinstance(error, InputError) else f"{final}: cannot be written: {one_line(error)}"
            )
            raise InputError(
                f"{problem}; last whole checkpoint: {self.newest() or 'none yet in this stage'}"
            ) from error
        for old in self.all()[: -self.limit] if self.limit else []:
            if old != best:
                _remove(old)


def _find_damage(checkpoint: Path) -> str | None:
    """Name the first file that is not as it was saved; None if all are."""
    try:
        sums = _MANIFEST.validate_json((checkpoint / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return f"{MANIFEST} is missing or damaged"
    for name in sorted(_REQUIRED | sums.keys()):
        path = checkpoint / name
        if name not in sums or not path.is_file():
            return f"{name} is missing"
        if sums[name] != (path.stat().st_size, file_sha256(path)):
            return f"{name} is not as it was saved"
    return None


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that at no moment a part of it has a checkpoint's name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}-deleted")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)
