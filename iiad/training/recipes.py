"""Recipes: what to train, on what and how, checked whole before a model or data set loads."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from iiad.artefacts import describe_problems
from iiad.errors import InputError

from .recipe_files import read_fields
from .sections import (
    Conflicts,
    DataSection,
    DistillationSection,
    ModelSection,
    OptimizationSection,
    Section,
    StudentSection,
    TokenizerSection,
    TrainingSection,
)

__all__ = [
    "COMMANDS",
    "DistillRecipe",
    "TrainRecipe",
    "commands_of",
    "find_problems",
    "load_recipe",
    "missing_inputs",
]


class TrainRecipe(Section):
    """`iiad train`: a model from scratch, or on from a model."""

    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection
    data: DataSection
    training: TrainingSection

    def conflicts(self) -> Conflicts:
        """Blocks within the context."""
        context = self.model.max_position_embeddings
        if self.model.path is None and (self.data.block_size or 0) > context:
            yield "data.block_size", f"at most model.max_position_embeddings ({context})"


class DistillRecipe(Section):
    """`iiad distill`: an E-IIET from a teacher and a plan, which are given apart from the recipe."""

    data: DataSection
    student: StudentSection = StudentSection()
    distillation: DistillationSection = DistillationSection()
    training: OptimizationSection = OptimizationSection()

    def conflicts(self) -> Conflicts:
        """Retention that can be measured, and schedules of the stages that run."""
        if self.distillation.retain is not None:
            if not self.data.validation:
                yield "data.validation", "text to measure distillation.retain on"
            if self.training.eval_steps is None:
                yield "training.eval_steps", "a number, to measure distillation.retain"
        schedules = [
            (stage.lr_scheduler_type or self.training.lr_scheduler_type, stage.max_steps - stage.warmup_steps)
            for stage in self.distillation.stages().values()
        ]
        for field, what in self.training.schedule_conflicts(schedules):
            yield f"training.{field}", what


Recipe = TypeVar("Recipe", TrainRecipe, DistillRecipe)

COMMANDS: dict[str, type[TrainRecipe] | type[DistillRecipe]] = {
    "train": TrainRecipe,
    "distill": DistillRecipe,
}
"""Commands that take a recipe, each with its kind."""


def commands_of(fields: Mapping[Any, Any]) -> list[str]:
    """Return the commands whose own sections the fields have: one, for a recipe that is clear."""
    shared = set.intersection(*(set(kind.model_fields) for kind in COMMANDS.values()))
    return [name for name, kind in COMMANDS.items() if (set(kind.model_fields) - shared) & set(fields)]


def load_recipe(
    kind: type[Recipe],
    path: str | Path | None,
    settings: Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
) -> Recipe:
    """Read a recipe, put `section.field=value` settings over it, and check it whole.

    path: a YAML file, the name of a recipe that ships with iiad, or None for defaults alone. overrides: nested fields
    that stand above the file's and below the settings. Raises InputError with all problems in one line; for a file
    that is clearly another command's, with that alone.
    """
    own = commands_of(read_fields(path))
    wanted = next(name for name, known in COMMANDS.items() if known is kind)
    if len(own) == 1 and own[0] != wanted:
        raise InputError(f"{path}: expected a recipe for `iiad {wanted}`, got one for `iiad {own[0]}`")
    fields = read_fields(path, settings, overrides)
    problems = find_problems(kind, fields)
    if problems:
        raise InputError(f"{'the recipe' if path is None else path}: {'; '.join(problems)}")
    return kind.model_validate(fields)


def find_problems(kind: type[Section], fields: Mapping[Any, Any]) -> list[str]:
    """Return all problems of a recipe's fields, a line each; none exactly where `kind.model_validate(fields)` passes.

    Unknown names come first, with a suggestion; then, in the recipe as they suggest it, all fields that are wrong in
    themselves; and conflicts between fields, for every section whose fields are right.
    """
    corrected, problems = _correct_names(kind, kind, fields)
    try:
        kind.model_validate(corrected)
    except ValidationError as error:
        problems += describe_problems(error)
    return problems


def _correct_names(
    recipe: type[Section], kind: type[Section], fields: Mapping[Any, Any], above: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Return a section's fields with unknown names replaced or left out, and a line for each of them."""
    known = {name: value for name, value in fields.items() if name in kind.model_fields}
    problems = []
    for name in [name for name in fields if name not in known]:
        elsewhere = [path for path in _paths(recipe) if path.rpartition(".")[2] == name]
        meant = elsewhere or difflib.get_close_matches(str(name), kind.model_fields, n=1)
        hint = (
            f"did you mean {' or '.join(meant)}?" if meant else f"there are: {', '.join(kind.model_fields)}"
        )
        problems.append(f"{above}{name}: no such field ({hint})")
        if meant and not elsewhere:
            known.setdefault(meant[0], fields[name])
    for name, field in kind.model_fields.items():
        section = _section_of(kind, name)
        if section and field.is_required():
            known.setdefault(name, {})  # so that the fields that it needs are reported
        if section and isinstance(known.get(name), Mapping):
            known[name], inner = _correct_names(recipe, section, known[name], f"{above}{name}.")
            problems += inner
    return known, problems


def _paths(kind: type[Section], above: str = "") -> Iterator[str]:
    """Yield the dotted path of every section and field."""
    for name in kind.model_fields:
        yield above + name
        if section := _section_of(kind, name):
            yield from _paths(section, f"{above}{name}.")


def _section_of(kind: type[Section], name: str) -> type[Section] | None:
    annotation = kind.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def missing_inputs(recipe: TrainRecipe | DistillRecipe) -> list[str]:
    """Return a line for each input of the recipe that is not on this machine; nothing is opened."""
    lines = [
        f"data.{field}: no file {name} here"
        for field in ("train", "validation")
        for name in getattr(recipe.data, field)
        if not re.match("stdlib(:|$)", name) and not _has_files(name)
    ]
    if isinstance(recipe, TrainRecipe):
        folders = {"model.path": recipe.model.path, "tokenizer.path": recipe.tokenizer.path}
    else:
        init = recipe.student.init if recipe.student.init not in ("teacher", "random") else None
        folders = {"distillation.signals": recipe.distillation.signals, "student.init": init}
    for field, folder in folders.items():
        if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
            hub_name = isinstance(recipe, TrainRecipe) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", folder)
            fallback = "; will be looked up at huggingface.co" if hub_name else ""
            lines.append(f"{field}: no folder {folder} here{fallback}")
    return lines


def _has_files(name: str) -> bool:
    path = os.path.expanduser(name)
    return os.path.exists(path) or any(glob.iglob(path, recursive=True))
