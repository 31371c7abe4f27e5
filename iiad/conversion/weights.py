"""Build a model and give it the tensors of a checkpoint, each checked, or share those of another model."""

from __future__ import annotations

import copy
from collections.abc import Container
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from iiad.checkpoints import require_finite
from iiad.errors import InputError, one_line
from iiad.models import IIETForCausalLM

__all__ = ["assign_weights", "build_model", "copy_sharing_tensors"]


def copy_sharing_tensors(model: Any, except_for: Container[int] = ()) -> Any:
    """Copy a model's modules and configuration, not its parameters and buffers: no memory is taken.

    A change to a tensor of one changes the other. except_for: ids of tensors that are copied.
    """
    tensors = chain(model.parameters(), model.buffers())
    # deepcopy takes tensors in its memo as copied already.
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if id(tensor) not in except_for})


def build_model(kind: type[IIETForCausalLM], source: str | Path, fields: dict[str, Any]) -> IIETForCausalLM:
    """Build a model of these configuration fields, read from the source's config.json, on the meta device.

    It takes no memory there: `assign_weights` puts tensors in place. Raises InputError for fields that do not fit.
    """
    try:
        with torch.device("meta"):
            return kind(kind.config_class(**fields))
    except (ValueError, TypeError, KeyError, AssertionError, StrictDataclassError) as error:
        raise InputError(f"{source}: config.json cannot be used: {one_line(error)}") from error


def assign_weights(
    model: PreTrainedModel, weights: dict[str, Tensor], where: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Make these tensors a model's parameters, without a copy unless the dtype differs.

    dtype: default, that of the first tensor.
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
