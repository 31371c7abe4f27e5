"""State of a run, read from its folder: stage, step, loss, time left, checkpoints, holder. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from iiad.artefacts import Count, Record, Size, check_fields
from iiad.checkpoints.summary import ModelSummary, summarize_model
from iiad.errors import InputError
from iiad.files import parse_json
from iiad.outputs import find_holder

from .checkpointing import BEST, Checkpoints
from .distillation_sections import STAGES
from .estimates import StageWork, teacher_work
from .recipes import COMMANDS, DistillRecipe, TrainRecipe
from .run_record import RECORD, RunRecord

__all__ = ["RunStatus", "StageStatus", "read_log", "read_run"]

LOG = "log.jsonl"


class StageStatus(Record):
    """State of one stage."""

    name: str
    step: Count = Field(description="steps made, as log and checkpoints say")
    max_steps: Count
    figures: dict[str, JsonValue] = Field(description="the newest of each that is logged")
    seconds_left: float | None = Field(description="by the newest speed; null before it is known")
    checkpoints: list[str] = Field(description="oldest first")
    best: str | None = Field(description="the checkpoint of the best validation")


class RunStatus(Record):
    """State of a run."""

    kind: str = "run status"
    folder: str
    command: str
    finished: bool
    running: str | None = Field(description="the process that holds the folder's lock; null where none does")
    stages: list[StageStatus] = Field(description="that run or did, in order")
    model: ModelSummary | None = Field(
        description="the finished one or that of the newest checkpoint, if any"
    )
    results: dict[str, JsonValue]

    @property
    def stage(self) -> StageStatus | None:
        """The newest stage that has begun; the first one where none has."""
        begun = [stage for stage in self.stages if stage.step]
        return begun[-1] if begun else next(iter(self.stages), None)

    @property
    def seconds_left(self) -> float | None:
        """Of all stages; later ones are taken to be as fast as the present one. None before that is known."""
        now = self.stage
        if now is None or now.seconds_left is None or now.step >= now.max_steps:
            return None
        later = self.stages[self.stages.index(now) + 1 :]
        steps = sum(stage.max_steps for stage in later)
        return now.seconds_left * (1 + steps / (now.max_steps - now.step))


def read_run(folder: Path) -> RunStatus:
    """Read the state of the run in a folder. Raises InputError for a record that is none, or of another recipe."""
    record = RunRecord.load(folder / RECORD)
    recipe = _read_recipe(record, folder / RECORD)
    entries = read_log(folder / LOG)
    stages, models = [], [folder] if record.finished else []
    for name, place, max_steps in _stages(recipe, folder):
        own = [entry for entry in entries if entry.get("stage") == name]
        stages.append(_read_stage(name, place, max_steps, own, _Speed(recipe, record)))
        models += [place / checkpoint for checkpoint in stages[-1].checkpoints]
    return RunStatus(
        folder=str(folder),
        command=record.command,
        finished=record.finished,
        running=find_holder(folder),
        stages=stages,
        model=_read_model(folder if record.finished else models[-1]) if models else None,
        results=record.results,
    )


def _read_recipe(record: RunRecord, where: Path) -> TrainRecipe | DistillRecipe:
    if record.command not in COMMANDS:
        raise InputError(f"{where}: command: expected {' or '.join(COMMANDS)}, got {record.command}")
    kind = COMMANDS[record.command]
    sections = {name: record.settings.get(name) for name in kind.model_fields}
    model = sections.get("model")
    if isinstance(model, dict) and model.get("path") is not None:
        sections["model"] = {"path": model["path"]}  # a shape beside it would be refused
    return check_fields(kind, sections, where)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of the log; none where there is no log."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = parse_json(line, path)
        except InputError:  # being written, or cut off by a kill
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def _stages(recipe: TrainRecipe | DistillRecipe, folder: Path) -> list[tuple[str, Path, int]]:
    """Name, folder and steps of each stage."""
    if isinstance(recipe, TrainRecipe):
        return [("train", folder, recipe.training.max_steps)]
    return [
        (name, folder / f"stage-{STAGES.index(name)}-{name}", stage.max_steps)
        for name, stage in recipe.distillation.stages().items()
    ]


def _read_stage(
    name: str, folder: Path, max_steps: int, entries: list[dict[str, Any]], speed: _Speed
) -> StageStatus:
    checkpoints = [path.name for path in Checkpoints(folder).all()]
    steps = [entry["step"] for entry in entries] + [int(each.rpartition("-")[2]) for each in checkpoints]
    step = min(max(steps, default=0), max_steps)
    figures = {key: value for entry in entries for key, value in entry.items() if value is not None}
    pointer = folder / BEST
    best = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else None
    fields = {
        "name": name,
        "step": step,
        "max_steps": max_steps,
        "figures": {key: figures[key] for key in sorted(figures.keys() - {"stage", "step", "seconds"})},
        "seconds_left": speed.seconds_left(step, max_steps, figures.get("tokens_per_second")),
        "checkpoints": checkpoints,
        "best": best if best in checkpoints else None,
    }
    return check_fields(StageStatus, fields, folder / LOG)


class _Speed:
    """Seconds that steps take, their phases regarded."""

    def __init__(self, recipe: TrainRecipe | DistillRecipe, record: RunRecord):
        self.work = teacher_work(recipe) if isinstance(recipe, TrainRecipe) else StageWork()
        block: float = recipe.data.block_tokens(512)
        if isinstance(recipe, TrainRecipe) and recipe.model.path is None:
            block = recipe.batch.tokens / recipe.training.per_device_train_batch_size
        self.tokens = block * check_fields(Size, record.settings.get("blocks_per_step"), "blocks_per_step")

    def seconds_left(self, step: int, max_steps: int, tokens_per_second: Any) -> float | None:
        """Seconds of the steps that are left, by the speed of the newest one; None for a speed that is none."""
        if not isinstance(tokens_per_second, int | float) or not tokens_per_second > 0:
            return None
        newest = self.tokens / tokens_per_second
        return newest * self.work.between(step, max_steps) / self.work.between(step - 1, step)


def _read_model(folder: Path) -> ModelSummary | None:
    """Summarize a model that a run has saved; None where it cannot be read, as one that is being replaced."""
    try:
        return summarize_model(folder)
    except InputError:
        return None
