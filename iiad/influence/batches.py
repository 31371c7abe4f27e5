"""Batches that a profile is measured on: checked, on the model's device, with the positions that count in each layer.

Legend: B batch, T tokens, S source tokens, of an encoder-decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from iiad.errors import InputError
from iiad.models import IIETForCausalLM, IIETForConditionalGeneration

from .metrics import asked_positions

__all__ = ["IteratedModel", "counted_positions", "prepare_batch", "require_iterations"]

IteratedModel = IIETForCausalLM | IIETForConditionalGeneration
"""Models that can be profiled: PCformers are of these classes, too."""


def require_iterations(model: Any) -> None:
    """Raise InputError for a model of any kind without iterations."""
    if not isinstance(model, IteratedModel) or not any(model.config.iterations):
        raise InputError(
            "model: expected an iiet or pcformer with an iteration in at least one layer, "
            f"got type {model.config.model_type!r} and no iterations"
        )


def prepare_batch(
    model: IteratedModel, batch: Tensor | Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Return what the model is given and asked for, on its device.

    batch: as for `profile_batch`. Raises InputError for one that the model cannot read; where: its name in that.
    """
    given = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
    inputs = ("input_ids", "decoder_input_ids") if len(model.base_model.stacks) > 1 else ("input_ids",)
    kinds = ("input_ids", "decoder_input_ids")
    if [name for name in kinds if name in given] != list(inputs):
        found = ", ".join(name for name in kinds if name in given)
        raise InputError(f"{where}: expected {' and '.join(inputs)}, got {found or 'neither'}")
    if len(inputs) == 1:
        given.setdefault("labels", given["input_ids"])
    for name in (*inputs, "labels"):
        at = where if name == "input_ids" else f"{where}: {name}"
        if name not in given:
            raise InputError(f"{at}: expected token ids, got none")
        _require_token_ids(model, given[name].clamp(min=0) if name == "labels" else given[name], at)
    _require_shapes(given, inputs[-1], where)
    names = (*inputs, "attention_mask", "labels")
    return {name: given[name].to(model.device) for name in names if name in given}


def counted_positions(model: IteratedModel, batch: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Return the positions that a layer's own scores are means over, for each layer, (B, T) bool; None: all.

    Of the last stack's layers those that are asked for a token, of an encoder's those of the source.
    """
    counted = [batch.get("attention_mask"), asked_positions(batch)][-len(model.base_model.stacks) :]
    masks = [None if mask is None or bool(mask.all()) else mask.bool() for mask in counted]
    pairs = zip(masks, model.base_model.stacks, strict=True)
    return [mask for mask, stack in pairs for _ in stack.layers]


def _require_token_ids(model: IteratedModel, ids: Tensor, where: str) -> None:
    if ids.dim() != 2 or ids.numel() == 0 or ids.dtype not in (torch.int64, torch.int32):
        shape = f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise InputError(f"{where}: expected token ids, int64 or int32 of shape (B, T), got {shape}")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= model.config.vocab_size:
        found = lowest if lowest < 0 else highest
        raise InputError(f"{where}: expected token ids from 0 to {model.config.vocab_size - 1}, got {found}")


def _require_shapes(batch: Mapping[str, Tensor], last: str, where: str) -> None:
    """Raise InputError unless labels stand at the outputs and the mask leaves tokens of each of as many sources."""
    inputs, labels, mask = batch[last], batch["labels"], batch.get("attention_mask")
    if labels.shape != inputs.shape:
        raise InputError(
            f"{where}: labels: expected shape {tuple(inputs.shape)}, of {last}, got {tuple(labels.shape)}"
        )
    if len(inputs) != len(batch["input_ids"]):
        raise InputError(f"{where}: {last}: expected {len(batch['input_ids'])} sequences, got {len(inputs)}")
    if not bool((labels >= 0).any()):
        raise InputError(f"{where}: labels: expected at least one that is asked for, got none")
    if mask is None:
        return
    if mask.shape != batch["input_ids"].shape or not bool(mask.any(-1).all()):
        shape = tuple(batch["input_ids"].shape)
        raise InputError(
            f"{where}: attention_mask: expected shape {shape} and a token in each sequence, got {tuple(mask.shape)}"
        )
