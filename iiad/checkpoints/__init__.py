"""Model folders: found and read without torch (folders); loaded, identified and saved (loading)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .folders import read_config, require_model, weight_files

if TYPE_CHECKING:
    from .loading import (
        DTYPES,
        choose_device,
        choose_dtype,
        copy_companions,
        identify_model,
        label_models,
        load_identified,
        load_model,
        model_fingerprint,
        read_limits,
        read_weights,
        require_cache_policy,
        require_finite,
        save_checkpoint,
    )

__all__ = [
    "DTYPES",
    "choose_device",
    "choose_dtype",
    "copy_companions",
    "identify_model",
    "label_models",
    "load_identified",
    "load_model",
    "model_fingerprint",
    "read_config",
    "read_limits",
    "read_weights",
    "require_cache_policy",
    "require_finite",
    "require_model",
    "save_checkpoint",
    "weight_files",
]

__getattr__ = lazy_names(__name__, {"loading": __all__})
