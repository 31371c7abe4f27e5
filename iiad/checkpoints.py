"""Model folders: read with every check that a user would want, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from .artefacts import ModelIdentity, ModelShape
from .errors import InputError, one_line
from .files import atomic_folder

__all__ = [
    "identify_model",
    "is_hub_name",
    "load_model",
    "model_fingerprint",
    "read_config",
    "read_weights",
    "require_finite",
    "save_checkpoint",
    "weight_files",
]

_COMPANIONS = (
    "generation_config.json",
    *(
        "tokenizer*.json",
        "tokenizer.model*",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.*",
    ),
    *("vocab.json", "vocab.txt", "merges.txt"),
    *("README.md", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)

# Fields that configurations once did not have: left out of fingerprints while they say what held then, so that a
# profile of that time still knows its model.
_LATER_FIELDS = {"attention_output_bias": None, "qk_norm": False, "cache_policy": "exact"}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The fields of a model folder's config.json. Raises InputError where there is none that can be read."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: not a model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: must hold a JSON object, found a {type(config).__name__}")
    return config


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model folder, sorted: those that transformers reads, else all there are.

    Some folders hold the same weights a second time under other names (`consolidated.safetensors`).
    Raises InputError for none, for pickles alone, or for an index that names a file which is not there.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if folder / "model.safetensors" in files:
        return [folder / "model.safetensors"]
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: cannot be read as an index of weights: {one_line(error)}") from None
        for name in sorted(names):
            if folder / name not in files:
                raise InputError(f"{index}: names {name}, which is not there")
        return [folder / name for name in sorted(names)]
    if not files:
        pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickles:
            raise InputError(
                f"{folder}: its weights are a pickle ({pickles[0].name}), which can run code when loaded; "
                "accepted: safetensors"
            )
        raise InputError(f"{folder}: has no weights (*.safetensors)")
    return files


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of a model folder by name, on the CPU. Raises InputError for a file that cannot be read."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read as safetensors: {error}") from None
    return weights


def load_model(
    model: str | Path, *, dtype: torch.dtype | str = "auto", device: str = "cpu", num_iterations: Any = None
) -> Any:
    """A causal language model from a folder or the hub, in evaluation mode, with nothing missing or left over.

    num_iterations: run this plan instead of the checkpoint's own (iterated models only).
    Raises InputError: no such folder, no config or weights, a pickle, tensors that do not fit the config, NaN or
    infinity among the weights, a plan that the model cannot run.
    """
    if not is_hub_name(model):
        read_config(model)
        weight_files(model)
    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            str(model),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # transformers raises many kinds; each is the user's folder or name
        raise InputError(f"{model}: cannot be loaded: {one_line(error)}") from error
    if getattr(loaded.config, "quantization_config", None) is not None:
        raise InputError(
            f"{model}: its weights are quantized; accepted: whole ones, which bench and evaluate can --quantize"
        )
    _require_exact(model, info)
    require_finite(loaded.state_dict(), model)
    if num_iterations is not None:
        if not hasattr(loaded, "set_num_iterations"):
            raise InputError(f"{model}: a {loaded.config.model_type} has no iterations to plan")
        try:
            loaded.set_num_iterations(num_iterations)
        except ValueError as error:
            raise InputError(f"{model}: {one_line(error)}") from None
    try:
        return loaded.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {one_line(error)}") from None


def is_hub_name(model: str | Path) -> bool:
    """Whether this can only be the name of a model on the hub: owner/name, where no folder `owner` is here."""
    name = str(model)
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.exists()


def require_finite(weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise InputError, naming the first tensor that holds NaN or infinity."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{where}: tensor {name} holds NaN or infinity")


def _require_exact(model: str | Path, info: dict[str, Any]) -> None:
    for mismatch in sorted(info.get("mismatched_keys") or []):
        name, found, wanted = (
            (*mismatch, "?", "?")[:3] if isinstance(mismatch, tuple) else (mismatch, "?", "?")
        )
        raise InputError(
            f"{model}: tensor {name} has shape {tuple(found)}; config.json asks for {tuple(wanted)}"
        )
    for key, problem in (
        ("missing_keys", "is missing from the weights"),
        ("unexpected_keys", "is not part of the model that config.json describes"),
    ):
        for name in sorted(info.get(key) or []):
            raise InputError(f"{model}: tensor {name} {problem}")


def model_fingerprint(model: PreTrainedModel) -> str:
    """sha256 of a model's configuration and weights: what a profile or plan is bound to.

    The plan that the model happens to run is left out: a truncated teacher is still that teacher.
    """
    digest = hashlib.sha256()
    config = model.config.to_diff_dict()
    for name in ("num_iterations", "transformers_version", "auto_map", "architectures", "dtype", "use_cache"):
        config.pop(name, None)
    for name, absent in _LATER_FIELDS.items():
        if name in config and config[name] == absent:
            del config[name]
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    model: PreTrainedModel, folder: str | Path, *, tokenizer: Any = None, files_from: str | Path | None = None
) -> None:
    """Write a complete model folder (weights, config, code, tokenizer) in one step.

    tokenizer: saved along, or, without one, the tokenizer files of the folder `files_from` are copied. Its
    generation settings, README and licence are in any case.
    """
    with atomic_folder(folder) as stage:
        model.save_pretrained(stage)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        for pattern in _COMPANIONS if files_from is not None else ():
            for origin in Path(files_from or "").glob(pattern):
                # The model has written generation settings too, but only those that its configuration knows.
                if origin.is_file() and (
                    pattern == "generation_config.json" or not (stage / origin.name).exists()
                ):
                    shutil.copyfile(origin, stage / origin.name)


def identify_model(model: PreTrainedModel, name: str | Path) -> ModelIdentity:
    """Who a loaded model is, and what its cost follows from; works for any causal language model.

    A model without iterations (a Llama, say) is one with none in each layer.
    """
    config = model.config
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_layers = getattr(config, "num_layers", None) or config.num_hidden_layers
    return ModelIdentity(
        name=str(name),
        fingerprint=model_fingerprint(model),
        model_type=config.model_type,
        num_layers=num_layers,
        num_iterations=list(getattr(config, "num_iterations", [0] * num_layers)),
        num_start_evaluations=getattr(config, "num_start_evaluations", 1),
        cache_bytes_per_slot=2 * num_heads * head_dim * model.dtype.itemsize,
        cache_policy=getattr(config, "cache_policy", "exact"),
        shape=_shape(config, num_heads, head_dim),
    )


def _shape(config: Any, num_heads: int, head_dim: int) -> ModelShape | None:
    """Sizes of a gated-MLP block like Llama's; None for a configuration that does not name them."""
    if getattr(config, "intermediate_size", None) is None:
        return None
    return ModelShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=num_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        history=bool(getattr(config, "history", False)),
        relaxation=bool(getattr(config, "relaxation", False)),
    )
