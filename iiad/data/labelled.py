"""Labelled rows, which ask for some of their tokens, and those of generated tasks. Of files: labelled_files.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from iiad.errors import InputError

from .sources import TaskSource
from .tokenizers import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["CELL", "FORMAT", "NOT_ASKED", "LabelledCorpus", "LabelledRow", "arrange_rows", "generate_rows"]

NOT_ASKED = -100
"""Label of a token that is not asked for, as in transformers."""
FORMAT = 1
DEFAULT_ROWS = 4096
CELL = np.dtype([("token", "<u4"), ("label", "<i4"), ("group", "<u2")])

LabelledRow = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Ids, labels and groups, each (T,)."""


@dataclass(frozen=True, eq=False)
class LabelledCorpus:
    """Rows of tokens, each with labels: the token that is asked for after those before it, or `NOT_ASKED`.

    cells: (num_tokens,) records of token, label and group, row after row.
    starts: (num_documents + 1,), where the rows begin, and the end.
    fingerprint: sha256 of all that decides a row; of a generated task not of how many rows there are.
    grouped_by: what the groups count (length, operations, hops); None where there are none.
    """

    cells: np.ndarray
    starts: np.ndarray
    fingerprint: str
    names: tuple[str, ...] = field(repr=False)
    grouped_by: str | None = None

    tokens_per_byte = None
    """Bits per byte mean nothing where only some tokens are asked for."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.cells)

    @property
    def num_documents(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (num_documents,)."""
        return np.diff(self.starts)

    def row(self, number: int) -> np.ndarray:
        """Return the cells of a row; the label of its first token is never asked for."""
        return self.cells[self.starts[number] : self.starts[number + 1]]

    def rows_within(self, most: int | None) -> int:
        """Return how many rows end within the first `most` tokens, at least 1; None: all."""
        if most is None:
            return self.num_documents
        return max(1, int(np.searchsorted(self.starts, most, "right")) - 1)

    def targets(self, most: int) -> np.ndarray:
        """Return the tokens asked for among the first `most` tokens, (n,) int64."""
        labels = self.cells["label"][:most].astype(np.int64)
        return labels[labels >= 0]


def generate_rows(
    tasks: Sequence[TaskSource], tokenizer: PreTrainedTokenizerFast, num_rows: int | None = None
) -> LabelledCorpus:
    """Generate the rows of one or several tasks, in turn.

    num_rows: how many, where a task does not say; default 4,096. Raises InputError for a tokenizer that lacks a word
    of theirs, and for a split without questions.
    """
    vocabulary, words = tokenizer.get_vocab(), {word for source in tasks for word in source.task.words}
    if missing := sorted(words - set(vocabulary)):
        names = " ".join(source.name for source in tasks)
        raise InputError(f"tokenizer: expected one with the words of {names}, got none for {missing[0]!r}")
    given = [source.task.rows for source in tasks]
    num_rows = num_rows or DEFAULT_ROWS
    if None not in given:
        num_rows = sum(rows or 0 for rows in given)
    generators = [islice(source.task.generate(source.split), source.task.rows) for source in tasks]
    drawn = islice(_in_turn(generators), num_rows)
    rows = (
        (
            [vocabulary[word] for word in row.words],
            [NOT_ASKED if label is None else vocabulary[label] for label in row.labels],
            row.groups,
        )
        for row in drawn
    )
    of_all = [[source.name, source.split] for source in tasks] + [tokenizer_fingerprint(tokenizer), FORMAT]
    fingerprint = hashlib.sha256(json.dumps(of_all).encode()).hexdigest()
    units = sorted({source.task.grouped_by for source in tasks})
    all_names = tuple(source.name for source in tasks)
    return LabelledCorpus(
        *arrange_rows(rows, ", ".join(all_names)), fingerprint, all_names, " or ".join(units)
    )


def _in_turn(generators: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """Yield from each in turn; those that end are left out."""
    live = list(generators)
    while live:
        for generator in list(live):
            try:
                yield next(generator)
            except StopIteration:
                live.remove(generator)


def arrange_rows(rows: Iterable[LabelledRow], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return cells and starts. Raises InputError for no rows."""
    parts, lengths = [], [0]
    for ids, labels, groups in rows:
        cells = np.zeros(len(ids), CELL)
        cells["token"], cells["label"], cells["group"] = ids, labels, groups
        cells["label"][0] = NOT_ASKED  # nothing comes before it
        parts.append(cells)
        lengths.append(len(ids))
    if not parts:
        raise InputError(f"inputs: expected at least one row, got none in {where}")
    return np.concatenate(parts), np.cumsum(lengths)
