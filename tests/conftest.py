"""Models and text that many tests share: tiny, seeded, made here."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as the command line sets it

import pytest
import torch
from hypothesis import settings
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cli import main
from iiad.models import IIETConfig, IIETForCausalLM, PCformerConfig, PCformerForCausalLM
from iiad.models.operators import RMSNorm
from iiad.training import TrainRecipe, train

# Properties are checked, not speed: a busy machine would miss the deadline of an example now and then.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def stir(model: torch.nn.Module, seed: int = 0, scale: float = 0.15) -> torch.nn.Module:
    """Move every parameter away from its initial value, so that nothing is zero, one or linear by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.dtype)
            parameter.add_(scale * noise)
    return model.eval()


def make_model(kind: type[IIETForCausalLM], config: IIETConfig) -> Any:
    """A model with stirred weights, the same every time; the random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stir(kind(config))


def make_iiet(**fields: object) -> IIETForCausalLM:
    """A small IIET with stirred weights."""
    return make_model(IIETForCausalLM, IIETConfig(**{**SHAPE, **fields}))


def make_pcformer(**fields: object) -> PCformerForCausalLM:
    """A small PCformer with stirred weights."""
    return make_model(PCformerForCausalLM, PCformerConfig(**{**SHAPE, **fields}))


VARIANTS = {
    "history": lambda: make_iiet(num_iterations=[0, 2, 1], max_num_iterations=3),
    "history-full": lambda: make_iiet(num_iterations=3),
    "plain": lambda: make_iiet(num_iterations=[1, 0, 2], history=False),
    "relaxed": lambda: make_iiet(num_iterations=[1, 2, 0], history=False, relaxation=True),
    "shared": lambda: make_iiet(num_iterations=[0, 2, 1], cache_policy="shared"),
    "plain-shared": lambda: make_iiet(num_iterations=[1, 0, 2], history=False, cache_policy="shared"),
    "untied": lambda: make_iiet(num_iterations=1, tie_word_embeddings=False),
    "pcformer-rk2": lambda: make_pcformer(),
    "pcformer-shared": lambda: make_pcformer(cache_policy="shared"),
    "pcformer-rk4-fixed": lambda: make_pcformer(predictor_order=4, coefficients="fixed"),
}


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

    for norm in (LlamaRMSNorm, RMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


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
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests keep tokenized data."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def recipe_fields(text_file: Path, cache_dir: Path) -> dict[str, Any]:
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
            "validation": [str(text_file)],
            "block_size": 32,
            "cache_dir": str(cache_dir),
        },
        "training": {
            "max_steps": 24,
            "warmup_steps": 4,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 4,
            "save_steps": 4,
            "logging_steps": 2,
            "iterations_start": 0.5,
        },
    }


@pytest.fixture(scope="session")
def teacher_folder(recipe_fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: a tiny IIET teacher with its tokenizer."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(TrainRecipe.model_validate(recipe_fields), folder)
    return folder
