"""A teacher's head beside its final hidden states: together they are its whole distribution.

Legend: V vocabulary, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iiad.errors import InputError, one_line

__all__ = ["encode_head", "load_head"]

_NAME = "weight"
_DTYPES = ("F32", "BF16", "F16")


def encode_head(model: Any) -> bytes:
    """Return the head's weight (V, D), in its own type, as the content of a safetensors file."""
    weight = model.get_output_embeddings().weight.detach()
    return save({_NAME: weight.cpu().contiguous()})


def load_head(path: Path, vocab_size: int, width: int) -> Tensor:
    """Read a head, (V, D), in float32.

    Raises InputError for a file that cannot be read, that holds anything else, of another shape, or numbers that are
    not finite; all but the last before its numbers are read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if (names := sorted(file.keys())) != [_NAME]:
                raise InputError(f"{path}: expected {_NAME!r} alone, got {len(names)} tensors")
            found = file.get_slice(_NAME)
            if (shape := found.get_shape()) != [vocab_size, width]:
                raise InputError(f"{path}: {_NAME}: expected {[vocab_size, width]}, got {shape}")
            if (dtype := found.get_dtype()) not in _DTYPES:
                raise InputError(f"{path}: {_NAME}: expected one of {', '.join(_DTYPES)}, got {dtype}")
            weight = file.get_tensor(_NAME).to(torch.float32)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {one_line(error)}") from None
    if not weight.isfinite().all():
        raise InputError(f"{path}: {_NAME}: expected finite numbers, got NaN or infinity")
    return weight
