"""Models of folders and hub names: load, check, save; devices and precisions to load them in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from iiad.errors import InputError
from iiad.files import atomic_folder, read_json, write_text
from iiad.folders import explain_loading, find_folder, has_trust, weight_files, weight_shapes
from iiad.identities import ModelIdentity
from iiad.memory import is_out_of_memory, memory_explained
from iiad.models import IIETConfig

from .configs import auto_class, load_config, require_fitting, require_kind
from .identity import identify_model

__all__ = [
    "DTYPES",
    "choose_device",
    "choose_dtype",
    "copy_companions",
    "label_models",
    "load_identified",
    "load_model",
    "read_weights",
    "require_finite",
    "require_whole",
    "save_checkpoint",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_COMPANIONS = """
generation_config.json tokenizer*.json tokenizer.model* special_tokens_map.json added_tokens.json chat_template.*
vocab.json vocab.txt merges.txt README.md LICENSE* NOTICE* USE_POLICY*
""".split()


def choose_device(device: str | None) -> str:
    """Return the device, or CUDA where there is one, else the CPU. Raises InputError for one that is not there."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    expected = f"device: expected cpu, or cuda where there is one, got {device!r}"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(expected)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{expected}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    return device


def choose_dtype(dtype: str | None, device: str) -> str:
    """Return the precision, or float32 on the CPU and bfloat16 elsewhere. Raises InputError for another one."""
    if dtype is None:
        return "float32" if device.startswith("cpu") else "bfloat16"
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    return dtype


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a model folder by name, on the CPU. Raises InputError for a file that cannot be read."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            weights |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read as safetensors: {error}") from None
    return weights


def load_model(
    model: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "cpu",
    num_iterations: Any = None,
    kind: str | None = "causal",
) -> Any:
    """Load a language model from a folder or the hub, in evaluation mode, with nothing missing or left over.

    num_iterations: run this plan instead of the checkpoint's own (iterated models only). kind: "causal", "pair", an
    encoder-decoder, or None, either.
    Raises InputError: no such folder, no config or weights, a pickle, tensors that do not fit the config, NaN or
    infinity among the weights, a plan that the model cannot run, no such device, a model of another kind.
    """
    device = choose_device(device)
    config = _load_config_at(model, num_iterations)
    require_kind(model, config, kind)
    folder = find_folder(model)
    try:
        if not has_trust():
            require_fitting(model, config, weight_shapes(folder))
        loaded, info = auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=has_trust(),
        )
    except InputError:
        raise
    except Exception as error:  # transformers raises many kinds; each is the user's folder, name or plan
        raise InputError(f"{model}: cannot be loaded: {explain_loading(error)}") from error
    require_whole(model, info)
    require_finite(loaded.state_dict(), model)
    loaded.to(device).eval()
    _require_running(loaded, model)
    return loaded


def _load_config_at(model: str | Path, num_iterations: Any) -> Any:
    config = load_config(model)
    if num_iterations is None:
        return config
    fields = {"num_iterations": num_iterations}
    if isinstance(config, IIETConfig):
        try:
            fields = config.split_plan(num_iterations)
        except ValueError as error:
            raise InputError(f"{model}: {error}") from None
    return load_config(model, **fields)


def require_whole(model: str | Path, info: Mapping[str, Any]) -> None:
    """Raise InputError for tensors that transformers' loading info calls mismatched, missing or unexpected."""
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise InputError(f"{model}: tensor {name}: expected shape {tuple(wanted)}, got {tuple(found)}")
    for name in sorted(info["missing_keys"]):
        raise InputError(f"{model}: tensor {name} is missing from the weights")
    for name in sorted(info["unexpected_keys"]):
        raise InputError(f"{model}: tensor {name} is not part of the model that config.json describes")


@torch.no_grad()
def _require_running(loaded: Any, model: str | Path) -> None:
    """Raise InputError unless the model makes finite logits of two tokens, as what follows takes for granted."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=loaded.device)
    inputs = {"input_ids": tokens} | (
        {"decoder_input_ids": tokens} if loaded.config.is_encoder_decoder else {}
    )
    try:
        best = loaded(**inputs).logits.max(-1).values  # NaN where any logit is
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{model}: cannot be run: {explain_loading(error)}") from error
    if not best.isfinite().all():
        raise InputError(f"{model}: expected finite logits, got {best.min().item()}: its weights overflow")


def load_identified(
    model: str | Path,
    device: str,
    dtype: str,
    *,
    cast: bool,
    num_iterations: Any = None,
    kind: str | None = "causal",
) -> tuple[Any, ModelIdentity]:
    """Load a model on its device, and identify it.

    The identity is taken of the weights as they are stored, because the fingerprint that plans are bound to
    depends on their precision; its cache bytes are then those of `dtype`.

    cast: True puts the weights in dtype; False in float32, for autocast to work on. num_iterations, kind: as in
    `load_model`. Raises InputError as that does, and where memory runs out.
    """
    wanted = DTYPES[dtype] if cast else torch.float32
    remedies = ["fewer or smaller models", *(["bfloat16"] if cast and dtype != "bfloat16" else [])]
    with memory_explained(f"loading {model} on {device}", remedies=remedies):
        loaded = load_model(model, num_iterations=num_iterations, kind=kind)
        identity = identify_model(loaded, model)
        per_slot = identity.cache_bytes_per_slot // loaded.dtype.itemsize * DTYPES[dtype].itemsize
        for parameter in loaded.parameters():
            # Not loaded.to(wanted): that would round the frequencies of the rotary embedding, a buffer, as well.
            parameter.data = parameter.data.to(device=device, dtype=wanted)
        loaded.to(device)
    return loaded, identity.model_copy(update={"cache_bytes_per_slot": per_slot})


def require_finite(weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise InputError, naming the first tensor that holds NaN or infinity."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{where}: tensor {name} holds NaN or infinity")


def label_models(models: Sequence[str | Path]) -> list[str]:
    """Return a short unique label for each model: its folder's name, or all of what was given, or that numbered.

    Raises InputError where there is no model.
    """
    if not models:
        raise InputError("models: expected at least one folder or hub name, got none")
    short = [Path(model).name or str(model) for model in models]
    names = [
        name if short.count(name) == 1 else str(model) for name, model in zip(short, models, strict=True)
    ]
    seen = [names[:number].count(name) for number, name in enumerate(names)]
    return [f"{name} ({before + 1})" if before else name for name, before in zip(names, seen, strict=True)]


def save_checkpoint(
    model: PreTrainedModel, folder: str | Path, *, tokenizer: Any = None, files_from: str | Path | None = None
) -> None:
    """Write a complete model folder (weights, config, code, tokenizer) in one step.

    tokenizer: saved along. files_from: a folder whose `copy_companions` come along.
    """
    with atomic_folder(folder) as stage:
        model.save_pretrained(stage)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        if files_from is not None:
            copy_companions(Path(files_from), stage)


def copy_companions(source: Path, destination: Path) -> None:
    """Copy tokenizer, generation settings, README and licence of a model folder, where there are none yet."""
    for pattern in _COMPANIONS:
        for origin in source.glob(pattern):
            # A saved model has written generation settings too, but only those that its configuration knows.
            new = pattern == "generation_config.json" or not (destination / origin.name).exists()
            if origin.is_file() and new:
                shutil.copyfile(origin, destination / origin.name)
    settings = destination / "tokenizer_config.json"
    if settings.exists() and "auto_map" in (fields := read_json(settings)):
        del fields["auto_map"]  # else who trusts our code would run another's
        write_text(settings, json.dumps(fields, indent=2) + "\n")
