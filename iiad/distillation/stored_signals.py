"""Stored signals: opened, checked against their use, and read block by block.

Legend: T tokens of a block, k entries kept, n hidden states kept, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from iiad.data import AnyBlocks, EqualBatches, PairBlocks
from iiad.errors import InputError
from iiad.files import file_sha256
from iiad.identities import ModelIdentity

from .signal_encoding import decode_gaps, decode_ids, decode_states
from .signal_record import HEAD, JOURNAL, RECORD, SignalRecord, shard_name
from .stored_head import load_head, load_scales

__all__ = ["SignalBlocks", "StoredSignals"]


class StoredSignals:
    """Finished signals in a folder. Holds no open file: pickles, and may be read by several processes at once."""

    def __init__(self, folder: Path, record: SignalRecord):
        self.folder, self.record = folder, record

    @classmethod
    def open(cls, folder: str | Path) -> StoredSignals:
        """Open a folder that `iiad capture` finished; contents are not hashed here, see `verify`.

        Raises InputError: no such folder, an unfinished capture, a record that cannot be used, a shard that is
        missing or of another size, a head that is missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of signals")
        if not (folder / RECORD).exists() and (folder / JOURNAL).exists():
            raise InputError(f"{folder}: its capture is not finished; go on with iiad capture --resume")
        record = SignalRecord.load(folder / RECORD)
        indices = [shard.index for shard in record.shards]
        if len(indices) != record.num_shards or indices != list(range(len(indices))):
            raise InputError(
                f"{folder / RECORD}: shards: expected the {record.num_shards} of {record.num_blocks} blocks, "
                f"in order, got {len(record.shards)}"
            )
        stored = cls(folder, record)
        for index in range(record.num_shards):
            path = stored._path(index)
            num_bytes = len(record.blocks_of(index)) * record.layout.block_dtype.itemsize
            if not path.is_file():
                raise InputError(f"{path}: is missing")
            if path.stat().st_size != num_bytes:
                raise InputError(f"{path}: expected {num_bytes} bytes, got {path.stat().st_size}")
        if record.head is not None and not (folder / HEAD).is_file():
            raise InputError(f"{folder / HEAD}: is missing")
        return stored

    def verify(self) -> None:
        """Hash every file. Raises InputError, naming the first that is damaged, and for a head that is none."""
        hashes = {self._path(shard.index): shard.sha256 for shard in self.record.shards}
        if self.record.head is not None:
            hashes[self.folder / HEAD] = self.record.head
        for path, sha256 in hashes.items():
            if file_sha256(path) != sha256:
                raise InputError(f"{path}: is damaged: its sha256 is not the one in {RECORD}")
        if self.record.head is not None:
            self.read_head()
            _ = self.scales

    def read_head(self) -> Tensor:
        """Read the teacher's head, (V, D), float32, of signals without top_k. Raises InputError as `load_head`."""
        return load_head(self.folder / HEAD, self.record.layout.vocab_size, self.record.layout.hidden_size)

    @cached_property
    def scales(self) -> Tensor | None:
        """Scales of the final hidden state's channels, (D,), by which int8 was divided; None: it was not."""
        if self.record.head is None:
            return None
        return load_scales(self.folder / HEAD, self.record.layout.hidden_size)

    def require(
        self,
        *,
        teacher: ModelIdentity | None = None,
        tokenizer_fingerprint: str | None = None,
        corpus_fingerprint: str | None = None,
        block_size: int | None = None,
        temperature: float | None = None,
        hidden_layers: Sequence[int] = (),
    ) -> None:
        """Raise InputError, naming the first that does not fit what the signals were captured with.

        None: of no concern. teacher: the weights must be the same, and the plan that it ran. temperature: of top-k;
        final hidden states serve any. hidden_layers: all of these must be held, out of 0, ..., L.
        """
        record, shape = self.record, teacher and teacher.shape
        for name, found, held in (
            ("teacher", teacher and teacher.fingerprint[:12], record.teacher.fingerprint[:12]),
            ("teacher.num_iterations", teacher and teacher.num_iterations, record.teacher.num_iterations),
            ("teacher.extrapolation", teacher and teacher.coefficients, record.teacher.coefficients),
            ("teacher.tolerance", teacher and teacher.tolerance, record.teacher.tolerance),
            ("layout.vocab_size", shape and shape.vocab_size, record.layout.vocab_size),
            ("layout.hidden_size", shape and shape.hidden_size, record.layout.hidden_size),
            (
                "tokenizer",
                tokenizer_fingerprint and tokenizer_fingerprint[:12],
                record.tokenizer_fingerprint[:12],
            ),
            ("data", corpus_fingerprint and corpus_fingerprint[:12], record.data.fingerprint[:12]),
            ("block_size", block_size, record.layout.block_size),
            ("temperature", temperature if record.head is None else None, record.temperature),
        ):
            if found is not None and found != held:
                raise InputError(f"{self.folder}: {name}: expected {held}, as captured, got {found}")
        if missing := sorted(set(hidden_layers) - set(record.layout.hidden_layers)):
            held_layers = record.layout.hidden_layers or "none"
            raise InputError(f"{self.folder}: hidden_layers: expected some of {held_layers}, got {missing}")

    def read(self, index: int, hidden_layers: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The signals of block `index`, from 0.

        hidden_layers: which of those that are held to read; None: all. Returns `top_ids` (T, k) int64,
        `top_log_probs` (T, k) and `top_tail` (T,) float32, whose masses sum to 1, or without top_k `final_states`
        (T, D); and, where any are read, `hidden_states` (n, T, D). States are in bfloat16, or float32 from int8.
        Raises InputError for a file that went away, ids that are not in the vocabulary or twice at a token, and
        hidden states that are not finite.
        """
        layout = self.record.layout
        shard, row = divmod(index, layout.blocks_per_shard)
        try:
            # Opened anew each time, as thousands of shards could not all stay open.
            block = np.memmap(self._path(shard), layout.block_dtype, mode="r")[row]
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"{self._path(shard)}: cannot be read: {error}") from None
        signals = self._read_top(block, shard, index) if layout.top_k is not None else {}
        layers = list(layout.hidden_layers if hidden_layers is None else hidden_layers)
        read = [*layers, *([] if layout.top_k is not None else layout.hidden_layers[-1:])]
        if read and layout.compression is not None:
            which = [layout.hidden_layers.index(layer) for layer in read]
            states = decode_states(block, layout.compression, which)
            if self.scales is not None:
                for place, layer in enumerate(read):
                    if layer == layout.hidden_layers[-1]:
                        states[place] *= self.scales
            if not states.isfinite().all():
                self._refuse(shard, index, "finite hidden states")
            if layout.top_k is None:
                signals["final_states"] = states[-1]
            if layers:
                signals["hidden_states"] = states[: len(layers)]
        return signals

    def _read_top(self, block: Any, shard: int, index: int) -> dict[str, Tensor]:
        ids = np.sort(decoded := decode_ids(block))
        vocab_size = self.record.layout.vocab_size
        if ids.max() >= vocab_size or (ids[:, 1:] == ids[:, :-1]).any():
            self._refuse(shard, index, f"different token ids below {vocab_size}")
        log_probs, tail = decode_gaps(np.asarray(block["gaps"]))
        return {
            "top_ids": torch.from_numpy(decoded),
            "top_log_probs": torch.from_numpy(log_probs),
            "top_tail": torch.from_numpy(tail),
        }

    def _refuse(self, shard: int, block: int, expected: str) -> NoReturn:
        raise InputError(
            f"{self._path(shard)}: block {block}: expected {expected}, got others; capture it again"
        )

    def _path(self, shard: int) -> Path:
        return self.folder / shard_name(shard)


class SignalBlocks(EqualBatches, Dataset[dict[str, Tensor]]):
    """Blocks with the teacher's signals: as many as both the corpus and the signals hold.

    Item i is the block's and what `StoredSignals.read` returns.

    Raises InputError for signals of other text or of blocks of another length, and for hidden states not held.
    """

    def __init__(
        self,
        blocks: AnyBlocks,
        stored: StoredSignals,
        hidden_layers: Sequence[int] | None = None,
    ):
        """hidden_layers: which of those that are held to read; None: all."""
        stored.require(
            corpus_fingerprint=blocks.corpus.fingerprint,
            block_size=blocks.num_outputs,
            hidden_layers=hidden_layers or (),
        )
        if isinstance(blocks, PairBlocks) and stored.record.num_blocks < len(blocks):
            expected = f"signals of all {len(blocks)} pairs"
            raise InputError(f"{stored.folder}: expected {expected}, got {stored.record.num_blocks}")
        self.blocks, self.stored, self.hidden_layers = blocks, stored, hidden_layers
        self.block_size, self.num_asked = blocks.block_size, blocks.num_asked

    def __len__(self) -> int:
        return min(len(self.blocks), self.stored.record.num_blocks)

    @property
    def num_outputs(self) -> int:
        """Outputs of the longest block."""
        return self.blocks.num_outputs

    def num_batches(self, size: int) -> int:
        """As the blocks say, or of as many as have signals."""
        return self.blocks.num_batches(size) if self._are_all else super().num_batches(size)

    def batch_tokens(self, size: int) -> float:
        """As `num_batches`."""
        return self.blocks.batch_tokens(size) if self._are_all else super().batch_tokens(size)

    def draw(self, seed: int, size: int, numbers: range) -> list[np.ndarray]:
        """As `num_batches`."""
        if self._are_all:
            return self.blocks.draw(seed, size, numbers)
        return super().draw(seed, size, numbers)

    @property
    def _are_all(self) -> bool:
        return len(self) == len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        index %= len(self)
        return {**self.blocks[index], **self.stored.read(index, self.hidden_layers)}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return several blocks with their signals, each (b, T, ...), hidden states (b, n, T, D)."""
        found = self.blocks.batch(indices)
        T = found["labels"].shape[1]
        signals = default_collate([self.stored.read(index, self.hidden_layers) for index in indices])
        return found | {
            name: values[:, :, :T] if name == "hidden_states" else values[:, :T]
            for name, values in signals.items()
        }
