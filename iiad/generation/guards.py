"""Refuse what a folder's settings or weights make of generation: values that cannot be used, logits that overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import GenerationConfig

from iiad.errors import InputError, one_line, require_utf8, shorten
from iiad.memory import is_out_of_memory

__all__ = ["encode", "end_tokens", "finite_logits", "settings_explained"]


_HARMLESS = ("_", "transformers_version", "use_cache", "bos_token_id", "eos_token_id")
"""Beginnings of the names of settings that most folders have and no failure comes from, the last being checked."""


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Return a prompt's token ids. Raises InputError for text that UTF-8 cannot hold or the tokenizer fails on."""
    require_utf8("prompt", prompt)
    try:
        return tokenizer(prompt)["input_ids"]
    except Exception as error:  # the library's own, of no common kind
        raise InputError(f"prompt: cannot be encoded by the model's tokenizer: {one_line(error)}") from error


def end_tokens(model: Any) -> set[int]:
    """Return the tokens that end a text, as generate() takes them. Raises InputError for what is no token."""
    found = model.generation_config.eos_token_id
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and abs(token) < 1 << 31 for token in ends):
        raise InputError(f"generation_config: eos_token_id: expected token ids, got {shorten(found)}")
    return set(ends)


@contextmanager
def settings_explained(model: Any) -> Iterator[None]:
    """Turn a failure of generate() into an InputError that names the settings of the model's generation_config."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        usual = vars(GenerationConfig())
        asked = {
            name: value
            for name, value in vars(model.generation_config).items()
            if value not in (usual.get(name), None, False) and not name.startswith(_HARMLESS)
        }
        if not asked or is_out_of_memory(error):
            raise
        raise InputError(
            f"generation_config: expected settings that generate() can follow, got {shorten(asked)}: "
            f"{one_line(error)[:200]}"
        ) from error


@contextmanager
def finite_logits(*models: nn.Module) -> Iterator[None]:
    """Raise InputError where a model's logits have no largest finite one: its weights overflow, or are none."""

    def check(model: nn.Module, inputs: Any, output: Any) -> None:
        best = output.logits.max(
            -1
        ).values  # NaN where any is; a model may rule a token out by minus infinity
        if not best.isfinite().all():
            got = best[~best.isfinite()][0].item()
            raise InputError(f"model: expected finite logits, got {got}: its weights overflow")

    with ExitStack() as hooks:
        for model in models:
            hooks.callback(model.register_forward_hook(check).remove)
        yield
