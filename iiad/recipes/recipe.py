"""Recipes: what to train, on what and how, checked whole before a model or data set loads."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from iiad.artefacts import describe_problems
from iiad.errors import InputError

from .distillation import DistillationSection, StudentSection
from .optimization import OptimizationSection, TrainingSection
from .sections import DataSection, ModelSection, Section, TokenizerSection

__all__ = ["DistillRecipe", "TrainRecipe", "find_recipe", "load_recipe"]


class TrainRecipe(Section):
    """`iiad train`: a model from scratch."""

    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection
    data: DataSection
    training: TrainingSection

    @model_validator(mode="after")
    def _blocks_fit_the_model(self) -> TrainRecipe:
        if (self.data.block_size or 0) > self.model.max_position_embeddings:
            raise ValueError(
                f"data.block_size must be at most model.max_position_embeddings "
                f"({self.model.max_position_embeddings}), found {self.data.block_size}"
            )
        return self


class DistillRecipe(Section):
    """`iiad distill`: an E-IIET from a teacher and a plan, which are given apart from the recipe."""

    data: DataSection
    student: StudentSection = StudentSection()
    distillation: DistillationSection = DistillationSection()
    training: OptimizationSection = OptimizationSection()

    @model_validator(mode="after")
    def _retention_can_be_measured(self) -> DistillRecipe:
        if self.distillation.retain is not None and not (self.training.eval_steps and self.data.validation):
            raise ValueError(
                "distillation.retain needs data.validation and training.eval_steps to be measured"
            )
        return self


Recipe = TypeVar("Recipe", TrainRecipe, DistillRecipe)


def find_recipe(name: str | Path) -> Path:
    """The recipe file of that path, or of that name among those that ship with iiad. Raises InputError."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = sorted(Path(str(import_module("iiad_recipes").__file__)).parent.glob("*.yaml"))
    for candidate in shipped:
        if candidate.stem == str(name):
            return candidate
    known = ", ".join(candidate.stem for candidate in shipped)
    raise InputError(f"{name}: no such recipe file; recipes that ship with iiad: {known}")


def load_recipe(
    kind: type[Recipe],
    path: str | Path | None,
    settings: Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
) -> Recipe:
    """Read a recipe, put `section.field=value` settings over it, and check it whole.

    path: a YAML file, the name of a shipped recipe, or None for defaults alone. overrides: nested fields that stand
    above the file's and below the settings. Raises InputError with all problems in one line.
    """
    fields: dict[str, Any] = {}
    source = "the recipe" if path is None else str(path)
    if path is not None:
        _merge(fields, _read_yaml(find_recipe(path)))
    _merge(fields, overrides or {})
    for setting in settings:
        _apply(fields, setting)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = [line + _suggestion(kind, line) for line in describe_problems(error)]
        raise InputError(f"{source}: {'; '.join(problems)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: must hold sections (model, tokenizer, data, ...), found {fields!r}")
    return fields


class _Loader(yaml.SafeLoader):
    """YAML as it is, but for a key that is there twice: by itself YAML keeps the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; ConstructorError for a key that is there twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            _merge(below[name], value)
        else:
            below[name] = dict(value) if isinstance(value, dict) else value


def _apply(fields: dict[str, Any], setting: str) -> None:
    name, equals, text = setting.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise InputError(f"--set {setting}: must be section.field=value, as in training.max_steps=100")
    for part in parts[:-1]:
        fields = fields.setdefault(part, {})
        if not isinstance(fields, dict):
            raise InputError(f"--set {setting}: {part} is a field, not a section")
    try:
        fields[parts[-1]] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        hint = "a name that begins with * must be quoted" if "*" in text else "put it in quotes"
        raise InputError(f"--set {setting}: the value cannot be read as YAML; {hint}") from None


def _suggestion(kind: type[BaseModel], problem: str) -> str:
    """What a misspelled field may have meant."""
    path, _, message = problem.partition(": ")
    if message != "no such field":
        return ""
    *sections, field = path.split(".")
    for section in sections:
        inner = kind.model_fields[section].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        kind = inner
    close = difflib.get_close_matches(field, kind.model_fields, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (there are: {', '.join(kind.model_fields)})"
