"""Runs of a fraction of a second: a tiny model, six documents, the teacher's tokenizer."""

import pytest

from iiad.training import TrainRecipe, train
from tests.training.forking import Commands


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """`iiad` in other processes."""
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def quick(recipe_fields, little_text, teacher_folder):
    """Make the fields of a recipe of six steps, all logged; with changes of sections, and of training by name."""

    def make(model=None, tokenizer=None, data=None, **training):
        text = {"train": [str(little_text)], "validation": [str(little_text)]}
        return {
            "model": {**recipe_fields["model"], **(model or {})},
            "tokenizer": tokenizer or {"path": str(teacher_folder / "tokenizer")},
            "data": {**recipe_fields["data"], **text, **(data or {})},
            "training": {
                **recipe_fields["training"],
                "max_steps": 6,
                "warmup_steps": 0,
                "logging_steps": 1,
                **training,
            },
        }

    return make


@pytest.fixture
def trained(quick, tmp_path):
    """Train by `quick` with these changes; the folder of the run."""

    def run(name="run", resume=False, on_step=None, **changes):
        recipe = TrainRecipe.model_validate(quick(**changes))
        train(recipe, tmp_path / name, resume=resume, on_step=on_step)
        return tmp_path / name

    return run
