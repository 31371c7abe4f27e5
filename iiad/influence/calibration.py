"""Which blocks of a corpus the influence is measured on.

Legend: B blocks of a batch, T tokens of a block.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from iiad.errors import InputError

__all__ = ["Blocks", "calibration_batches", "sample_blocks"]


class Blocks(Protocol):
    """A corpus cut into blocks: item i is a dict with `input_ids` (T,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Tensor]: ...


def sample_blocks(num_blocks: int, block_size: int, max_tokens: int | None, seed: int) -> list[int]:
    """Draw as many of num_blocks blocks as max_tokens (None: all) pays for, from the whole corpus, sorted.

    The same arguments give the same blocks. Raises InputError for fewer tokens than one block has.
    """
    if max_tokens is None:
        return list(range(num_blocks))
    if max_tokens < block_size:
        raise InputError(f"max_tokens: found {max_tokens}; accepted: at least one block of {block_size}")
    num_drawn = min(num_blocks, max_tokens // block_size)
    return sorted(random.Random(seed).sample(range(num_blocks), num_drawn))


def calibration_batches(blocks: Blocks, indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """The blocks of these indices as batches (B, T); the last may be smaller."""
    if batch_size < 1:
        raise InputError(f"batch_size: found {batch_size}; accepted: at least 1")
    for first in range(0, len(indices), batch_size):
        yield torch.stack([blocks[index]["input_ids"] for index in indices[first : first + batch_size]])
