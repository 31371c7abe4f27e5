"""Blocks of a token corpus to train on, and windows to evaluate on.

T tokens of a block, B windows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from iiad.errors import InputError, require_least

from .corpus import TokenCorpus

__all__ = ["TokenBlocks", "evaluation_windows"]


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """The corpus as blocks of `block_size` tokens that do not overlap; a tail shorter than that is dropped.

    Item i is `{"input_ids": (T,), "labels": (T,)}`, int64, the labels a copy of the ids: causal models of
    transformers shift them. Blocks run across documents, as the end-of-text tokens in them show.

    Raises InputError for a `block_size` below 2 or larger than the corpus.
    """

    def __init__(self, corpus: TokenCorpus, block_size: int) -> None:
        require_least(2, block_size=block_size)
        if corpus.num_tokens < block_size:
            raise InputError(
                f"block_size: expected at most the {corpus.num_tokens} tokens of the corpus, got {block_size}"
            )
        self.corpus = corpus
        self.block_size = block_size

    def __len__(self) -> int:
        return self.corpus.num_tokens // self.block_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = index % len(self) * self.block_size
        input_ids = _tensor(self.corpus.tokens[start : start + self.block_size])  # (T,)
        return {"input_ids": input_ids, "labels": input_ids.clone()}


def evaluation_windows(
    corpus: TokenCorpus, block_size: int, max_tokens: int | None = None, batch_size: int = 1
) -> Iterator[torch.Tensor]:
    """Cut the corpus into windows in which every token but the very first is predicted exactly once.

    Of a window w, `w[:, :-1]` is the input and `w[:, 1:]` the target, both (B, T) with T <= `block_size`.
    Neighbours share one token: the last target of one is the first input of the next.

    max_tokens: use only this many, from the start; their number less one is predicted.
    Returns (B, T + 1) int64 batches of at most `batch_size` windows, in the corpus's order; a last window that is
    shorter than the others is a batch of its own.
    Raises InputError, on the call, for an argument that is too small and a corpus of fewer than 2 tokens.
    """
    require_least(1, block_size=block_size, batch_size=batch_size)
    require_least(2, max_tokens=max_tokens, **{"corpus.num_tokens": corpus.num_tokens})
    return _windows(corpus.tokens[:max_tokens], block_size, batch_size)


def _windows(tokens: np.ndarray, block_size: int, batch_size: int) -> Iterator[torch.Tensor]:
    num_full, rest = divmod(len(tokens) - 1, block_size)
    for first in range(0, num_full, batch_size):
        start, stop = first * block_size, min(first + batch_size, num_full) * block_size + 1
        yield _tensor(tokens[start:stop]).unfold(0, block_size + 1, block_size).contiguous()  # (B, T + 1)
    if rest:
        yield _tensor(tokens[num_full * block_size :])[None]  # (1, rest + 1)


def _tensor(tokens: np.ndarray) -> torch.Tensor:
    """Copy as int64, which embeddings take."""
    return torch.from_numpy(tokens.astype(np.int64))
