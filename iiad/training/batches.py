"""Data and random numbers of a step. Both follow from seed and step alone, so a resumed run has them without a state.

Legend: T tokens of a block, b blocks of a micro-batch, A micro-batches of a step, P processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from accelerate import PartialState
from torch import Tensor

from .sections import OptimizationSection

__all__ = ["Batch", "Blocks", "blocks_per_step", "micro_batches", "seed_step"]

Batch = dict[str, Tensor]


class Blocks(Protocol):
    """Blocks of at most `block_size` tokens. num_asked: tokens that each asks for; None: all, of equal blocks."""

    block_size: int
    num_asked: Any

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return several blocks: input_ids and labels (b, T) and, where only some tokens are asked for, `asked`."""


def blocks_per_step(optimization: OptimizationSection) -> int:
    """Blocks that one optimizer step learns from: b A P."""
    return optimization.blocks_per_process * PartialState().num_processes


def micro_batches(
    blocks: Blocks, step: int, optimization: OptimizationSection, seed: int, device: torch.device
) -> Iterator[tuple[Batch, float]]:
    """Yield this process's A micro-batches of a step, counted from 0, each with its weight.

    The weight is the micro-batch's share of what the step asks for, times A P: the mean over the micro-batches of
    weight * loss is the loss over all tokens that the step asks for. Of text it is 1. Every epoch is a new order of
    all blocks, less the few that fill no step. The blocks of a step do not depend on how b, A and P divide them.
    """
    size, count = optimization.per_device_train_batch_size, blocks_per_step(optimization)
    epoch, place = divmod(step, len(blocks) // count)
    numbers = _order(len(blocks), _derive_seed("order", seed, epoch))[place * count : (place + 1) * count]
    here = PartialState()
    chunks, asked = numbers.split(size), blocks.num_asked
    mean = 1.0 if asked is None else asked[numbers.numpy()].sum() / len(chunks)
    for chunk in chunks[here.process_index :: here.num_processes]:
        batch = blocks.batch(chunk.tolist())
        weight = 1.0 if asked is None else float(asked[chunk.numpy()].sum() / mean)
        yield {name: value.to(device) for name, value in batch.items()}, weight


def seed_step(seed: int, step: int) -> None:
    """Set torch's random numbers (dropout) for a step; processes draw different ones."""
    torch.manual_seed(_derive_seed("step", seed, step, PartialState().process_index))


@lru_cache(maxsize=1)
def _order(num_blocks: int, seed: int) -> Tensor:
    return torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))


def _derive_seed(*parts: str | int) -> int:
    return random.Random(repr(parts)).getrandbits(63)
