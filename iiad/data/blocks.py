"""Blocks of a corpus to train on, and windows to evaluate on.

T tokens of a block, b blocks of a batch, B windows of a batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence, Sized
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from iiad.errors import InputError, require_least

from .corpus import TokenCorpus
from .labelled import NOT_ASKED, LabelledCorpus
from .pair_blocks import PairBlocks
from .pairs import PairCorpus

__all__ = [
    "AnyBlocks",
    "AnyCorpus",
    "EqualBatches",
    "RowBlocks",
    "TokenBlocks",
    "Window",
    "evaluation_windows",
    "make_blocks",
    "model_inputs",
    "next_labels",
    "output_labels",
    "sample_blocks",
    "stack_inputs",
]

Batch = dict[str, Tensor]
AnyCorpus = TokenCorpus | LabelledCorpus | PairCorpus


class EqualBatches(Sized):
    """Batches of one number of blocks, drawn anew in every epoch. block_size: most tokens of a block."""

    block_size: int

    @property
    def num_outputs(self) -> int:
        """Outputs of the longest block: its tokens."""
        return self.block_size

    def num_batches(self, size: int) -> int:
        """Return the batches of an epoch, of `size` blocks each; what fills none is left out."""
        return len(self) // size

    def batch_tokens(self, size: int) -> float:
        """Return the most tokens of a batch of `size` blocks."""
        return size * self.block_size

    def draw(self, seed: int, size: int, numbers: range) -> list[np.ndarray]:
        """Return the blocks of some batches of the epoch with this seed, by number: (size,) each."""
        order = _shuffle(len(self), seed)
        return [order[number * size : (number + 1) * size] for number in numbers]

    def sample(self, max_tokens: int | None, seed: int) -> list[int]:
        """Draw as many blocks as max_tokens (None: all) pays for, from all of them, sorted."""
        return sample_blocks(len(self), self.block_size, max_tokens, seed)

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Return the most tokens of a batch of these in each stack of a model: T."""
        return [self.block_size]


def sample_blocks(num_blocks: int, block_size: int, max_tokens: int | None, seed: int) -> list[int]:
    """Draw as many of num_blocks blocks as max_tokens (None: all) pays for, from the whole corpus, sorted.

    The same arguments give the same blocks. Raises InputError for fewer tokens than one block has.
    """
    if max_tokens is None:
        return list(range(num_blocks))
    if max_tokens < block_size:
        raise InputError(f"max_tokens: expected at least one block of {block_size}, got {max_tokens}")
    num_drawn = min(num_blocks, max_tokens // block_size)
    return sorted(random.Random(seed).sample(range(num_blocks), num_drawn))


@lru_cache(maxsize=1)
def _shuffle(num_blocks: int, seed: int) -> np.ndarray:
    return torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).numpy()


class TokenBlocks(EqualBatches, Dataset[Batch]):
    """The corpus as blocks of `block_size` tokens that do not overlap; a tail shorter than that is dropped.

    Item i is `{"input_ids": (T,), "labels": (T,)}`, int64, the labels a copy of the ids: causal models of
    transformers shift them. Blocks run across documents, as the end-of-text tokens in them show.

    Raises InputError for a `block_size` below 2 or larger than the corpus.
    """

    num_asked = None
    """Every token is asked for: all blocks weigh the same."""

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

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = index % len(self) * self.block_size
        input_ids = _tensor(self.corpus.tokens[start : start + self.block_size])  # (T,)
        return {"input_ids": input_ids, "labels": input_ids.clone()}

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return several blocks: input_ids and labels, each (b, T)."""
        found: Batch = default_collate([self[index] for index in indices])
        return found


class RowBlocks(EqualBatches, Dataset[Batch]):
    """Labelled rows, one a block, padded on the right to the longest of a batch.

    Padding is neither asked for nor seen: a causal model's output depends on what stands before it. So no row sees
    another, and no mask is needed. Item i is `{"input_ids": (T,), "labels": (T,)}`, int64, unpadded.

    block_size: tokens of the longest row. num_asked: (num_documents,) tokens that each row asks for.
    Raises InputError for a row longer than `most`.
    """

    def __init__(self, corpus: LabelledCorpus, most: int) -> None:
        self.corpus, lengths = corpus, corpus.lengths
        self.block_size = int(lengths.max())
        if self.block_size > most:
            row = int(lengths.argmax()) + 1
            raise InputError(
                f"block_size: expected at least the {self.block_size} tokens of row {row}, got {most}"
            )
        self.num_asked = np.add.reduceat(corpus.cells["label"] >= 0, corpus.starts[:-1], dtype=np.int64)

    def __len__(self) -> int:
        return self.corpus.num_documents

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {
            name: _tensor(values) for name, values in self._row(index % len(self)).items() if name != "groups"
        }

    def _row(self, index: int) -> dict[str, np.ndarray]:
        cells = self.corpus.row(index)
        return {"input_ids": cells["token"], "labels": cells["label"], "groups": cells["group"]}

    def padded(self, indices: Sequence[int], length: int | None = None) -> Batch:
        """Return input_ids, labels and groups of several rows, each (b, T); length: T, default: the longest row's."""
        rows = [self._row(index) for index in indices]
        T = length or max(len(row["labels"]) for row in rows)
        fill = {"input_ids": 0, "labels": NOT_ASKED, "groups": 0}
        found = {name: torch.full((len(rows), T), value) for name, value in fill.items()}
        for number, row in enumerate(rows):
            for name, values in row.items():
                found[name][number, : len(values)] = _tensor(values)
        return found

    def batch(self, indices: Sequence[int], length: int | None = None) -> Batch:
        """Return several rows: input_ids and labels (b, T), and `asked` (n,), the positions, counted through all b T,
        whose next token is asked for: found here, where no GPU has to wait for their number."""
        found = self.padded(indices, length)
        asked = (next_labels(found["labels"]).flatten() >= 0).nonzero()[:, 0]
        return {"input_ids": found["input_ids"], "labels": found["labels"], "asked": asked}


AnyBlocks = TokenBlocks | RowBlocks | PairBlocks


def make_blocks(corpus: AnyCorpus, block_size: int, max_batch_tokens: int | None = None) -> AnyBlocks:
    """Return text in blocks of `block_size` tokens, rows of at most so many, or pairs with at most so many on a side.

    max_batch_tokens: of pairs, as `PairBlocks` says. Raises InputError for one beside anything else.
    """
    if isinstance(corpus, PairCorpus):
        return PairBlocks(corpus, block_size, max_batch_tokens)
    if max_batch_tokens is not None:
        raise InputError("max_batch_tokens: expected pairs to make batches of, got text or labelled rows")
    if isinstance(corpus, LabelledCorpus):
        return RowBlocks(corpus, block_size)
    return TokenBlocks(corpus, block_size)


def model_inputs(batch: Mapping[str, Tensor]) -> Batch:
    """Return what of a batch goes into a model."""
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return {name: batch[name] for name in names if name in batch}


def stack_inputs(batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    """Return the token ids (B, T) of each stack of a model, and their mask (B, T), 0 at padding; None: no padding.

    A decoder's padding, on the right, is seen by nothing before it.
    """
    inputs = [(batch["input_ids"], batch.get("attention_mask"))]
    return [*inputs, (batch["decoder_input_ids"], None)] if "decoder_input_ids" in batch else inputs


def output_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the token that each output of a model is asked for, (B, T), negative for none.

    labels are those of transformers: a decoder's stand at its outputs, beside its inputs; without any, at the inputs.
    """
    return batch["labels"] if "decoder_input_ids" in batch else next_labels(batch["labels"])


def next_labels(labels: Tensor) -> Tensor:
    """Shift the labels to the tokens that predict them, (B, T): negative at the end, and where nothing is asked."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], NOT_ASKED)], dim=1)


class Window(NamedTuple):
    """A batch to evaluate: what goes into the model, and what is to come out, (B, T) int64.

    inputs: as `model_inputs`. targets: aligned with the outputs, negative where nothing is asked.
    groups: of each target its length, operations or hops; None for text and pairs.
    """

    inputs: Batch
    targets: Tensor
    groups: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor) -> Window:
        """Return the window that asks for every token (B, T + 1) but the first of each sequence."""
        return cls({"input_ids": tokens[:, :-1].contiguous()}, tokens[:, 1:].contiguous())


def evaluation_windows(
    corpus: AnyCorpus,
    block_size: int,
    max_tokens: int | None = None,
    batch_size: int = 1,
) -> Iterator[Window]:
    """Cut the corpus into windows in which every token but the very first is predicted exactly once.

    Neighbours share one token: the last target of one is the first input of the next. T <= `block_size`. Of labelled
    rows and pairs a window is a batch of whole ones.

    max_tokens: use only this many, from the start; their number less one is predicted. Of rows and pairs: those that
        end within them, at least one.
    Returns windows of a batch of at most `batch_size`, in the corpus's order, pairs by length; a last window that is
    shorter than the others is a batch of its own.
    Raises InputError, on the call, for an argument that is too small, a corpus of fewer than 2 tokens, and a row or
    pair that is too long.
    """
    require_least(1, block_size=block_size, batch_size=batch_size)
    require_least(2, max_tokens=max_tokens, **{"corpus.num_tokens": corpus.num_tokens})
    if isinstance(corpus, TokenCorpus):
        return _windows(corpus.tokens[:max_tokens], block_size, batch_size)
    num_rows = corpus.rows_within(max_tokens)
    if isinstance(corpus, PairCorpus):
        return _pair_windows(PairBlocks(corpus, block_size), num_rows, batch_size)
    return _row_windows(RowBlocks(corpus, block_size + 1), num_rows, batch_size)


def _windows(tokens: np.ndarray, block_size: int, batch_size: int) -> Iterator[Window]:
    num_full, rest = divmod(len(tokens) - 1, block_size)
    for first in range(0, num_full, batch_size):
        start, stop = first * block_size, min(first + batch_size, num_full) * block_size + 1
        found = _tensor(tokens[start:stop]).unfold(0, block_size + 1, block_size)  # (B, T + 1)
        yield Window.of(found)
    if rest:
        found = _tensor(tokens[num_full * block_size :])[None]  # (1, rest + 1)
        yield Window.of(found)


def _row_windows(blocks: RowBlocks, num_rows: int, batch_size: int) -> Iterator[Window]:
    for first in range(0, num_rows, batch_size):
        found = blocks.padded(range(first, min(first + batch_size, num_rows)))
        yield Window(
            {"input_ids": found["input_ids"][:, :-1]}, found["labels"][:, 1:], found["groups"][:, 1:]
        )


def _pair_windows(blocks: PairBlocks, num_rows: int, batch_size: int) -> Iterator[Window]:
    order = blocks.by_length(np.arange(num_rows))
    for first in range(0, num_rows, batch_size):
        batch = blocks.batch(order[first : first + batch_size].tolist())
        yield Window(model_inputs(batch), output_labels(batch))


def _tensor(values: np.ndarray) -> Tensor:
    """Copy as int64, which embeddings take."""
    return torch.from_numpy(values.astype(np.int64))
