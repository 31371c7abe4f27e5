"""Exponential moving average of the weights: kept beside a training run and taken as its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel

from .processes import assign

__all__ = ["AVERAGE", "AveragedWeights"]

AVERAGE = "average.safetensors"
"""Its file in a checkpoint."""


class AveragedWeights:
    """average <- decay average + (1 - decay) weights after each step, for each parameter from its first step on.

    decay: None for no average; every method then does nothing. Parameters that are frozen are left out.
    checkpoint: to take it from; default: the weights as they are.
    """

    def __init__(self, model: PreTrainedModel, decay: float | None, checkpoint: Path | None = None):
        learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = learning if decay is not None else {}
        self.values = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.blend = get_ema_multi_avg_fn(decay) if decay is not None else None
        if checkpoint is not None:
            self.load(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Take the average that a checkpoint holds."""
        stored = load_file(checkpoint / AVERAGE) if self.values else {}
        for name, value in self.values.items():
            assign(value, stored[name])

    @torch.no_grad()
    def restart_unlearnt(self, optimizer: Optimizer) -> None:
        """Copy weights that have no optimizer state yet: a phase may begin by setting them."""
        for name, weight in self.weights.items():
            if weight not in optimizer.state:
                self.values[name].copy_(weight)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self.blend is not None:
            self.blend(
                list(self.values.values()), [weight.detach() for weight in self.weights.values()], None
            )

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
        for name, weight in self.weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.values[name])
            self.values[name].copy_(kept)
