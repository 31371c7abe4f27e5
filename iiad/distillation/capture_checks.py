"""Arguments of captures, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from iiad.checkpoints import DTYPES
from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.training.scoring import has_plain_head

from .signal_record import COMPRESSIONS

__all__ = ["require", "require_layers", "require_plain_head", "require_values"]


def require(name: str, found: Any, fits: bool, expected: str) -> None:
    """Raise InputError for an argument that does not fit."""
    if not fits:
        raise InputError(f"{name}: expected {expected}, got {found!r}")


def require_layers(hidden_layers: Sequence[int], teacher: ModelIdentity) -> None:
    """Raise InputError for a hidden state that the teacher does not have."""
    num_layers = teacher.num_decoder_layers
    expected = f"0 (the embeddings) to {num_layers} (after the final norm)"
    for layer in hidden_layers:
        require("hidden_layers", layer, 0 <= layer <= num_layers, expected)


def require_plain_head(teacher: Any) -> None:
    """Raise InputError for a teacher whose logits are more than the product of final hidden state and head."""
    expected = f"top-k of a {teacher.config.model_type}, whose logits are not its head's output alone"
    require("keep", "final-hidden", has_plain_head(teacher), expected)


def require_values(
    dtype: str,
    device: str,
    temperature: float,
    batch_size: int,
    blocks_per_shard: int | None,
    hidden_layers: Sequence[int],
    compression: str,
) -> None:
    """Raise InputError for what is wrong whatever the teacher is."""
    require("dtype", dtype, dtype in DTYPES, " or ".join(DTYPES))
    if dtype == "bfloat16" and device.startswith("cuda"):
        require("dtype", dtype, torch.cuda.is_bf16_supported(), "float32, as this GPU has no bfloat16")
    require("temperature", temperature, 0.01 <= temperature <= 100, "from 0.01 to 100")
    require("batch_size", batch_size, batch_size >= 1, "at least 1")
    require(
        "blocks_per_shard", blocks_per_shard, blocks_per_shard is None or blocks_per_shard >= 1, "at least 1"
    )
    require("compression", compression, compression in COMPRESSIONS, " or ".join(COMPRESSIONS))
    layers = list(hidden_layers)
    require("hidden_layers", layers, len(set(layers)) == len(layers), "each layer once")
