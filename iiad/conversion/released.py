"""Convert checkpoints of the method's released code to ours, and back; those of the Llama family to ours.

The released code is a fork of an old Llama: its config says "llama" and not a word of the iterations, so the tensor
names tell the kind; one without any history is a Llama indeed, which `iiad.conversion.upcycling` takes. Every
function here is ours; the names and equations were checked on the released code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from iiad.checkpoints import copy_companions, load_model, read_weights, save_checkpoint
from iiad.errors import InputError
from iiad.files import atomic_folder
from iiad.folders import read_config
from iiad.models import (
    IIETConfig,
    IIETForCausalLM,
    IIETSeq2SeqConfig,
    PCformerConfig,
    PCformerForCausalLM,
    PCformerSeq2SeqConfig,
)
from iiad.outputs import require_new_folder

from .gguf_files import upcycle_gguf
from .upcycling import SHARED_FIELDS, upcycle
from .weights import assign_weights, build_model

__all__ = ["convert", "from_released", "to_released"]

DEFAULT_ITERATIONS = 3  # of the paper's teachers; the released code fixes them, its config does not say

# Fields that an old Llama config and ours mean alike.
_SHARED_FIELDS = (*SHARED_FIELDS, "attention_bias", "mlp_bias", "rope_theta", "rope_scaling")

_MATRICES = {"model.history.weight": "update_weights", "model.history.weight_c": "output_weights"}
_NORMS = {"model.history.rouge_predictions_norm": "start_norm", "model.history.layer_norms": "update_norm"}


def from_released(weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Rename and reshape released tensors: the (L+1, L+1) history matrices become rows, one a layer.

    Raises InputError for matrices of another shape.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stem, _, rest = name.rpartition(".")
        if name in _MATRICES:
            size = num_layers + 1
            if tuple(tensor.shape) != (size, size):
                raise InputError(f"{name}: expected shape {(size, size)}, got {tuple(tensor.shape)}")
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
    """Rename and reshape our tensors. Entries that no equation uses get their initial values."""
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
    """Convert a checkpoint: released IIET or PCformer or a Llama-family model to ours, or ours to released.

    source: a folder, or a GGUF file of a Llama-family model.

    num_iterations: of a released IIET or an upcycled model; default: 3, or what the config of a released one says
    where we wrote it. Returns a line for people. Raises InputError; nothing is written then.
    """
    source, destination = Path(source), Path(destination)
    require_new_folder(destination)
    if source.is_file():
        return upcycle_gguf(
            source, destination, DEFAULT_ITERATIONS if num_iterations is None else num_iterations
        )
    config = read_config(source)
    if config.get("model_type") in (IIETSeq2SeqConfig.model_type, PCformerSeq2SeqConfig.model_type):
        raise InputError(
            f"{source}: nothing to convert: it is an encoder-decoder of ours already, and none has been released"
        )
    if config.get("model_type") in (IIETConfig.model_type, PCformerConfig.model_type):
        if num_iterations is not None:
            raise InputError(
                f"--iterations: expected none for a model of ours, whose plan is kept, got {num_iterations}"
            )
        return _write_released(source, destination)
    weights = read_weights(source)
    if not any(name in weights for name in _MATRICES):
        num_iterations = DEFAULT_ITERATIONS if num_iterations is None else num_iterations
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
        raise InputError(f"{source}: config.json: num_hidden_layers is missing")
    num_layers = fields["num_layers"] = config["num_hidden_layers"]
    fields.setdefault("tie_word_embeddings", "lm_head.weight" not in weights)
    for name, value in fields.items():
        if (name.startswith("num_") or name.endswith("_size")) and not isinstance(value, int):
            raise InputError(f"{source}: config.json: {name}: expected an integer, got {value!r}")
    order = sum(name.startswith("model.RK_norm.") and name.endswith(".weight") for name in weights)
    if order:
        if num_iterations not in (None, 1):
            raise InputError(f"--iterations: expected none for a released PCformer, got {num_iterations}")
        coefficients = "ema" if "model.alpha" in weights else "fixed"
        fields |= {"predictor_order": order, "coefficients": coefficients}
        model: IIETForCausalLM = build_model(PCformerForCausalLM, source, fields)
        kind = f"PCformer, order {order}"
    else:
        if num_iterations is None:
            num_iterations = config.get("num_iterations", DEFAULT_ITERATIONS)
        model = build_model(IIETForCausalLM, source, fields | {"num_iterations": num_iterations})
        kind = f"IIET, {num_iterations} iterations"
    assign_weights(model, from_released(weights, num_layers), source)
    save_checkpoint(model, destination, files_from=source)
    return f"{source} ({kind}, {num_layers} layers) -> {destination}"


def _write_released(source: Path, destination: Path) -> str:
    model = load_model(source)
    config = model.config
    fields = {name: getattr(config, name) for name in _SHARED_FIELDS if hasattr(config, name)}
    rope = fields.pop("rope_parameters", None) or {}
    # Properties that the released format has a form for.
    for name, expected, got in (
        ("history", True, config.history),
        ("cache_policy", "exact", config.cache_policy),
        ("num_iterations", "one number for all layers", config.iterations),
        ("RoPE type", "default", rope.get("rope_type", "default")),
    ):
        if got != expected and not (name == "num_iterations" and len(set(got)) == 1):
            raise InputError(
                f"{source}: {name}: expected {expected} for a form in the released code, got {got}"
            )
    fields |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.num_layers,
        "num_iterations": config.iterations[0],  # read by our way back; the released code fixes 3
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": None,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
    }
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    weights = to_released(weights, config.num_layers)
    with atomic_folder(destination) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        copy_companions(source, folder)
    return f"{source} ({config.model_type}, {config.num_layers} layers) -> {destination} (released format)"
