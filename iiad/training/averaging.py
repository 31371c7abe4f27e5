"""Exponential moving average of the weights: kept beside a training run and taken as its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel

from .processes import assign

__all__ = ["AVERAGE", "AveragedWeights"]

AVERAGE = "average.safetensors"
"""Its file in a checkpoint."""


class AveragedWeights:
    """average <- decay average + (1 - decay) weights after each step, for each parameter from its first step on.

    checkpoint: to continue from. Parameters that are frozen are left out.
    """

    def __init__(self, model: PreTrainedModel, decay: float, checkpoint: Path | None = None):
        self.model, self.blend = model, get_ema_multi_avg_fn(decay)
        self.values = {name: weight.detach().clone() for name, weight in _learning(model).items()}
        if checkpoint is not None:
            stored = load_file(checkpoint / AVERAGE)
            for name, value in self.values.items():
                assign(value, stored[name])

    @torch.no_grad()
    def restart_unlearnt(self, optimizer: Optimizer) -> None:
        """Copy weights that have no optimizer state yet: a phase may begin by setting them."""
        for name, weight in _learning(self.model).items():
            if weight not in optimizer.state:
                self.values[name].copy_(weight)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        weights = _learning(self.model)
        self.blend(list(self.values.values()), [weights[name].detach() for name in self.values], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model its average for weights inside of the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        for name, weight in _learning(self.model).items():
            kept = weight.detach().clone()
            weight.copy_(self.values[name])
            self.values[name].copy_(kept)


def _learning(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
