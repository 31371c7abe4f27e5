"""Models of folders and hub names: loaded, identified and saved. What finds and checks folders: iiad/folders.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

if TYPE_CHECKING:
    from .configs import (
        auto_class,
        build_empty,
        load_config,
        read_limits,
        require_cache_policy,
        require_kind,
        require_one_kind,
        require_size,
    )
    from .identity import count_layers, identify_model, model_fingerprint
    from .loading import (
        DTYPES,
        choose_device,
        choose_dtype,
        copy_companions,
        label_models,
        load_identified,
        load_model,
        read_weights,
        require_finite,
        require_whole,
        save_checkpoint,
    )

__all__ = [
    "DTYPES",
    "auto_class",
    "build_empty",
    "choose_device",
    "choose_dtype",
    "copy_companions",
    "count_layers",
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
    "require_kind",
    "require_one_kind",
    "require_size",
    "require_whole",
    "save_checkpoint",
]

_CONFIGS = """
auto_class build_empty load_config read_limits require_cache_policy require_kind require_one_kind
require_size
""".split()

_IDENTITY = "count_layers identify_model model_fingerprint".split()

__getattr__ = lazy_names(__name__, {"loading": __all__, "configs": _CONFIGS, "identity": _IDENTITY})
