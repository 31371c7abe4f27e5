"""Checkpoints of a stage: whole or not there, the newest and the best pointed to, the others pruned."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError

from iiad.errors import InputError, one_line
from iiad.files import write_text

from .processes import barrier, is_first_process

__all__ = ["BEST", "LATEST", "Checkpoints", "latest_checkpoint", "notes_of", "read_notes"]

LATEST, BEST = "LATEST", "BEST"
"""Files beside the checkpoints that hold the name of one."""

_NOTES = "iiad"


def notes_of(state: Any) -> dict[str, Any]:
    """What we keep in a Trainer's state besides its own, and so in every checkpoint: best, skipped, stopped."""
    return state.stateful_callbacks.setdefault(_NOTES, {})


def read_notes(checkpoint: Path) -> dict[str, Any]:
    """The notes in a checkpoint's state."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return (state.get("stateful_callbacks") or {}).get(_NOTES, {})


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a stage, if there is one."""
    return next(reversed(Checkpoints(Path(folder)).all()), None)


class Checkpoints:
    """The checkpoints in a stage's folder.

    One is written under another name, flushed to the disk and renamed: whatever is called checkpoint-<step> is whole.
    limit: how many to keep, the newest ones; the best is kept besides. None keeps all.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.limit = folder, limit

    def all(self) -> list[Path]:
        """The whole ones, oldest first."""
        found = [path for path in self.folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def sweep(self) -> None:
        """Remove what a kill has left of a checkpoint that was being saved or deleted, or of a pointer."""
        for pattern in (".saving", ".checkpoint-*-deleted", f".{LATEST}-*", f".{BEST}-*"):
            for leftover in self.folder.glob(pattern):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)

    @contextmanager
    def saving(self, step: int, best_step: int | None) -> Iterator[Path]:
        """A folder in which to make checkpoint-<step>; what is there when the block ends takes its place.

        Every process enters and leaves; the first one moves things. Raises InputError where something cannot be
        written, a full disk for one, with the last whole checkpoint named.
        """
        staging, final = self.folder / ".saving", self.folder / f"checkpoint-{step}"
        try:
            if is_first_process():
                self.sweep()
                (staging / final.name).mkdir(parents=True)
            barrier()
            yield staging
            barrier()
            if is_first_process():
                self._commit(staging / final.name, final, best_step)
            barrier()
        except (torch.OutOfMemoryError, torch.distributed.DistError):  # no fault of the disk's
            raise
        except (OSError, RuntimeError, SafetensorError) as error:  # torch has RuntimeError for a full disk
            raise InputError(
                f"{final}: cannot be saved: {one_line(error)}; "
                f"last whole checkpoint: {latest_checkpoint(self.folder) or 'none yet in this stage'}"
            ) from error
        finally:
            if is_first_process():
                shutil.rmtree(staging, ignore_errors=True)

    def _commit(self, made: Path, final: Path, best_step: int | None) -> None:
        _flush(made)
        if final.exists():
            _remove(final)
        os.replace(made, final)
        _flush(self.folder, whole=False)
        write_text(self.folder / LATEST, final.name + "\n")
        best = self.folder / f"checkpoint-{best_step}"
        if best_step is not None and best.is_dir():
            write_text(self.folder / BEST, best.name + "\n")
        for old in self.all()[: -self.limit] if self.limit else []:
            if old != best:
                _remove(old)


def _flush(folder: Path, whole: bool = True) -> None:
    """Have a folder on the disk, with all in it or only its list, so that no power cut empties what is renamed."""
    for path in [*(folder.rglob("*") if whole else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that at no moment a part of it has a checkpoint's name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}-deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)
