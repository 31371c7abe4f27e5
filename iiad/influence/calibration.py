"""Calibration text of a profile: blocks drawn of data sets, as batches.

Legend: B blocks of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from iiad.checkpoints import load_config
from iiad.data import (
    AnyBlocks,
    PairCorpus,
    PairLimits,
    limit_pairs,
    load_tokenizer,
    make_blocks,
    pack_for,
    resolve_inputs,
)
from iiad.errors import InputError
from iiad.identities import DataIdentity

from .profile import ProfileSettings

__all__ = ["CalibrationSet", "as_data_sets", "batch_sizes", "draw_calibration", "numbered_batches"]


@dataclass(frozen=True)
class CalibrationSet:
    """Blocks drawn of one data set."""

    blocks: AnyBlocks
    indices: list[int]
    identity: DataIdentity
    """Its `num_tokens` counts the positions that are asked for, of text all."""


def as_data_sets(data: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """One list of names is one data set; several lists are several. Raises InputError for none."""
    names = [part for part in data if isinstance(part, str)]
    sets = [list(part) for part in data if not isinstance(part, str)]
    sets = [names, *sets] if names else sets
    if not sets or not all(sets):
        raise InputError("data: expected files, patterns, folders or stdlib, got none")
    return sets


def draw_calibration(
    model: str | Path,
    data: Sequence[str] | Sequence[Sequence[str]],
    settings: ProfileSettings,
    text_field: str = "text",
    cache_dir: str | Path | None = None,
    split: str = "train",
    limits: PairLimits | None = None,
) -> list[CalibrationSet]:
    """Tokenize each data set and draw its blocks.

    split: of `stdlib`, where no split is named. Raises InputError where text or tokenizer cannot be used.
    """
    tokenizer = load_tokenizer(model)
    options: dict[str, Any] = {"text_field": text_field, "cache_dir": cache_dir, "limits": limits}
    drawn = []
    for names in as_data_sets(data):
        sources = resolve_inputs(names, split)
        corpus = pack_for(load_config(model), sources, tokenizer, where=f"{model}: data", **options)
        if isinstance(corpus, PairCorpus) and corpus.lengths.max() > settings.block_size:
            corpus = limit_pairs(corpus, PairLimits(settings.block_size, settings.block_size))
        blocks = make_blocks(corpus, settings.block_size)
        indices = blocks.sample(settings.max_tokens, settings.seed)
        # The names as given: those of the embedded corpus run to hundreds, and the fingerprint covers their content.
        num_asked = None if blocks.num_asked is None else int(blocks.num_asked[indices].sum())
        num_tokens = len(indices) * blocks.block_size if num_asked is None else num_asked
        identity = DataIdentity(names=names, fingerprint=corpus.fingerprint, num_tokens=num_tokens)
        drawn.append(CalibrationSet(blocks, indices, identity))
    return drawn


def numbered_batches(
    sets: Sequence[CalibrationSet], batch_size: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield all blocks drawn as batches, the last of a set maybe smaller, each with the number of its set."""
    for number, part in enumerate(sets):
        for indices in _cut(part.indices, batch_size):
            yield number, part.blocks.batch(indices)


def batch_sizes(sets: Sequence[CalibrationSet], batch_size: int) -> list[tuple[int, list[int]]]:
    """Return B of each of `numbered_batches`, and its tokens in each stack."""
    return [
        (len(rows), part.blocks.lengths(rows)) for part in sets for rows in _cut(part.indices, batch_size)
    ]


def _cut(indices: list[int], batch_size: int) -> list[list[int]]:
    return [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
