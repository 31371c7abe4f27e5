"""A teacher's head beside its final hidden states: together they are its whole distribution.

Legend: N tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iiad.errors import InputError, one_line

__all__ = ["choose_scales", "encode_head", "load_head", "load_scales"]

_HEAD, _SCALES = "weight", "channels"
_DTYPES = {_HEAD: ("F32", "BF16", "F16"), _SCALES: ("F32",)}


def choose_scales(states: Tensor) -> Tensor:
    """Final hidden states (N, D) -> a scale (D,) of each channel: its rms, to the nearest power of two (ours).

    Divided by it, no channel is an outlier that coarsens int8's steps for all others of a token. A power of two
    divides exactly, and comes out the same where the teacher's arithmetic differs in its last bits, so that another
    machine can go on with a capture.
    """
    rms = states.double().square().mean(0).sqrt()
    return torch.where(rms > 2.0**-60, rms.clamp(2.0**-60, 2.0**60).log2().round().exp2(), 1.0).float()


def encode_head(model: Any, scales: Tensor | None = None) -> bytes:
    """Return the head's weight (V, D), in its own type, and the channels' scales (D,), as a safetensors file."""
    tensors = {_HEAD: model.get_output_embeddings().weight.detach()}
    if scales is not None:
        tensors[_SCALES] = scales
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def load_head(path: Path, vocab_size: int, width: int) -> Tensor:
    """Read a head, (V, D), in float32.

    Raises InputError for a file that cannot be read, that holds anything else, of another shape, or numbers that are
    not finite; all but the last before its numbers are read.
    """
    weight = _load(path, _HEAD, [vocab_size, width])
    assert weight is not None
    return weight.to(torch.float32)


def load_scales(path: Path, width: int) -> Tensor | None:
    """Read the channels' scales beside a head, (D,) in float32; None where there are none.

    Raises InputError as `load_head`, and for scales that are not above 0.
    """
    scales = _load(path, _SCALES, [width])
    if scales is not None and not (scales > 0).all():
        raise InputError(f"{path}: {_SCALES}: expected numbers above 0, got {scales.min().item():g}")
    return scales


def _load(path: Path, name: str, shape: list[int]) -> Tensor | None:
    """Read one tensor of the file, or None where it may be missing and is."""
    try:
        with safe_open(path, framework="pt") as file:
            if (names := sorted(file.keys())) not in ([_HEAD], [_SCALES, _HEAD]):
                raise InputError(f"{path}: expected {_HEAD!r}, maybe {_SCALES!r}, got {len(names)} tensors")
            if name not in names:
                return None
            found = file.get_slice(name)
            if (got := found.get_shape()) != shape:
                raise InputError(f"{path}: {name}: expected {shape}, got {got}")
            if (dtype := found.get_dtype()) not in _DTYPES[name]:
                raise InputError(f"{path}: {name}: expected one of {', '.join(_DTYPES[name])}, got {dtype}")
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {one_line(error)}") from None
    if not tensor.isfinite().all():
        raise InputError(f"{path}: {name}: expected finite numbers, got NaN or infinity")
    return tensor
