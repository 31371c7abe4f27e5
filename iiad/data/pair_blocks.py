"""Batches of pairs, of like length, to train and evaluate encoder-decoders on.

S source tokens, T target tokens, b pairs of a batch, N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from iiad.errors import InputError, require_least

from .labelled import NOT_ASKED
from .pairs import PairCorpus

__all__ = ["PairBlocks"]

Batch = dict[str, Tensor]
GRAIN = 4
"""So many lengths count as alike, so that batches differ from epoch to epoch. 93 % of the tokens of batches of 8,192
are then no padding (92,470 pairs of at most 64 and 64 tokens; at random: 38 %), 83 % of 6,328 pairs of 256 and 64."""


class PairBlocks(Dataset[Batch]):
    """Pairs, one a block, in batches of like length, each padded on the right to its longest.

    Item i is unpadded, without its batch dimension. block_size: tokens of the longest pair, both sides.
    num_asked: (N,) tokens that each pair asks for: its target and the end.
    """

    def __init__(self, corpus: PairCorpus, most: int, max_batch_tokens: int | None = None) -> None:
        """most: tokens of a source, and of a target. max_batch_tokens: most b (S + T) of a training batch, padding
        included; None: batches of as many pairs as their user says.

        Raises InputError for longer pairs.
        """
        require_least(1, max_batch_tokens=max_batch_tokens)
        self.corpus, self.max_batch_tokens = corpus, max_batch_tokens
        self.num_asked = corpus.lengths[:, 1]
        both = corpus.lengths.sum(1)
        self.block_size = int(both.max())
        for side, name in enumerate(("source", "target")):
            longest = int(corpus.lengths[:, side].max())
            if longest > most:
                raise InputError(
                    f"max_{name}_tokens: expected a limit of at most {most}, the longest {name} that is taken, got a "
                    f"{name} of {longest} tokens"
                )
        if max_batch_tokens is not None and self.block_size > max_batch_tokens:
            raise InputError(
                f"max_batch_tokens: expected at least {self.block_size}, the tokens of the longest pair, got "
                f"{max_batch_tokens}"
            )

    def __len__(self) -> int:
        return self.corpus.num_documents

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return {name: value[0] for name, value in self.batch([index]).items() if name != "asked"}

    @property
    def num_outputs(self) -> int:
        """Outputs of the longest pair: tokens of its target."""
        return int(self.corpus.lengths[:, 1].max())

    def num_batches(self, size: int) -> int:
        """Return the batches of an epoch. size: pairs of each, without `max_batch_tokens`."""
        return len(_cut(self, size)) - 1

    def batch_tokens(self, size: int) -> float:
        """Return the tokens of a batch in the mean, without padding."""
        return self.corpus.num_tokens / self.num_batches(size)

    def draw(self, seed: int, size: int, numbers: range) -> list[np.ndarray]:
        """Return the pairs of some batches of the epoch with this seed, by number; every pair is in one batch.

        The batches' lengths are the same in every epoch; which pairs of like length meet, and in what order batches
        come, follows from the seed.
        """
        order, batches = _shuffle(self, seed, size)
        starts = _cut(self, size)
        return [
            order[starts[number] : starts[number + 1]] for number in batches[numbers.start : numbers.stop]
        ]

    def batch(self, indices: Sequence[int], length: int | None = None) -> Batch:
        """Return several pairs, as encoder-decoders of transformers take them, int64. length: T, not the longest.

        input_ids and attention_mask: (b, S). decoder_input_ids: (b, T), the targets behind the start token.
        labels: (b, T), aligned with the decoder's outputs. asked: (n,), positions, counted through all b T, with a
        label: found here, where no GPU has to wait for their number.
        """
        corpus = self.corpus
        rows = [corpus.row(index % len(self)) for index in indices]
        S, longest = (max(len(row[side]) for row in rows) for side in (0, 1))
        T = length or longest
        input_ids = torch.full((len(rows), S), corpus.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full((len(rows), T), NOT_ASKED)
        decoder_input_ids = torch.full((len(rows), T), corpus.pad_token_id)
        decoder_input_ids[:, 0] = corpus.start_token_id
        for number, (source, target) in enumerate(rows):
            input_ids[number, : len(source)] = torch.from_numpy(source)
            attention_mask[number, : len(source)] = 1
            labels[number, : len(target)] = torch.from_numpy(target)
            decoder_input_ids[number, 1 : len(target)] = torch.from_numpy(target[:-1])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "labels": labels,
            "asked": (labels.flatten() >= 0).nonzero()[:, 0],
        }

    def sample(self, max_tokens: int | None, seed: int) -> list[int]:
        """Draw as many pairs as max_tokens (None: all) of both sides pay for, at least one; the longest first."""
        order = np.random.default_rng(seed).permutation(len(self))
        if max_tokens is not None:
            ends = self.corpus.lengths[order].sum(1).cumsum()
            order = order[: max(1, int(np.searchsorted(ends, max_tokens, "right")))]
        found: list[int] = self.by_length(np.sort(order)).tolist()
        return found

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Return the tokens of a batch of these pairs in each stack of a model: S and T."""
        longest: list[int] = self.corpus.lengths[indices].max(0).tolist()
        return longest

    def by_length(self, rows: np.ndarray) -> np.ndarray:
        """Return these pairs (n,), the longest first, in a fixed order."""
        return rows[_sort(self.corpus.lengths[rows])[::-1]]


def _sort(lengths: np.ndarray) -> np.ndarray:
    """Return an order (N,) of pairs in which neighbours are alike: by target, then by source, up and down in turn."""
    sources, targets = -(-lengths // GRAIN).T
    return np.lexsort((np.where(targets % 2, sources, -sources), targets))


@lru_cache(maxsize=2)
def _cut(blocks: PairBlocks, size: int) -> np.ndarray:
    """Return where the batches of the sorted pairs begin, and the end; by rounded lengths, the same in any epoch."""
    lengths, most = blocks.corpus.lengths, blocks.max_batch_tokens
    if most is None:
        return np.append(np.arange(0, len(lengths), size), len(lengths))
    rounded = -(-lengths // GRAIN) * GRAIN
    starts, longest = [0], (0, 0)
    for number, (source, target) in enumerate(rounded[_sort(lengths)].tolist()):
        longest = max(longest[0], source), max(longest[1], target)
        if number > starts[-1] and (number + 1 - starts[-1]) * sum(longest) > most:
            starts.append(number)
            longest = source, target
    return np.array([*starts, len(lengths)])


@lru_cache(maxsize=2)
def _shuffle(blocks: PairBlocks, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs in the order of an epoch (N,), and the order of its batches."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(blocks))
    order = shuffled[_sort(blocks.corpus.lengths[shuffled])]
    return order, rng.permutation(blocks.num_batches(size))
