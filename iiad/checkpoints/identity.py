"""Identity of a loaded model: its hash, and the sizes that its cost follows from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from iiad.errors import InputError, one_line
from iiad.identities import ModelIdentity, ModelShape
from iiad.models import IIETConfig

__all__ = ["count_layers", "identify_model", "model_fingerprint"]

_PLAN_FIELDS = ("num_iterations", "num_encoder_iterations", "extrapolation", "plans", "tolerance")

# Fields that configurations once did not have: left out of fingerprints while they say what held then, so that a
# profile of that time still knows its model.
_LATER_FIELDS = {"attention_output_bias": None, "qk_norm": False, "cache_policy": "exact"}


def model_fingerprint(model: PreTrainedModel) -> str:
    """sha256 of a model's configuration and weights: what a profile or plan is bound to.

    The plan that the model happens to run is left out: a truncated teacher is still that teacher.
    """
    digest = hashlib.sha256()
    config = model.config.to_diff_dict()
    for name in (*_PLAN_FIELDS, "transformers_version", "auto_map", "architectures", "dtype", "use_cache"):
        config.pop(name, None)
    for name, absent in _LATER_FIELDS.items():
        if name in config and config[name] == absent:
            del config[name]
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identify_model(model: PreTrainedModel, name: str | Path) -> ModelIdentity:
    """Describe a loaded model: its weights, its plan, and the sizes that its cost follows from.

    Works for language models whose attention has keys and values; one without iterations (a Llama, say) has 0 in
    each layer, and one whose block is not gated like Llama's has no shape. Raises InputError for others.
    """
    config: Any = model.config
    iterated = isinstance(config, IIETConfig)
    try:
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        num_layers, num_encoder_layers = count_layers(config)
        coefficients, shape = config.stop_extrapolation if iterated else [], None
        if getattr(config, "intermediate_size", None) is not None:
            shape = ModelShape(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=num_heads,
                head_dim=head_dim,
                vocab_size=config.vocab_size,
                history=iterated and config.history,
                relaxation=iterated and config.relaxation,
            )
        return ModelIdentity(
            name=str(name),
            fingerprint=model_fingerprint(model),
            model_type=config.model_type,
            num_layers=num_layers,
            num_encoder_layers=num_encoder_layers,
            num_iterations=config.iterations if iterated else [0] * num_layers,
            num_start_evaluations=config.num_start_evaluations if iterated else 1,
            cache_bytes_per_slot=2 * num_heads * head_dim * model.dtype.itemsize,
            cache_policy=config.cache_policy if iterated else "exact",
            shape=shape,
            extrapolation=coefficients if any(coefficients) else None,
            tolerance=config.tolerances if iterated and config.is_adaptive else None,
        )
    except (AttributeError, TypeError, ValidationError) as error:
        got = f"a {config.model_type}: {one_line(error)}"
        raise InputError(
            f"{name}: expected a configuration with heads, layers and sizes, got {got}"
        ) from error


def count_layers(config: Any) -> tuple[int, int]:
    """Return the number of layers, and of those that are an encoder's; config: of a model of any kind."""
    if isinstance(config, IIETConfig):
        return len(config.iterations), getattr(config, "num_encoder_layers", 0)
    if not config.is_encoder_decoder:
        return config.num_hidden_layers, 0
    encoder = getattr(config, "encoder_layers", None) or config.num_hidden_layers
    return encoder + (getattr(config, "decoder_layers", None) or config.num_decoder_layers), encoder
