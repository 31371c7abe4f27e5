"""Recipes: what to train, on what and how, checked whole before a model or data set loads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml

from iiad.errors import InputError

from .model_sections import DataSection, ModelSection, TokenizerSection
from .recipe_validation import find_problems
from .section import Section, check
from .stage_sections import OptimizationSection, Scheduler, StageSection, TrainingSection
from .student_sections import STAGES, DistillationSection, StudentSection

__all__ = [
    "COMMANDS",
    "DistillRecipe",
    "TrainRecipe",
    "commands_of",
    "find_recipe",
    "load_recipe",
    "read_fields",
]


class TrainRecipe(Section):
    """`iiad train`: a model from scratch, or on from one that is there."""

    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection
    data: DataSection
    training: TrainingSection

    @check
    def _blocks_fit_the_model(self) -> str | None:
        block, context = self.data.block_size, self.model.max_position_embeddings
        if self.model.path is not None or (block or 0) <= context:
            return None
        return f"data.block_size must be at most model.max_position_embeddings ({context}), found {block}"


class DistillRecipe(Section):
    """`iiad distill`: an E-IIET from a teacher and a plan, which are given apart from the recipe."""

    data: DataSection
    student: StudentSection = StudentSection()
    distillation: DistillationSection = DistillationSection()
    training: OptimizationSection = OptimizationSection()

    @check
    def _retention_can_be_measured(self) -> str | None:
        if self.distillation.retain is None or (self.training.eval_steps and self.data.validation):
            return None
        return "distillation.retain needs data.validation and training.eval_steps to be measured"

    @check
    def _decay_steps_have_their_schedule(self) -> str | None:
        return self._of_training(self.training.misplaced_decay_steps(self._schedules().values()))

    @check
    def _min_lr_ratio_has_its_schedule(self) -> str | None:
        return self._of_training(self.training.misplaced_min_lr_ratio(self._schedules().values()))

    @check
    def _decay_fits(self) -> str | None:
        decay, stages = self.training.decay_steps, self._stages()
        decaying = [name for name, kind in self._schedules().items() if kind == "warmup_stable_decay"]
        rooms = {name: stages[name].max_steps - stages[name].warmup_steps for name in decaying}
        shorter = [name for name, room in rooms.items() if 0 <= room < (decay or 0)]
        if not shorter:
            return None
        least = min(shorter, key=rooms.__getitem__)
        return (
            f"training.decay_steps must be at most max_steps less warmup_steps of distillation.{least} "
            f"({rooms[least]}), found {decay}"
        )

    def _schedules(self) -> dict[str, Scheduler]:
        """Of each stage that is run, by its name."""
        return {
            name: stage.lr_scheduler_type or self.training.lr_scheduler_type
            for name, stage in self._stages().items()
        }

    def _stages(self) -> dict[str, StageSection]:
        """Those that are run."""
        stages: dict[str, StageSection] = {name: getattr(self.distillation, name) for name in STAGES}
        return {name: stage for name, stage in stages.items() if stage.max_steps}

    def _of_training(self, problem: str | None) -> str | None:
        return f"training.{problem}" if problem else None


Recipe = TypeVar("Recipe", TrainRecipe, DistillRecipe)

COMMANDS: dict[str, type[TrainRecipe] | type[DistillRecipe]] = {
    "train": TrainRecipe,
    "distill": DistillRecipe,
}
"""Each command that takes a recipe, and what it reads it as."""


def commands_of(fields: Mapping[Any, Any]) -> list[str]:
    """The commands of which there are sections that no other command has: one, for a recipe that is clear."""
    shared = set.intersection(*(set(kind.model_fields) for kind in COMMANDS.values()))
    return [name for name, kind in COMMANDS.items() if (set(kind.model_fields) - shared) & set(fields)]


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
    above the file's and below the settings. Raises InputError with all problems in one line; for a file that is
    clearly another command's, with that alone.
    """
    if path is not None:
        _require_kind(kind, path)
    fields = read_fields(path, settings, overrides)
    problems = find_problems(kind, fields)
    if problems:
        raise InputError(f"{'the recipe' if path is None else path}: {'; '.join(problems)}")
    return kind.model_validate(fields)


def _require_kind(kind: type[Section], path: str | Path) -> None:
    found = commands_of(read_fields(path))
    if len(found) == 1 and COMMANDS[found[0]] is not kind:
        wanted = next(name for name, accepted in COMMANDS.items() if accepted is kind)
        raise InputError(f"{path}: is a recipe for `iiad {found[0]}`, not for `iiad {wanted}`")


def read_fields(
    path: str | Path | None, settings: Sequence[str] = (), overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The nested fields of a recipe with settings over it, as `load_recipe` takes them, not checked.

    Raises InputError for a file that is no recipe and for a setting that is none.
    """
    fields: dict[str, Any] = {}
    if path is not None:
        _merge(fields, _read_yaml(find_recipe(path)))
    _merge(fields, overrides or {})
    for setting in settings:
        _apply(fields, setting)
    return fields


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
            if not isinstance(key, Hashable):
                break  # refused in a moment, with its place
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
