"""The cache's two names: `past_key_values` and, from transformers 5.24 on, `cache`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

__all__ = ["CACHE", "accept_cache", "cache_argument"]

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name that transformers itself gives it, in outputs and in generate()."""


def accept_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a forward that takes `past_key_values` also take it as `cache`, with every transformers.

    Raises ValueError for both.
    """

    @wraps(forward)
    def accept(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Before 5.24 `cache` is also what continuous batching hands to attention functions: its own, no Cache.
        if "cache" in kwargs and (CACHE == "cache" or isinstance(kwargs["cache"], Cache)):
            if kwargs.get("past_key_values") is not None:
                raise ValueError("cache: expected this or past_key_values, got both")
            kwargs["past_key_values"] = kwargs.pop("cache")
        return forward(self, *args, **kwargs)

    return accept


def cache_argument(model: Any) -> str:
    """Name of the cache among the arguments of any model's forward. Empty: it takes no keys and values."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in (CACHE, "past_key_values") if name in parameters), "")
