"""Pairs of source and target as tokens, in the cache folder: what an encoder-decoder reads, and what it is to say."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from iiad.errors import InputError, require_least
from iiad.progress import print_status

__all__ = ["PairCorpus", "PairLimits", "hash_settings", "limit_pairs"]


class PairLimits(NamedTuple):
    """The longest pairs to use, in tokens, their ends counted.

    source, target: None for no limit. cut: sources that are longer are cut, not left out.
    Raises InputError by `require` for limits below 2.
    """

    source: int | None = None
    target: int | None = None
    cut: bool = False

    def require(self) -> None:
        """Raise InputError for a limit that leaves no token before the end."""
        require_least(2, max_source_tokens=self.source, max_target_tokens=self.target)


@dataclass(frozen=True, eq=False)
class PairCorpus:
    """Pairs of token ids, each side with its end-of-text token.

    tokens: ids of all pairs, those left out too, source and target in turn; memory-mapped read-only.
    starts, lengths: (num_documents, 2), where source and target of a pair begin in them, and how many are used.
    numbers: (num_documents,), of the pairs among all of the files, from 0.
    fingerprint: sha256 of all that decides a pair, the limits included.
    start_token_id: before the first token of a target. pad_token_id: fills batches.
    num_left_out: pairs above the limits; num_cut: sources that were cut.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    numbers: np.ndarray
    fingerprint: str
    names: tuple[str, ...] = field(repr=False)
    eos_token_id: int
    start_token_id: int
    pad_token_id: int
    num_left_out: int = 0
    num_cut: int = 0

    tokens_per_byte = None
    """Bits per byte mean nothing where only the targets are asked for."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sources and targets."""
        return int(self.lengths.sum())

    @property
    def num_documents(self) -> int:
        """Number of pairs."""
        return len(self.lengths)

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return source ids (S,) and target ids (T,) of a pair, each with the end-of-text token."""
        source, target = (
            self.tokens[start : start + length].astype(np.int64)
            for start, length in zip(self.starts[number], self.lengths[number], strict=True)
        )
        source[-1] = self.eos_token_id  # of one that was cut
        return source, target

    def rows_within(self, most: int | None) -> int:
        """Return how many pairs end within the first `most` tokens, at least 1; None: all."""
        if most is None:
            return self.num_documents
        return max(1, int(np.searchsorted(self.lengths.sum(1).cumsum(), most, "right")))

    def targets(self, most: int) -> np.ndarray:
        """Return the target ids of the pairs within the first `most` tokens, (n,) int64."""
        return np.concatenate([self.row(number)[1] for number in range(self.rows_within(most))])


def hash_settings(settings: dict[str, Any]) -> str:
    """Return the sha256, in hexadecimal, of all that decides a corpus."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def limit_pairs(corpus: PairCorpus, limits: PairLimits) -> PairCorpus:
    """Leave out or cut what is above the limits, and report how many. Raises InputError where nothing is left."""
    if limits == PairLimits():
        return corpus
    most = np.array([limit or np.iinfo(np.int64).max for limit in limits[:2]])
    long = corpus.lengths > most  # (num_documents, 2)
    cut = long[:, 0] if limits.cut else np.zeros(len(long), bool)
    left_out = long[:, 1] | (long[:, 0] & ~cut)
    if left_out.all():
        raise InputError(
            f"max_source_tokens, max_target_tokens: expected limits that at least one pair keeps, got "
            f"{limits.source} and {limits.target}; the shortest pair has "
            f"{' and '.join(map(str, corpus.lengths[corpus.lengths.sum(1).argmin()]))}"
        )
    kept = ~left_out
    num_cut = int((cut & kept).sum())
    lengths = np.minimum(corpus.lengths[kept], most)
    long_sources, long_targets = int((long[:, 0] & ~cut).sum()), int(long[:, 1].sum())
    of = corpus.names[0] + (f" and {len(corpus.names) - 1} more" if len(corpus.names) > 1 else "")
    counts = {"sources": (long_sources, limits.source), "targets": (long_targets, limits.target)}
    above = [f"{n:,} {side} above {limit} tokens" for side, (n, limit) in counts.items() if limit is not None]
    print_status(
        f"{of}: {len(lengths):,} of {len(long):,} pairs used; {int(left_out.sum()):,} left out: {', '.join(above)}; "
        f"{num_cut:,} sources cut"
    )
    return PairCorpus(
        **{
            **vars(corpus),
            "starts": corpus.starts[kept],
            "lengths": lengths,
            "numbers": corpus.numbers[kept],
            "fingerprint": hash_settings({"pairs": corpus.fingerprint, "limits": limits}),
            "num_left_out": int(left_out.sum()),
            "num_cut": num_cut,
        }
    )
