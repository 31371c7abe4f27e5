"""Counts of the block evaluations that tokens take where they stop by themselves.

Legend: B batch, T tokens, L layers of all stacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .layers import IterativeLayer
from .solvers import moving

__all__ = ["EvaluationCounts", "count_evaluations"]


class EvaluationCounts:
    """Evaluations that tokens took, padding among them.

    calls: for each layer, as in the plan, those of each of its calls, (B, T) int16 on the CPU.
    """

    def __init__(self, num_layers: int):
        self.calls: list[list[Tensor]] = [[] for _ in range(num_layers)]

    @property
    def by_layer(self) -> list[float]:
        """Mean over all tokens in each layer; 0 where it did not run."""
        return [
            sum(int(call.sum()) for call in calls) / max(1, sum(call.numel() for call in calls))
            for calls in self.calls
        ]

    @property
    def mean(self) -> float:
        """Mean evaluations of a token in all layers together."""
        return sum(self.by_layer)


@contextmanager
def count_evaluations(model: Any) -> Iterator[EvaluationCounts]:
    """While the block runs, count the evaluations of an iterated model's tokens, layer by layer."""
    layers = model.base_model.layers
    counts = EvaluationCounts(len(layers))
    with ExitStack() as patches:
        for layer in layers:
            patches.enter_context(patch.object(layer, "solve", _counted(layer, counts)))
        yield counts


def _counted(layer: IterativeLayer, counts: EvaluationCounts) -> Any:
    solve = layer.solve  # as it is before it is patched

    def run(*args: Any, num_stages: int | None = None, **kwargs: Any) -> tuple[Tensor, list[Tensor]]:
        output, iterates = solve(*args, num_stages=num_stages, **kwargs)
        start = num_stages or layer.config.num_start_evaluations
        found = torch.full(iterates[0].shape[:2], start, device=iterates[0].device)
        for i in range(1, len(iterates)):
            if iterates[i] is iterates[i - 1]:
                break  # none went on
            # One that is gathered alone went on.
            going = (
                None if found.numel() == 1 and layer.gathers else moving(iterates[:i], layer.config.tolerance)
            )
            found += 1 if going is None else going
        counts.calls[layer.place].append(found.to("cpu", torch.int16))
        return output, iterates

    return run
