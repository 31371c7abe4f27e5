"""Checkpoints of the method's released code to ours, and back; those of the Llama family to ours.

The released code is a fork of an old Llama: its config says "llama" and not a word of the iterations, so the kind
is told by the tensor names; one without any history is a Llama indeed, which `iiad.conversion.upcycling` takes.
Every function here is ours; the names and equations were checked on the released code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor

from iiad.checkpoints import (
    load_model,
    read_config,
    read_weights,
    save_checkpoint,
)
from iiad.errors import InputError, one_line
from iiad.files import atomic_folder, require_new_folder
from iiad.models import IIETConfig, IIETForCausalLM, PCformerConfig, PCformerForCausalLM

from .upcycling import upcycle
from .weights import assign_weights

__all__ = ["convert", "from_released", "to_released"]

RELEASED_ITERATIONS = 3  # what the released code fixes; its config does not say

# Fields that an old Llama config and ours mean alike.
_SHARED_FIELDS = """
vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim hidden_act
max_position_embeddings initializer_range rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id
tie_word_embeddings attention_bias attention_dropout mlp_bias rope_theta rope_scaling rope_parameters
""".split()

_COUNTS = """
vocab_size hidden_size intermediate_size num_layers num_attention_heads num_key_value_heads head_dim
max_position_embeddings
""".split()

_MATRICES = {"model.history.weight": "update_weights", "model.history.weight_c": "output_weights"}
_NORMS = {"model.history.rouge_predictions_norm": "start_norm", "model.history.layer_norms": "update_norm"}


def from_released(weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Released tensor names and shapes to ours: the (L+1, L+1) history matrices become rows, one a layer.

    Raises InputError for matrices of another shape than the number of layers asks for.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stem, _, rest = name.rpartition(".")
        if name in _MATRICES:
            size = num_layers + 1
            if tuple(tensor.shape) != (size, size):
                raise InputError(
                    f"{name} has shape {tuple(tensor.shape)}; {num_layers} layers need ({size}, {size})"
                )
            for t in range(1, size):  # row t is used at layer t; row 0 and the upper triangle never are
                ours[f"model.layers.{t - 1}.corrector.{_MATRICES[name]}"] = tensor[t, : t + 1].clone()
        elif stem.rpartition(".")[0] in _NORMS:
            norm, _, index = stem.rpartition(".")
            ours[f"model.layers.{index}.corrector.{_NORMS[norm]}.{rest}"] = tensor
        elif name.startswith("model.RK_norm."):
            ours[name.replace("model.RK_norm.", "model.predictor.norms.")] = tensor
        elif name == "model.alpha":
            ours["model.predictor.alpha"] = tensor
        else:
            ours[name] = tensor
    return ours


def to_released(weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Our tensor names to the released ones. Entries that no equation uses get their initial values."""
    released: dict[str, Tensor] = {}
    size = num_layers + 1
    initial = torch.tril(torch.ones(size, size)) / torch.arange(1, size + 1)[:, None]
    rows = {ours: name for name, ours in _MATRICES.items()}
    norms = {ours: name for name, ours in _NORMS.items()}
    for name, tensor in weights.items():
        parts = name.split(".")
        if "corrector" not in parts:
            name = name.replace("model.predictor.norms.", "model.RK_norm.")
            released[name.replace("model.predictor.alpha", "model.alpha")] = tensor
        elif parts[4] in rows:
            matrix = released.setdefault(rows[parts[4]], initial.to(tensor.dtype).clone())
            t = int(parts[2]) + 1
            matrix[t, : t + 1] = tensor
        else:
            released[f"{norms[parts[4]]}.{parts[2]}.{parts[5]}"] = tensor
    return released


def convert(source: str | Path, destination: str | Path, num_iterations: int | None = None) -> str:
    """Convert a checkpoint folder: released IIET or PCformer or a Llama-family model to ours, or ours to released.

    num_iterations: of a released IIET; default: the config's own field where we wrote it, else 3. Of an upcycled
    Llama, Mistral, Qwen2 or Qwen3; default: 3.
    Returns one line on what was converted. Raises InputError; nothing is written then.
    """
    source, destination = Path(source), Path(destination)
    require_new_folder(destination)
    config = read_config(source)
    if config.get("model_type") in (IIETConfig.model_type, PCformerConfig.model_type):
        return _write_released(source, destination)
    weights = read_weights(source)
    if not any(name in weights for name in _MATRICES):
        return upcycle(source, destination, weights, num_iterations)
    return _write_ours(source, destination, config, weights, num_iterations)


def _write_ours(
    source: Path,
    destination: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    num_iterations: int | None,
) -> str:
    fields = {name: config[name] for name in _SHARED_FIELDS if config.get(name) is not None}
    if "num_hidden_layers" not in config:
        raise InputError(f"{source}: config.json has no num_hidden_layers")
    fields["num_layers"] = config["num_hidden_layers"]
    fields.setdefault("tie_word_embeddings", "lm_head.weight" not in weights)
    for name, value in fields.items():
        if name in _COUNTS and (not isinstance(value, int) or value < 1):
            raise InputError(
                f"{source}: config.json: {name} must be an integer of at least 1, found {value!r}"
            )
    order = sum(name.startswith("model.RK_norm.") and name.endswith(".weight") for name in weights)
    model: IIETForCausalLM
    try:
        if order:
            if num_iterations not in (None, 1):
                raise InputError("--iterations is for IIET; a released PCformer corrects once a layer")
            fields |= {
                "predictor_order": order,
                "coefficients": "ema" if "model.alpha" in weights else "fixed",
            }
            model = PCformerForCausalLM(PCformerConfig(**fields))
        else:
            if num_iterations is None:
                num_iterations = config.get("num_iterations", RELEASED_ITERATIONS)
            model = IIETForCausalLM(IIETConfig(**fields, num_iterations=num_iterations))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise InputError(f"{source}: config.json cannot be used: {one_line(error)}") from error
    assign_weights(model, from_released(weights, fields["num_layers"]), source)
    save_checkpoint(model, destination, files_from=source)
    what = f"PCformer, order {order}" if order else f"IIET, {num_iterations} iterations"
    return f"{source} ({what}, {fields['num_layers']} layers) -> {destination}"


def _write_released(source: Path, destination: Path) -> str:
    model = load_model(source)
    config = model.config
    plan = set(config.iterations)
    if not config.history:
        raise InputError(f"{source}: a plain IIET (history false) has no form in the released code")
    if config.cache_policy != "exact":
        raise InputError(
            f"{source}: cache_policy {config.cache_policy!r}; the released code knows 'exact' alone"
        )
    if len(plan) > 1:
        raise InputError(
            f"{source}: plan {config.iterations}; the released format knows one number for all layers"
        )
    fields = {name: getattr(config, name) for name in _SHARED_FIELDS if hasattr(config, name)}
    rope = fields.pop("rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"{source}: RoPE type {rope['rope_type']!r} has no form in the released code")
    fields |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.num_layers,
        "num_iterations": plan.pop(),  # unknown to the released code, which fixes 3; read by our way back
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": None,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
    }
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    with atomic_folder(destination) as folder:
        save_file(
            to_released(weights, config.num_layers), folder / "model.safetensors", metadata={"format": "pt"}
        )
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
    return f"{source} ({config.model_type}, {config.num_layers} layers) -> {destination} (released format)"
