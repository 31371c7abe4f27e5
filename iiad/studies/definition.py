"""The definition of a study: arms, seeds, learning rates and students, read from YAML and checked whole."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from iiad.errors import InputError
from iiad.evaluation.text_metrics import require_metrics
from iiad.training.estimates import evaluations_per_layer
from iiad.training.problems import Conflicts, Section, find_problems
from iiad.training.recipe_files import change_fields, find_recipe, read_yaml
from iiad.training.recipes import DistillRecipe, TrainRecipe, load_recipe

__all__ = ["StudentsSection", "Study", "TextsSection", "find_study", "load_study"]

Settings = dict[str, JsonValue]
"""Recipe fields, SECTION.FIELD, and their values."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class StudentsSection(Section):
    """Students of one arm: at each cut the truncated teacher as it is, and distilled."""

    teacher: str = Field(description="the arm whose models are the teachers, one a seed")
    cuts: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, description="shares of the teacher's iterations to drop"
    )
    distill: str = Field("demo-distill", description="recipe of the distillation")
    settings: Settings = Field({}, description="its changes")
    metric: Literal["kl", "loss", "taylor", "cosine", "relative_l2"] = "kl"
    calibration_tokens: int = Field(16384, ge=2, le=2**40, description="tokens to profile on")
    baselines: list[Literal["uniform", "random", "latency"]] = Field(
        [],
        description="plans to compare with, untrained and distilled: of as many iterations, or the best of all that "
        "decode, or treat a sentence, as fast on this machine",
    )
    from_scratch: bool = Field(
        False, description="train models with the plans by influence from scratch, too"
    )


class TextsSection(Section):
    """Texts that the models make of pairs' sources, scored against the targets (extra `eval`)."""

    metrics: list[Literal["bleu", "chrf", "rouge"]] = Field(min_length=1, description="scores, 0 to 100")
    num_beams: int = Field(4, ge=1, le=2**10)
    max_new_tokens: int | None = Field(
        None, ge=1, le=2**24, description="of a text; default: 128, or less where the positions are fewer"
    )
    batch_size: int = Field(32, ge=1, le=2**20, description="sources at a time")

    @property
    def options(self) -> list[str]:
        """Return the options of `iiad evaluate`."""
        most = [] if self.max_new_tokens is None else ["--max-new-tokens", str(self.max_new_tokens)]
        return ["--metrics", *self.metrics, "--num-beams", str(self.num_beams), *most]


class Study(Section):
    """Arms that differ in their recipes, each trained with several seeds at a learning rate of its own."""

    train: str = Field(description="recipe that the arms change")
    settings: Settings = Field({}, description="changes of all arms")
    arms: dict[str, Settings] = Field(min_length=1, description="changes of each arm, by its name")
    reference: str = Field(description="the arm that the others are compared with")
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field([0, 1, 2], min_length=1)
    learning_rates: list[Annotated[float, Field(gt=0, lt=10)]] = Field(
        [], description="each arm's is the best of these for the first seed; none: the recipe's"
    )
    evaluation_tokens: int | None = Field(
        None, ge=2, le=2**40, description="of the validation data, from its start; default: all"
    )
    texts: TextsSection | None = None
    students: StudentsSection | None = None

    def conflicts(self) -> Conflicts:
        """Names of arms, and nothing twice."""
        for name in self.arms:
            if not _NAME.fullmatch(name):
                yield "arms", f"names of letters, digits, dots, + and -, not {name!r}"
        if self.reference not in self.arms:
            yield "reference", f"one of the arms ({', '.join(self.arms)})"
        for field in ("seeds", "learning_rates"):
            if len(set(getattr(self, field))) < len(getattr(self, field)):
                yield field, "different numbers"
        if self.students is not None:
            if self.students.teacher not in self.arms:
                yield "students.teacher", f"one of the arms ({', '.join(self.arms)})"
            if len(set(self.students.cuts)) < len(self.students.cuts):
                yield "students.cuts", "different numbers"

    def settings_of(self, arm: str, seed: int, learning_rate: float | None = None) -> list[str]:
        """Return the settings, as `iiad train --set` takes them, of one run of an arm."""
        own = {**self.settings, **self.arms[arm], "training.seed": seed}
        if learning_rate is not None:
            own["training.learning_rate"] = learning_rate
        return as_options(own)

    def recipe_of(self, arm: str, seed: int = 0, learning_rate: float | None = None) -> TrainRecipe:
        """Return the recipe of one run. Raises InputError, which names the arm, for a recipe that cannot be used."""
        try:
            return load_recipe(TrainRecipe, self.train, self.settings_of(arm, seed, learning_rate))
        except InputError as error:
            raise InputError(f"arms.{arm}: {error}") from None

    def lesson(self, seed: int = 0) -> DistillRecipe:
        """Return the recipe of a student's distillation. Raises InputError for one that cannot be used."""
        assert self.students is not None
        return load_recipe(DistillRecipe, self.students.distill, self.lesson_settings(seed))

    def lesson_settings(self, seed: int) -> list[str]:
        """Return its settings: the teacher's data unless it names its own."""
        assert self.students is not None
        data = {
            f"data.{name}": value
            for name, value in self.recipe_of(self.students.teacher)
            .data.model_dump(exclude_unset=True)
            .items()
        }
        return as_options({**data, **self.students.settings, "training.seed": seed})


def as_options(settings: Settings) -> list[str]:
    """Return settings as SECTION.FIELD=VALUE; JSON is YAML."""
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]


def find_study(name: str | Path) -> Path:
    """Return the study file of that path, or the one of that name that ships with iiad. Raises InputError."""
    return find_recipe(name, "study", "studies")


def load_study(name: str | Path, changes: Sequence[str] = ()) -> Study:
    """Read a study and check it whole, with the recipes of all arms and of the students.

    changes: `SECTION.FIELD=VALUE` of all arms' recipes, put over the study's own. Raises InputError with all problems
    in one line.
    """
    path = find_study(name)
    fields = read_yaml(path)
    for change in changes:
        value: Any = change_fields({}, [change])
        field = change.partition("=")[0].strip()
        for part in field.split("."):
            value = value[part]
        change_fields(fields, overrides={"settings": {field: value}})
    if problems := find_problems(Study, fields):
        raise InputError(f"{path}: {'; '.join(problems)}")
    study = Study.model_validate(fields)
    for arm in study.arms:
        recipe = study.recipe_of(arm)
        if not recipe.data.validation:
            raise InputError(f"{path}: arms.{arm}: data.validation: expected text to measure on, got none")
        if study.texts is not None and recipe.model.num_encoder_layers is None:
            raise InputError(f"{path}: texts: expected arms that are encoder-decoders, got {arm}")
    if study.texts is not None:
        require_metrics(study.texts.metrics)
    if study.students is not None:
        study.lesson()
        name = study.students.teacher
        if max(evaluations_per_layer(study.recipe_of(name).model)) == 1:
            raise InputError(f"{path}: students.teacher: expected an arm with iterations, got {name}")
    return study
