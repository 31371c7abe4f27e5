"""Load models to run or compare: device, precision, identity, labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .artefacts import ModelIdentity
from .checkpoints import identify_model, is_hub_name, load_model, read_config, weight_files
from .errors import InputError, one_line
from .memory import memory_explained

__all__ = [
    "DTYPES",
    "choose_device",
    "choose_dtype",
    "label_models",
    "load_identified",
    "read_limits",
    "require_cache_policy",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(device: str | None) -> str:
    """The device asked for, or CUDA where there is one, else the CPU. Raises InputError for one not to be had."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    accepted = "accepted: cpu, or cuda where there is one"
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise InputError(f"device: found {device!r}; {accepted}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if "at start of device string" in str(error):
            raise InputError(f"device: found {device!r}; {accepted}") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"device: found {device!r}: {reason}; {accepted}") from None
    return device


def choose_dtype(dtype: str | None, device: str) -> str:
    """The precision asked for, or float32 on the CPU and bfloat16 elsewhere. Raises InputError for another."""
    if dtype is None:
        return "float32" if device.startswith("cpu") else "bfloat16"
    if dtype not in DTYPES:
        raise InputError(f"dtype: found {dtype!r}; accepted: {', '.join(DTYPES)}")
    return dtype


def read_limits(model: str | Path) -> tuple[int, int]:
    """max_position_embeddings and vocab_size of a model that is not loaded yet, each in tokens.

    Raises InputError: no such model, or a configuration that does not say.
    """
    if not is_hub_name(model):
        read_config(model)
        weight_files(model)
    try:
        config = AutoConfig.from_pretrained(str(model))
        return int(config.max_position_embeddings), int(config.vocab_size)
    except Exception as error:  # transformers raises many kinds; each is the user's folder or name
        raise InputError(f"{model}: its configuration cannot be used: {one_line(error)}") from error


def require_cache_policy(models: Sequence[str | Path], policy: str | None) -> None:
    """Raise InputError for a model whose weights were trained for another cache policy. None: any will do.

    A model without the field, a Llama, has a slot for each of its evaluations: "exact".
    """
    if policy is None:
        return
    if policy not in ("exact", "shared"):
        raise InputError(f"cache_policy: found {policy!r}; accepted: exact, shared")
    for model in models:
        read_limits(model)  # that there is such a model
        trained = getattr(AutoConfig.from_pretrained(str(model)), "cache_policy", "exact")
        if trained != policy:
            raise InputError(
                f"cache_policy: found {policy!r} for {model}, whose weights were trained for {trained!r}; accepted: "
                f"that, or a student distilled with student.cache_policy={policy}"
            )


def load_identified(model: str | Path, device: str, dtype: str, *, cast: bool) -> tuple[Any, ModelIdentity]:
    """A model on its device, and who it is.

    The identity is taken of the weights as they are stored, because the fingerprint that plans are bound to
    depends on their precision; its cache bytes are then those of `dtype`.

    cast: True puts the weights in dtype; False in float32, for autocast to work on. Raises InputError as
    `iiad.checkpoints.load_model` does, and where memory runs out.
    """
    wanted = DTYPES[dtype] if cast else torch.float32
    remedies = ["fewer or smaller models", *(["bfloat16"] if cast and dtype != "bfloat16" else [])]
    with memory_explained(f"loading {model} on {device}", remedies=remedies):
        loaded = load_model(model, device="cpu")
        identity = identify_model(loaded, model)
        per_slot = identity.cache_bytes_per_slot // loaded.dtype.itemsize * DTYPES[dtype].itemsize
        for parameter in loaded.parameters():
            # Not loaded.to(wanted): that would round the frequencies of the rotary embedding, a buffer, as well.
            parameter.data = parameter.data.to(device=device, dtype=wanted)
        loaded.to(device)
    return loaded, identity.model_copy(update={"cache_bytes_per_slot": per_slot})


def label_models(models: Sequence[str | Path]) -> list[str]:
    """A short name for each: its folder's name, or all of what was given, or that numbered, to be unique.

    Raises InputError where there is no model.
    """
    if not models:
        raise InputError("models: found none; accepted: at least one folder or hub name")
    short = [Path(model).name or str(model) for model in models]
    names = [
        name if short.count(name) == 1 else str(model) for name, model in zip(short, models, strict=True)
    ]
    counts: dict[str, int] = {}
    labels = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        labels.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return labels
