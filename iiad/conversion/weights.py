"""Give a model the tensors of a checkpoint, each checked, or of another model."""

from __future__ import annotations

import copy
from collections.abc import Container
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from iiad.checkpoints import require_finite
from iiad.errors import InputError

__all__ = ["assign_weights", "copy_sharing_tensors"]


def copy_sharing_tensors(model: Any, except_for: Container[int] = ()) -> Any:
    """Copy a model's modules and configuration, not its parameters and buffers: no memory is taken.

    A change to a tensor of one changes the other. except_for: ids of tensors that are copied.
    """
    tensors = chain(model.parameters(), model.buffers())
    # deepcopy takes tensors in its memo as copied already.
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if id(tensor) not in except_for})


def assign_weights(
    model: PreTrainedModel, weights: dict[str, Tensor], where: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Make these tensors a model's parameters, without a copy unless the dtype differs.

    model: may be on the meta device, where it takes no memory. dtype: default, that of the first tensor.
    Raises InputError, naming the tensor, unless names and shapes are the model's own and all is finite. The head
    of a tied model may be there or not; it must equal the embeddings.
    """
    expected, weights = model.state_dict(), dict(weights)
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
        head = weights.pop("lm_head.weight", None)
        embeddings = weights.get("model.embed_tokens.weight")
        if head is not None and embeddings is not None and not torch.equal(head, embeddings):
            raise InputError(
                f"{where}: lm_head.weight differs from the embeddings, to which config.json ties it"
            )
    for name in sorted(expected.keys() ^ weights.keys()):
        problem = "is missing" if name in expected else "is not part of the model that config.json describes"
        raise InputError(f"{where}: tensor {name} {problem}")
    for name, tensor in weights.items():
        found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
        if found != wanted:
            raise InputError(f"{where}: tensor {name}: expected shape {wanted}, got {found}")
    require_finite(weights, where)
    dtype = dtype or next(iter(weights.values())).dtype
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=False, assign=True)  # strict but for the tied head, checked above
    model.tie_weights()
