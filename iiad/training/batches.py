"""Data and random numbers of a step. Both follow from seed and step alone, so a resumed run has them without a state.

Legend: T tokens of a block, b blocks of a micro-batch, A micro-batches of a step, P processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from .sections import OptimizationSection

__all__ = [
    "Batch",
    "Blocks",
    "blocks_per_step",
    "derive_seed",
    "micro_batches",
    "seed_step",
    "steps_per_epoch",
    "tokens_per_step",
]

Batch = dict[str, Tensor]


class Blocks(Protocol):
    """Blocks of at most `block_size` tokens. num_asked: tokens that each asks for; None: all, of equal blocks."""

    block_size: int
    num_asked: Any

    def __len__(self) -> int: ...

    def num_batches(self, size: int) -> int:
        """Return the batches of an epoch; size: blocks of each, where the blocks leave that open."""

    def batch_tokens(self, size: int) -> float:
        """Return the tokens of a batch, in the mean."""

    def draw(self, seed: int, size: int, numbers: range) -> list[np.ndarray]:
        """Return the blocks of some batches of the epoch with this seed, by number."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return several blocks: what goes into the model, labels and, where some are not asked for, `asked`."""


def steps_per_epoch(blocks: Blocks, optimization: OptimizationSection) -> int:
    """Return the optimizer steps of an epoch, each of A P batches; what fills no step is left out."""
    return blocks.num_batches(optimization.per_device_train_batch_size) // _batches_per_step(optimization)


def _batches_per_step(optimization: OptimizationSection) -> int:
    return optimization.gradient_accumulation_steps * PartialState().num_processes


def tokens_per_step(blocks: Blocks, optimization: OptimizationSection) -> int:
    """Return the tokens that one optimizer step learns from, in the mean."""
    tokens = blocks.batch_tokens(optimization.per_device_train_batch_size)
    return round(tokens * _batches_per_step(optimization))


def blocks_per_step(optimization: OptimizationSection) -> int:
    """Blocks that one optimizer step learns from: b A P."""
    return optimization.blocks_per_process * PartialState().num_processes


def micro_batches(
    blocks: Blocks, step: int, optimization: OptimizationSection, seed: int, device: torch.device
) -> Iterator[tuple[Batch, float]]:
    """Yield this process's A micro-batches of a step, counted from 0, each with its weight.

    The weight is the micro-batch's share of what the step asks for, times A P: the mean over the micro-batches of
    weight * loss is the loss over all tokens that the step asks for. Of text it is 1. Every epoch is a new order of
    all blocks, less the few that fill no step. The batches of a step do not depend on how A and P divide them.
    """
    count, here, asked = _batches_per_step(optimization), PartialState(), blocks.num_asked
    epoch, place = divmod(step, steps_per_epoch(blocks, optimization))
    drawn = blocks.draw(
        derive_seed("order", seed, epoch),
        optimization.per_device_train_batch_size,
        range(place * count, (place + 1) * count),
    )
    mean = 1.0 if asked is None else sum(asked[rows].sum() for rows in drawn) / count
    for rows in drawn[here.process_index :: here.num_processes]:
        batch = blocks.batch(rows.tolist())
        weight = 1.0 if asked is None else float(asked[rows].sum() / mean)
        yield {name: value.to(device) for name, value in batch.items()}, weight


def seed_step(seed: int, step: int) -> None:
    """Set torch's random numbers (dropout) for a step; processes draw different ones."""
    torch.manual_seed(derive_seed("step", seed, step, PartialState().process_index))


def derive_seed(*parts: str | int) -> int:
    """Return a seed that follows from the parts."""
    return random.Random(repr(parts)).getrandbits(63)
