"""Artefacts of a page: found in folders, loaded, checked to be of one model, and what planning makes of a profile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from iiad.artefacts import Artefact
from iiad.checkpoints.summary import ModelSummary, summarize_model
from iiad.errors import InputError
from iiad.files import file_sha256
from iiad.identities import ModelIdentity
from iiad.studies.study_artefact import StudyResult
from iiad.training.run_record import RECORD, RunRecord
from iiad.training.run_status import LOG, RunStatus, read_log, read_run

from .artefact_tables import KINDS, load_artefact

__all__ = ["Run", "Source", "Sources", "gather", "models_of"]

MOST_FILES = 5000
"""Files that are looked at in all folders."""
_HEAD = re.compile(rb'\s*\{\s*"kind"\s*:\s*"(\w+)"')
"""Beginning of a file that iiad wrote."""
_OWN = ("profile", "plan", "family", "verification", "latency", "signals")
"""Kinds that are about the teacher alone."""
AnyArtefact = TypeVar("AnyArtefact", bound=Artefact)


@dataclass(frozen=True)
class Source:
    """An artefact, its file and the file's sha256."""

    path: Path
    artefact: Any
    sha256: str


@dataclass(frozen=True)
class Run:
    """A run's folder: its record, its state and its log."""

    folder: Path
    record: RunRecord
    status: RunStatus
    log: list[dict[str, Any]]


@dataclass
class Sources:
    """All that a page is made from."""

    files: list[Source] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    models: list[ModelSummary] = field(default_factory=list)

    def of(self, kind: type[AnyArtefact]) -> list[tuple[Source, AnyArtefact]]:
        """Return the artefacts of a kind, each with its source."""
        return [(source, source.artefact) for source in self.files if type(source.artefact) is kind]

    @property
    def paths(self) -> list[Path]:
        """Files that no page may replace: the artefacts, and what lies in folders of runs and models, pages aside."""
        folders = [run.folder for run in self.runs] + [Path(model.folder) for model in self.models]
        inside = [file for folder in folders for file in folder.iterdir() if file.suffix != ".html"]
        return [source.path for source in self.files] + inside

    @property
    def teacher(self) -> ModelIdentity | None:
        """The model that the page is about: that of the first artefact which names one."""
        named = [models_of(source.artefact) for source in self.files]
        return next((models[0] for models in named if models), None)


def gather(paths: Sequence[str | Path]) -> Sources:
    """Read artefacts: files, and those in folders and below; of a study those of its first seed.

    Raises InputError: a path without an artefact, one that cannot be read, artefacts of different teachers.
    """
    sources, seen = Sources(), set()
    for given in map(Path, paths):
        found = [path for path in _find(given) if os.path.realpath(path) not in seen]
        seen |= {os.path.realpath(path) for path in found}
        for path in found:
            _add(sources, path)
        if not found and os.path.realpath(given) not in seen and given.is_dir():
            raise InputError(f"{given}: expected a folder with artefacts of iiad, got none in it")
    order = list(KINDS)
    sources.files.sort(key=lambda source: order.index(source.artefact.kind))
    sources.runs.sort(key=lambda run: run.record.command != "train")  # teachers before students
    _require_one_teacher(sources)
    return sources


def _find(given: Path) -> Iterator[Path]:
    """Yield a file itself; of a folder its artefacts, records of runs and configurations of models."""
    if not given.is_dir():
        yield given
        return
    looked_at = 0
    for folder, folders, files in os.walk(given):
        place = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "checkpoint-", "stage-")))
        study = _load_study(place) if "study.json" in files else None
        if study is not None and "runs" in folders:
            folders.remove("runs")
            yield from _of_first_seed(place / "runs", study)
        for name in sorted(files):
            looked_at += 1
            if looked_at > MOST_FILES:
                raise InputError(f"{given}: expected at most {MOST_FILES:,} files, got more; name fewer")
            if _is_ours(place / name) or (name == "config.json" and RECORD not in files and _is_model(place)):
                yield place / name


def _is_model(folder: Path) -> bool:
    try:
        summarize_model(folder)
    except InputError:
        return False
    return True


def _load_study(folder: Path) -> StudyResult | None:
    path = folder / "study.json"
    return StudyResult.load(path) if _is_ours(path) else None


def _of_first_seed(folder: Path, study: StudyResult) -> Iterator[Path]:
    """Yield runs, profile and plans of a study's first seed; its result holds the figures of all."""
    seed = min((run.seed for arm in study.arms for run in arm.runs), default=0)
    names = [
        name
        for arm in study.arms
        for name in (f"{arm.name}-seed", f"{arm.name}-lr{arm.learning_rate:g}-seed")
    ]
    wanted = re.compile(rf"({'|'.join(map(re.escape, names))}){seed}(?![0-9])") if names else None
    for path in sorted(folder.iterdir()) if folder.is_dir() and wanted else []:
        if wanted is not None and wanted.match(path.name):
            if (path / RECORD).is_file():
                yield path / RECORD
            elif path.name.endswith((".profile.json", ".plan.json")):
                yield path


def _is_ours(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            found = _HEAD.match(file.read(200))
    except OSError:
        return False
    return found is not None and found[1].decode() in (*KINDS, "run")


def _add(sources: Sources, path: Path) -> None:
    if path.name == RECORD:
        folder = path.parent
        status = read_run(folder)
        sources.runs.append(Run(folder, RunRecord.load(path), status, read_log(folder / LOG)))
    elif path.name == "config.json":
        sources.models.append(summarize_model(path.parent))
    else:
        sources.files.append(Source(path, load_artefact(path), file_sha256(path)))


def models_of(artefact: Any) -> list[ModelIdentity]:
    """Return the models that an artefact is about, its teacher first."""
    if artefact.kind in ("evaluation", "bench"):
        return [result.model for result in artefact.results]
    if artefact.kind == "check":
        return [model for model in (artefact.teacher, artefact.model) if model is not None]
    model = getattr(artefact, "teacher", None) or getattr(artefact, "model", None)
    return [model] if isinstance(model, ModelIdentity) else []


def _require_one_teacher(sources: Sources) -> None:
    """Raise InputError for artefacts of different models: another teacher, or none that could be its student."""
    teacher, first = sources.teacher, None
    for source in sources.files:
        models = models_of(source.artefact)
        if teacher is None or not models:
            continue
        first = first or source.path
        same = any(model.fingerprint == teacher.fingerprint for model in models)
        if source.artefact.kind not in _OWN:
            same = same or any(_is_alike(model, teacher) for model in models)
        if not same:
            raise InputError(
                f"{source.path}: expected an artefact of {teacher.name} ({teacher.fingerprint[:12]}), as {first} is, "
                f"got one of {models[0].name} ({models[0].fingerprint[:12]})"
            )
    for run in sources.runs:
        found = run.record.inputs.get("teacher")
        if teacher is not None and found not in (None, teacher.fingerprint):
            raise InputError(
                f"{run.folder}: expected a student of {teacher.name} ({teacher.fingerprint[:12]}), as {first} says, "
                f"got one of another teacher ({found[:12]})"
            )


def _is_alike(model: ModelIdentity, teacher: ModelIdentity) -> bool:
    """Return whether a model could be the teacher's student: the same blocks, perhaps fewer iterations."""

    def sizes(one: ModelIdentity) -> tuple[Any, ...]:
        return one.model_type, one.num_layers, one.num_encoder_layers, one.shape

    return sizes(model) == sizes(teacher)
