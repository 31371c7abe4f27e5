"""Refuse what a folder's settings or weights make of generation: values that cannot be used, logits that overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import GenerationConfig

from iiad.data.tokenizers import tokenizing
from iiad.errors import InputError, one_line, require_utf8, shorten
from iiad.memory import is_out_of_memory

__all__ = ["encode", "end_tokens", "finite_logits", "settings_explained", "start_token"]


_HARMLESS = ("_", "transformers_version", "use_cache", "bos_token_id", "eos_token_id")
"""Beginnings of the names of settings that most folders have and no failure comes from; token ids are checked."""


def encode(tokenizer: Any, prompt: str, **options: Any) -> list[int]:
    """Return a prompt's token ids. Raises InputError for text that UTF-8 cannot hold or the tokenizer fails on."""
    require_utf8("prompt", prompt)
    with tokenizing("prompt: cannot be encoded by the model's tokenizer"):
        return tokenizer(prompt, **options)["input_ids"]


def end_tokens(model: Any) -> set[int]:
    """Return the tokens that end a text, as generate() takes them. Raises InputError for what is no token."""
    ids: dict[str, list[Any]] = {}
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(model.generation_config, name)
        ids[name] = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(token) is int and abs(token) < 1 << 31 for token in ids[name]):
            raise InputError(f"generation_config: {name}: expected token ids, got {shorten(found)}")
    return set(ids["eos_token_id"])


def start_token(model: Any) -> int:
    """Return the token that an encoder-decoder's targets begin with, as generate() takes it. Raises InputError."""
    own = model.generation_config
    given = getattr(model.config, "decoder_start_token_id", None)  # T5 has it only where it is given
    places = (own.decoder_start_token_id, given, own.bos_token_id)
    found = next((token for token in places if token is not None), None)
    if type(found) is not int or not 0 <= found < model.get_input_embeddings().weight.shape[0]:
        raise InputError(
            f"generation_config: decoder_start_token_id: expected a token of the vocabulary, got {shorten(found)}"
        )
    return found


@contextmanager
def settings_explained(model: Any) -> Iterator[None]:
    """Turn a failure of generate() into an InputError that names the settings of the model's generation_config."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        usual = vars(GenerationConfig())
        given = {name: value for name, value in vars(model.generation_config).items() if value is not None}
        asked = {
            name: value
            for name, value in given.items()
            if value is not False and value != usual.get(name) and not name.startswith(_HARMLESS)
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
        # NaN where any is; a model may rule a token out by minus infinity.
        best = output.logits.max(-1).values
        if not best.isfinite().all():
            got = best[~best.isfinite()][0].item()
            raise InputError(f"model: expected finite logits, got {got}: its weights overflow")

    with ExitStack() as hooks:
        for model in models:
            hooks.callback(model.register_forward_hook(check).remove)
        yield
