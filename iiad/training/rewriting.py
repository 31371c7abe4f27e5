"""The texts that a stage learns from: those of its data, or others in their place."""

from __future__ import annotations

from .batches import Batch

__all__ = ["Rewriting"]


class Rewriting:
    """Each batch as it was drawn from the data."""

    def draw(self, seed: int, step: int) -> None:
        """Begin a step, counted from 0: decide what is rewritten in it by seed and step alone."""

    def rewrite(self, batch: Batch) -> Batch:
        """Return the batch to learn from, on the same device."""
        return batch

    def take_figures(self) -> dict[str, float]:
        """Return figures for the log, by name, since the last call."""
        return {}
