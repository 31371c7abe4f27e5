"""An exponential moving average of the weights, kept beside a training run and taken as its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel, TrainerCallback

from .processes import assign, gather, is_first_process

__all__ = ["AveragedWeights", "load_average"]

FILE = "average.safetensors"


class AveragedWeights(TrainerCallback):
    """After each step, average <- decay average + (1 - decay) weights, for each parameter from when it first learns.

    start: the checkpoint that the stage goes on from, if any. Parameters that do not learn are left out.
    """

    def __init__(self, decay: float, start: Path | None):
        self.update = get_ema_multi_avg_fn(decay)
        self.start = start
        self.average: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take the weights, or the checkpoint's average."""
        self.average = {name: value.detach().clone() for name, value in _learning(model).items()}
        if self.start is not None:
            stored = load_file(self.start / FILE)
            for name, value in self.average.items():
                assign(value, stored[name].to(value.device))

    @torch.no_grad()
    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Follow what has not learnt yet, and so has no state in the optimizer: a phase may begin by setting it."""
        for name, weight in _learning(model).items():
            if weight not in optimizer.state:
                self.average[name].copy_(weight)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """One step more."""
        weights = _learning(model)
        self.update(list(self.average.values()), [weights[name].detach() for name in self.average], None)

    @contextmanager
    def applied(self, model: PreTrainedModel) -> Iterator[None]:
        """The model with its average for weights, inside of the block."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)

    @torch.no_grad()
    def swap(self, model: PreTrainedModel) -> None:
        """Exchange the model's weights and the average."""
        for name, weight in _learning(model).items():
            kept = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(kept)

    def save(self, folder: Path) -> None:
        """Write the average beside a checkpoint's weights. Every process calls it."""
        gathered = gather(self.average)
        if is_first_process():
            save_file({name: value.contiguous() for name, value in gathered.items()}, folder / FILE)


def load_average(model: PreTrainedModel, checkpoint: Path) -> None:
    """Give the model the average that a checkpoint holds."""
    stored = load_file(checkpoint / FILE)
    for name, weight in _learning(model).items():
        assign(weight, stored[name].to(weight.device))


def _learning(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
