from __future__ import annotations

import pytest
import torch

from tests.helpers import Folders, write_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(autouse=True)
def same_models_each_time() -> None:
    """A model's weights, and so which drafted tokens are accepted, follow from torch's random state."""
    torch.manual_seed(0)
