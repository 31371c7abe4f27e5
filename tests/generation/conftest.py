from __future__ import annotations

import pytest
import torch

from iiad.generation.text import load_generator


@pytest.fixture(scope="session")
def loaded(folders):
    """The teacher and its tokenizer."""
    return load_generator(folders.teacher, device="cpu")


@pytest.fixture(autouse=True)
def same_models_each_time() -> None:
    """A model's weights, and so which drafted tokens are accepted, follow from torch's random state."""
    torch.manual_seed(0)
