"""Models and text that many tests share: tiny, seeded, made here."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cli import main

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = main.ENVIRONMENT["HF_HUB_DISABLE_PROGRESS_BARS"]
os.environ["GOMP_SPINCOUNT"] = main.ENVIRONMENT["GOMP_SPINCOUNT"]

import pytest
import torch
from hypothesis import settings
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from iiad.checkpoints import identify_model, load_model
from iiad.models import IIETForCausalLM
from iiad.planning import Plan
from iiad.training import TrainRecipe, train
from tests.helpers import SHAPE, VARIANTS, Folders, PairFolders, write_folders, write_pair_folders

# Properties are checked, not speed: a busy machine would miss the deadline of an example now and then.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """Exempt what the imports made from garbage collection: every training stage collects, in 0.2 s otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_debugging_left() -> Iterator[None]:
    """`iiad --debug` is for the rest of its process, which here is that of all tests."""
    yield
    os.environ.pop("IIAD_DEBUG", None)


@pytest.fixture
def iiad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["iiad", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main.run()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request: pytest.FixtureRequest) -> IIETForCausalLM:
    """Each kind of iterated model in turn."""
    return VARIANTS[request.param]()


@pytest.fixture
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Llama's RMSNorm, and ours that follows it, compute in the type that it is given.

    By itself it drops to float32, where the last bit of a float64 input decides about a float32 rounding: then two
    orders of summation differ by 1e-7 now and then, and a float64 comparison shows nothing.
    """

    def forward(self: LlamaRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture
def tokens() -> torch.Tensor:
    """(2, 17) token ids without padding or end-of-text."""
    return torch.randint(3, SHAPE["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl of 120 made-up documents with some structure to learn."""
    rng = random.Random(0)
    nouns = "layer iteration teacher student plan budget kernel cache token block".split()
    verbs = "stops scores keeps drops learns repeats follows".split()
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    with path.open("w") as file:
        for number in range(120):
            sentences = [
                f"The {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)} {rng.randint(0, 9)} times."
                for _ in range(12)
            ]
            file.write(json.dumps({"id": number, "text": " ".join(sentences)}) + "\n")
    return path


@pytest.fixture(scope="session")
def little_text(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of the documents: enough for steps and scores whose loss nobody looks at."""
    path = tmp_path_factory.mktemp("little") / "documents.jsonl"
    path.write_text("".join(text_file.read_text().splitlines(keepends=True)[:6]))
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for tokenized data."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def recipe_fields(text_file: Path, little_text: Path, cache_dir: Path) -> dict[str, Any]:
    """A recipe that trains a tiny IIET on the text file in a few seconds."""
    return {
        "model": {
            "solver": "iiet",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "num_iterations": 2,
            "attention_dropout": 0.1,
        },
        "tokenizer": {"vocab_size": 300},
        "data": {
            "train": [str(text_file)],
            "validation": [str(little_text)],
            "block_size": 32,
            "cache_dir": str(cache_dir),
        },
        "training": {
            "max_steps": 24,
            "warmup_steps": 4,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 4,
            "logging_steps": 2,
            "iterations_start": 0.5,
        },
    }


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A teacher, a student, other models and a plan, saved."""
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> PairFolders:
    """Encoder-decoders, a plan and pairs, saved."""
    return write_pair_folders(tmp_path_factory.mktemp("pair_folders"))


@pytest.fixture(scope="session")
def teacher_folder(recipe_fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: a tiny IIET teacher with its tokenizer."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(TrainRecipe.model_validate(recipe_fields), folder)
    return folder


@pytest.fixture(scope="session")
def plan_file(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan by which the teacher's first layer keeps its iterations and its second loses them."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    Plan.explicit([2, 0], identify_model(load_model(teacher_folder), teacher_folder)).save(path)
    return path
