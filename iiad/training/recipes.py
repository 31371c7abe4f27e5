"""Recipes: what to train, on what and how, checked whole before a model or data set loads."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from iiad.data import input_paths
from iiad.errors import InputError

from .distillation_sections import DistillationSection, StudentSection
from .problems import Conflicts, Section, find_problems
from .recipe_files import change_fields, read_fields
from .sections import (
    DataSection,
    ModelSection,
    OptimizationSection,
    StageSection,
    TokenizerSection,
    TrainingSection,
    count_warmup,
)

__all__ = [
    "COMMANDS",
    "BatchShape",
    "DistillRecipe",
    "TrainRecipe",
    "commands_of",
    "load_recipe",
    "missing_inputs",
    "require_inputs",
    "shortened_fields",
]


class BatchShape(NamedTuple):
    """A batch of one process, of a new model.

    lengths: tokens of a block in each stack of the model: T, or S and T of the longest pair. tokens: of the batch, in
    all stacks, padding included.
    """

    lengths: tuple[int, ...]
    tokens: int


class TrainRecipe(Section):
    """`iiad train`: a model from scratch, or on from a model."""

    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection = TokenizerSection()
    data: DataSection
    training: TrainingSection

    @property
    def vocab_size(self) -> int | None:
        """Tokens of the vocabulary; None where a tokenizer is named that nobody has looked into."""
        words = {word for task in self.data.tasks for word in task.words}
        return self.tokenizer.vocab_size or len(words) or None

    @property
    def batch(self) -> BatchShape:
        """Sizes of a batch."""
        data, context = self.data, self.model.max_position_embeddings
        if self.model.num_encoder_layers is not None:
            lengths = (data.max_source_tokens or context, data.max_target_tokens or context)
            return BatchShape(lengths, data.batch_tokens)
        block = data.block_tokens(context)
        return BatchShape((block,), self.training.per_device_train_batch_size * block)

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return self.training.max_steps

    def conflicts(self) -> Conflicts:
        """A tokenizer, blocks within the context."""
        given = (self.tokenizer.path, self.tokenizer.vocab_size)
        if not any(given) and not self.data.tasks:
            yield "tokenizer.vocab_size", "a size, or a path"
        context = self.model.max_position_embeddings
        if self.model.path is None and (self.data.block_size or 0) > context:
            yield "data.block_size", f"at most model.max_position_embeddings ({context})"


class DistillRecipe(Section):
    """`iiad distill`: an E-IIET from a teacher and a plan, which are given apart from the recipe."""

    data: DataSection
    student: StudentSection = StudentSection()
    distillation: DistillationSection = DistillationSection()
    training: OptimizationSection = OptimizationSection()

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the longest stage."""
        return max((stage.max_steps for stage in self.distillation.stages().values()), default=1)

    def conflicts(self) -> Conflicts:
        """Retention that can be measured, and schedules of the stages that run."""
        if self.distillation.retain is not None:
            if not self.data.validation:
                yield "data.validation", "text to measure distillation.retain on"
            if self.training.eval_steps is None:
                yield "training.eval_steps", "a number, to measure distillation.retain"
        stages = self.distillation.stages().values()
        schedules = {stage.lr_scheduler_type or self.training.lr_scheduler_type for stage in stages}
        for field, what in self.training.schedule_conflicts(schedules):
            yield f"training.{field}", what
        if self.distillation.onpolicy.generates:
            if self.training.fsdp:
                yield (
                    "training.fsdp",
                    "false with stage onpolicy, which would gather all weights for every token",
                )
            if self.training.attn_implementation not in (None, "sdpa", "eager"):
                yield (
                    "training.attn_implementation",
                    "sdpa, eager or null with the static cache of stage onpolicy",
                )


_AT_HUB = "; will be looked up at huggingface.co"

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
    fields = read_fields(path)
    own = commands_of(fields)
    wanted = next(name for name, known in COMMANDS.items() if known is kind)
    if len(own) == 1 and own[0] != wanted:
        raise InputError(f"{path}: expected a recipe for `iiad {wanted}`, got one for `iiad {own[0]}`")
    problems = find_problems(kind, change_fields(fields, settings, overrides))
    if problems:
        raise InputError(f"{'the recipe' if path is None else path}: {'; '.join(problems)}")
    return kind.model_validate(fields)


def shortened_fields(recipe: TrainRecipe | DistillRecipe) -> list[str]:
    """Return a line for each warm-up and decay that is longer than its stage and will be cut."""
    lines = []
    own = recipe.training
    stages: Mapping[str, TrainingSection | StageSection]
    if isinstance(recipe, TrainRecipe):
        stages = {"training": recipe.training}
    else:
        stages = {f"distillation.{name}": stage for name, stage in recipe.distillation.stages().items()}
    for name, stage in stages.items():
        warmup = count_warmup(stage)
        if stage.warmup_steps > stage.max_steps:
            lines.append(f"{name}.warmup_steps: {stage.warmup_steps} cut to max_steps, {warmup}")
        left = stage.max_steps - warmup
        decays = (stage.lr_scheduler_type or own.lr_scheduler_type) == "warmup_stable_decay"
        if decays and (own.decay_steps or 0) > left:
            lines.append(
                f"training.decay_steps: {own.decay_steps} cut to {left}, {name}.max_steps less its warm-up"
            )
    return lines


def require_inputs(recipe: TrainRecipe | DistillRecipe) -> None:
    """Raise InputError for the first input of the recipe that is neither here nor can be looked up at the hub."""
    for line in missing_inputs(recipe):
        if not line.endswith(_AT_HUB):
            raise InputError(line)


def missing_inputs(recipe: TrainRecipe | DistillRecipe) -> list[str]:
    """Return a line for each input of the recipe that is not on this machine; nothing is opened."""
    lines = [
        f"data.{field}: no file {path} here"
        for field in ("train", "validation")
        for name in getattr(recipe.data, field)
        for path in input_paths(name)
        if not _has_files(path)
    ]
    if isinstance(recipe, TrainRecipe):
        folders = {"model.path": recipe.model.path, "tokenizer.path": recipe.tokenizer.path}
    else:
        init = recipe.student.init if recipe.student.init not in ("teacher", "random") else None
        folders = {"distillation.signals": recipe.distillation.signals, "student.init": init}
    for field, folder in folders.items():
        if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
            hub_name = isinstance(recipe, TrainRecipe) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", folder)
            lines.append(f"{field}: no folder {folder} here{_AT_HUB if hub_name else ''}")
    return lines


def _has_files(name: str) -> bool:
    path = os.path.expanduser(name)
    return os.path.exists(path) or any(glob.iglob(path, recursive=True))
