"""Models of folders and hub names: load, check, identify, save; devices and precisions to load them in."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import iiad.models  # noqa: F401  registers them with the Auto classes
from iiad.artefacts import ModelIdentity, ModelShape
from iiad.errors import InputError, shorten
from iiad.files import atomic_folder, read_json, write_text
from iiad.folders import explain_loading, find_folder, has_trust, read_config, weight_files, weight_shapes
from iiad.memory import memory_explained

__all__ = [
    "DTYPES",
    "choose_device",
    "choose_dtype",
    "copy_companions",
    "identify_model",
    "label_models",
    "load_config",
    "load_identified",
    "load_model",
    "model_fingerprint",
    "read_limits",
    "read_weights",
    "require_cache_policy",
    "require_finite",
    "save_checkpoint",
]

_SLACK = 1 << 24
"""Elements beyond the weights that a model may have, in buffers."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_COMPANIONS = """
generation_config.json tokenizer*.json tokenizer.model* special_tokens_map.json added_tokens.json chat_template.*
vocab.json vocab.txt merges.txt README.md LICENSE* NOTICE* USE_POLICY*
""".split()

# Fields that configurations once did not have: left out of fingerprints while they say what held then, so that a
# profile of that time still knows its model.
_LATER_FIELDS = {"attention_output_bias": None, "qk_norm": False, "cache_policy": "exact"}


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


def load_config(model: str | Path, **fields: Any) -> Any:
    """Load the configuration of a folder or hub name, defaults included, some fields replaced. Raises InputError."""
    folder = find_folder(model)
    for name in read_config(folder):
        if callable(getattr(PreTrainedConfig, name, None)):  # the value would take the method's place
            raise InputError(f"{model}: config.json: expected fields of a configuration, got {shorten(name)}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=has_trust(), **fields)
    except Exception as error:  # transformers raises many kinds; each is the user's folder or name
        raise InputError(f"{model}: config.json cannot be used: {explain_loading(error)}") from error
    for name in fields:
        if not hasattr(config, name):
            raise InputError(f"{model}: expected a model with {name}, got a {config.model_type}")
    if not has_trust() and hasattr(config, "auto_map"):
        del config.auto_map  # else a model that is saved again would name it too
    return config


def read_limits(model: str | Path) -> tuple[int, int]:
    """Read max_position_embeddings and vocab_size, each in tokens, without loading the model.

    Raises InputError: no such model, or a configuration that does not say.
    """
    config = load_config(model)
    limits = {name: getattr(config, name, None) for name in ("max_position_embeddings", "vocab_size")}
    for name, limit in limits.items():
        if not isinstance(limit, int) or limit < 1:
            raise InputError(f"{model}: config.json: {name}: expected a number from 1, got {shorten(limit)}")
    return config.max_position_embeddings, config.vocab_size


def require_cache_policy(models: Sequence[str | Path], policy: str | None) -> None:
    """Raise InputError for a model whose weights were trained for another cache policy. None: any will do.

    A model without the field, a Llama, has a slot for each of its evaluations: "exact".
    """
    if policy not in (None, "exact", "shared"):
        raise InputError(f"cache_policy: expected exact or shared, got {policy!r}")
    for model in models if policy else ():
        trained = getattr(load_config(model), "cache_policy", "exact")
        if trained != policy:
            raise InputError(
                f"cache_policy: expected {trained!r}, for which the weights of {model} were trained, or a student "
                f"distilled with student.cache_policy={policy}, got {policy!r}"
            )


def load_model(
    model: str | Path, *, dtype: torch.dtype | str = "auto", device: str = "cpu", num_iterations: Any = None
) -> Any:
    """Load a causal language model from a folder or the hub, in evaluation mode, with nothing missing or left over.

    num_iterations: run this plan instead of the checkpoint's own (iterated models only).
    Raises InputError: no such folder, no config or weights, a pickle, tensors that do not fit the config, NaN or
    infinity among the weights, a plan that the model cannot run, no such device.
    """
    device = choose_device(device)
    config = load_config(model, **({} if num_iterations is None else {"num_iterations": num_iterations}))
    folder = find_folder(model)
    try:
        if not has_trust():
            _require_fitting(model, config, weight_shapes(folder))
        loaded, info = AutoModelForCausalLM.from_pretrained(
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
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise InputError(f"{model}: tensor {name}: expected shape {tuple(wanted)}, got {tuple(found)}")
    for name in sorted(info["missing_keys"]):
        raise InputError(f"{model}: tensor {name} is missing from the weights")
    for name in sorted(info["unexpected_keys"]):
        raise InputError(f"{model}: tensor {name} is not part of the model that config.json describes")
    require_finite(loaded.state_dict(), model)
    return loaded.to(device).eval()


def _require_fitting(model: str | Path, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for a configuration of far more parameters than the weights hold, before memory is taken."""
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = sum(tensor.numel() for tensor in chain(built.parameters(), built.buffers()))
    held = sum(math.prod(shape) for shape in shapes.values())
    if described > 2 * held + _SLACK:
        raise InputError(
            f"{model}: config.json: expected a model of the {held} weights, got one of {described}"
        )


def load_identified(
    model: str | Path, device: str, dtype: str, *, cast: bool, num_iterations: Any = None
) -> tuple[Any, ModelIdentity]:
    """Load a model on its device, and identify it.

    The identity is taken of the weights as they are stored, because the fingerprint that plans are bound to
    depends on their precision; its cache bytes are then those of `dtype`.

    cast: True puts the weights in dtype; False in float32, for autocast to work on. num_iterations: as in
    `load_model`. Raises InputError as that does, and where memory runs out.
    """
    wanted = DTYPES[dtype] if cast else torch.float32
    remedies = ["fewer or smaller models", *(["bfloat16"] if cast and dtype != "bfloat16" else [])]
    with memory_explained(f"loading {model} on {device}", remedies=remedies):
        loaded = load_model(model, num_iterations=num_iterations)
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


def identify_model(model: PreTrainedModel, name: str | Path) -> ModelIdentity:
    """Describe a loaded model: its weights, its plan, and the sizes that its cost follows from.

    Works for any causal language model; one without iterations (a Llama, say) has 0 in each layer, and one whose
    block is not gated like Llama's has no shape.
    """
    config: Any = model.config
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_layers = getattr(config, "num_layers", None) or config.num_hidden_layers
    shape = None
    if getattr(config, "intermediate_size", None) is not None:
        shape = ModelShape(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=num_heads,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
            history=bool(getattr(config, "history", False)),
            relaxation=bool(getattr(config, "relaxation", False)),
        )
    return ModelIdentity(
        name=str(name),
        fingerprint=model_fingerprint(model),
        model_type=config.model_type,
        num_layers=num_layers,
        num_iterations=list(getattr(config, "num_iterations", [0] * num_layers)),
        num_start_evaluations=getattr(config, "num_start_evaluations", 1),
        cache_bytes_per_slot=2 * num_heads * head_dim * model.dtype.itemsize,
        cache_policy=getattr(config, "cache_policy", "exact"),
        shape=shape,
    )


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
