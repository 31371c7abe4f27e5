"""Models and text that many tests share: tiny, seeded, made here."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from iiad.models import IIETConfig, IIETForCausalLM, PCformerConfig, PCformerForCausalLM

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


def make_iiet(**fields: object) -> IIETForCausalLM:
    """A small IIET with stirred weights."""
    return stir(IIETForCausalLM(IIETConfig(**{**SHAPE, **fields})))


def make_pcformer(**fields: object) -> PCformerForCausalLM:
    """A small PCformer with stirred weights."""
    return stir(PCformerForCausalLM(PCformerConfig(**{**SHAPE, **fields})))


VARIANTS = {
    "history": lambda: make_iiet(num_iterations=[0, 2, 1], max_num_iterations=3),
    "history-full": lambda: make_iiet(num_iterations=3),
    "plain": lambda: make_iiet(num_iterations=[1, 0, 2], history=False),
    "relaxed": lambda: make_iiet(num_iterations=[1, 2, 0], history=False, relaxation=True),
    "untied": lambda: make_iiet(num_iterations=1, tie_word_embeddings=False),
    "pcformer-rk2": lambda: make_pcformer(),
    "pcformer-rk4-fixed": lambda: make_pcformer(predictor_order=4, coefficients="fixed"),
}


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request: pytest.FixtureRequest) -> IIETForCausalLM:
    """Each kind of iterated model in turn."""
    return VARIANTS[request.param]()


@pytest.fixture
def tokens() -> torch.Tensor:
    """(2, 17) token ids without padding or end-of-text."""
    return torch.randint(3, SHAPE["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(5))
