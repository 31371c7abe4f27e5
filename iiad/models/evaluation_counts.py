"""Counts of the block evaluations that tokens take where they stop by themselves.

Legend: B batch, T tokens, L layers of all stacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["EvaluationCounts", "count_evaluations"]


class EvaluationCounts:
    """Evaluations that tokens took, padding among them.

    calls: for each layer, as in the plan, those of each of its calls, (B, T) int16 on the CPU.
    """

    def __init__(self, num_layers: int):
        self.calls: list[list[Tensor]] = [[] for _ in range(num_layers)]

    def add(self, layer: int, states: Tensor, evaluated: Sequence[Tensor | None]) -> None:
        """Count a call of a layer on states (B, T, D), given the tokens (B, T) of each evaluation; None: all."""
        found = torch.zeros(states.shape[:2], dtype=torch.int16, device=states.device)
        for tokens in evaluated:
            found += 1 if tokens is None else tokens
        self.calls[layer].append(found.cpu())

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
    """While the block runs, count the evaluations of an iterated model's tokens, layer by layer.

    A block inside of another counts for itself; the outer one goes on after it.
    """
    layers = model.base_model.layers
    counts = EvaluationCounts(len(layers))
    before = [layer.observe for layer in layers]
    try:
        for layer in layers:
            layer.observe = counts.add
        yield counts
    finally:
        for layer, observe in zip(layers, before, strict=True):
            layer.observe = observe
