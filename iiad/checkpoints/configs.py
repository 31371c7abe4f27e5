"""Configurations of model folders: load them, and name the field that makes one unusable."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
)

import iiad.models  # noqa: F401  registers them with the Auto classes
from iiad.errors import InputError, shorten
from iiad.files import read_json
from iiad.folders import explain_loading, find_folder, has_trust, read_config, weight_files

__all__ = [
    "auto_class",
    "build_empty",
    "load_config",
    "read_limits",
    "require_cache_policy",
    "require_fitting",
    "require_kind",
    "require_one_kind",
    "require_size",
]

KINDS = {"causal": "a causal language model", "pair": "an encoder-decoder"}

_SLACK = 1 << 24
"""Elements beyond the weights that a model may have, in buffers."""


def load_config(model: str | Path, **fields: Any) -> Any:
    """Load the configuration of a folder or hub name, defaults included, some fields replaced. Raises InputError."""
    folder, where = find_folder(model), f"{model}: config.json"
    written = read_config(folder)
    weight_files(folder)
    for name in written:
        if callable(getattr(PreTrainedConfig, name, None)):  # the value would take the method's place
            raise InputError(f"{where}: expected fields of a configuration, got {shorten(name)}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=has_trust(), **fields)
    except Exception as error:  # transformers raises many kinds; each is the user's folder or name
        raise _refusal(where, error, written, lambda others: AutoConfig.for_model(**others)) from error
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


def require_kind(model: str | Path, config: Any, kind: str | None) -> None:
    """Raise InputError for a configuration of another kind: "causal" or, an encoder-decoder, "pair". None: any."""
    found = "pair" if config.is_encoder_decoder else "causal"
    if kind not in (None, found):
        raise InputError(f"{model}: expected {KINDS[kind]}, got {KINDS[found]} ({config.model_type})")


def require_one_kind(models: Sequence[str | Path]) -> None:
    """Raise InputError for a model of another kind than the first."""
    configs = [load_config(model) for model in models]
    for model, config in zip(models, configs, strict=True):
        require_kind(model, config, "pair" if configs[0].is_encoder_decoder else "causal")


def auto_class(config: Any) -> Any:
    """Return the Auto class, with a language-modelling head, of a configuration's kind."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def require_fitting(model: str | Path, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless a model can be built of a folder's configurations, and is not far beyond its weights.

    config: the folder's. shapes: of the folder's tensors. Takes no memory.
    """
    folder = find_folder(model)
    settings = folder / "generation_config.json"
    if settings.exists():
        written = read_json(settings)
        for (
            name,
            value,
        ) in written.items():  # sizes by which generate() loops; limits of length are the caller's
            if isinstance(value, int) and value >= 1 << 24 and not name.startswith("max_"):
                raise InputError(f"{settings}: {name}: expected below {1 << 24}, got {shorten(value)}")
        try:
            GenerationConfig.from_pretrained(folder)
        except Exception as error:
            raise _refusal(f"{model}: {settings.name}", error, written, GenerationConfig.from_dict) from error
    try:
        built = build_empty(config)
    except Exception as error:
        written = read_config(folder)

        def again(others: dict[str, Any]) -> Any:
            return build_empty(AutoConfig.for_model(**others))

        raise _refusal(f"{model}: config.json", error, written, again) from error
    require_size(f"{model}: config.json", built, shapes)


def build_empty(config: Any) -> torch.nn.Module:
    """Return the model of a configuration, without memory for its tensors."""
    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=False)


def require_size(where: str, built: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for a model of far more parameters than tensors of these shapes hold."""
    described = sum(tensor.numel() for tensor in chain(built.parameters(), built.buffers()))
    held = sum(math.prod(shape) for shape in shapes.values())
    if described > 2 * held + _SLACK:
        raise InputError(f"{where}: expected a model of the {held} weights, got one of {described}")


def _refusal(
    where: str, error: Exception, written: Mapping[str, Any], build: Callable[[dict[str, Any]], Any]
) -> InputError:
    """Return the refusal of a file whose fields cannot be built, naming the field at fault where there is one.

    That is the first without which they can be, unless the error says what was expected.
    """
    line = explain_loading(error)
    if not re.search(r"expected\b.* got ", line):
        for name, value in written.items():
            others = {other: written[other] for other in written if other not in (name, "auto_map")}
            try:
                build(copy.deepcopy(others))
            except Exception:
                continue
            return InputError(
                f"{where}: {name}: expected a value that the model can take, got {shorten(value)}"
            )
    return InputError(f"{where}: cannot be used: {line}")
