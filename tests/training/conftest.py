"""Runs of a fraction of a second: a tiny model, six documents, the teacher's tokenizer."""

import json

import pytest

from iiad.training import TrainRecipe, train
from tests.training.forking import Commands

WORDS = ("stack", "push", "items", "last", "first", "layer", "stops")
ROWS = [
    {"source": " ".join(WORDS[i % 7] for i in range(n, n + 1 + n % 5)), "target": WORDS[n % 7] + " out"}
    for n in range(40)
]


class Words:
    """A tokenizer as far as a new model asks."""

    bos_token_id, eos_token_id, pad_token_id = None, 0, 1

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


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


@pytest.fixture(scope="session")
def pair_fields(tmp_path_factory):
    """Make the fields of a recipe of six steps; with changes of sections, and of training by name."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def make(model=None, data=None, **training):
        return {
            "model": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_encoder_layers": 2,
                "num_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 32,
                "num_encoder_iterations": [1, 2],
                "num_iterations": 2,
                **(model or {}),
            },
            "tokenizer": {"vocab_size": 280},
            "data": {
                "train": [str(path)],
                "validation": [str(path)],
                "max_batch_tokens": 200,
                "cache_dir": str(folder / "cache"),
                **(data or {}),
            },
            "training": {
                "max_steps": 6,
                "warmup_steps": 0,
                "learning_rate": 0.01,
                "logging_steps": 1,
                "iterations_start": 0.5,
                **training,
            },
        }

    return make
