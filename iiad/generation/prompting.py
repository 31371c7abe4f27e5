"""Prompts of both kinds of models: causal ones go on from them, encoder-decoders read them as sources.

Legend: B prompts of a batch, S tokens of its longest prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.errors import InputError

from .guards import encode

__all__ = ["Prompting", "prompting", "read_prompt", "read_prompts"]


class Prompting(ABC):
    """Turn prompts into the tokens that one kind of model takes, and find the text among those that it makes."""

    pads_left: bool
    takes_special_tokens: bool  # those that the tokenizer puts around a text by itself

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        config = model.generation_config
        padding = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_token_id = next(token for token in padding if token is not None)

    @abstractmethod
    def arrange(self, ids: list[int]) -> list[int]:
        """Return the prompt's tokens, at least one, of those of its text alone."""

    @abstractmethod
    def fit(self, num_tokens: int, max_new_tokens: int, limit: int) -> None:
        """Raise InputError where prompt and new tokens take more positions than `limit`."""

    @abstractmethod
    def num_given(self, num_tokens: int) -> int:
        """Return how many tokens of a row that generate() makes are not new; num_tokens: S."""

    @abstractmethod
    def beginning(self, prompt: Sequence[int]) -> list[int]:
        """Return the tokens of a text that come before the new ones."""

    def encode(self, text: str, max_new_tokens: int) -> list[int]:
        """Return a prompt's tokens. Raises InputError for one that the model cannot read, or has no room for."""
        ids = self.arrange(encode(self.tokenizer, text, add_special_tokens=self.takes_special_tokens))
        self.require_room(ids, max_new_tokens)
        return ids

    def require_room(self, ids: Sequence[int], max_new_tokens: int) -> None:
        """Raise InputError for tokens outside the vocabulary, or more than the model has positions for."""
        vocab_size = self.model.get_input_embeddings().weight.shape[0]
        if max(ids) >= vocab_size:
            expected = f"tokens below the model's vocabulary of {vocab_size}"
            raise InputError(f"prompt: expected {expected}, got {max(ids)} from the tokenizer")
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None:
            self.fit(len(ids), max_new_tokens, limit)

    def batch(self, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask (B, S), on the model's device."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(longest - len(prompt), None) if self.pads_left else slice(len(prompt))
            ids[row, place], mask[row, place] = torch.tensor(prompt), 1
        device = self.model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


class _Continuing(Prompting):
    """A causal model: the text is the prompt and what follows."""

    pads_left = takes_special_tokens = True

    def arrange(self, ids: list[int]) -> list[int]:
        start = self.tokenizer.bos_token_id  # before a document's first token
        return ids or [self.tokenizer.eos_token_id if start is None else start]

    def fit(self, num_tokens: int, max_new_tokens: int, limit: int) -> None:
        if num_tokens + max_new_tokens > limit:
            raise InputError(
                f"prompt: expected at most {limit} tokens with the new ones, the model's positions, got {num_tokens} "
                f"and {max_new_tokens} new"
            )

    def num_given(self, num_tokens: int) -> int:
        return num_tokens

    def beginning(self, prompt: Sequence[int]) -> list[int]:
        return list(prompt)


class _Reading(Prompting):
    """An encoder-decoder: the prompt is a source, and the text is the target, which a start token precedes."""

    pads_left = takes_special_tokens = False

    def arrange(self, ids: list[int]) -> list[int]:
        return [*ids, self.tokenizer.eos_token_id]  # as in `iiad.data.pairs`

    def fit(self, num_tokens: int, max_new_tokens: int, limit: int) -> None:
        if num_tokens > limit:
            raise InputError(
                f"prompt: expected at most {limit} tokens, the model's positions, got {num_tokens}"
            )
        if 1 + max_new_tokens > limit:
            expected = f"at most {limit - 1}, the model's positions after the first"
            raise InputError(f"max_new_tokens: expected {expected}, got {max_new_tokens}")

    def num_given(self, num_tokens: int) -> int:
        return 1

    def beginning(self, prompt: Sequence[int]) -> list[int]:
        return []


def prompting(model: Any, tokenizer: Any) -> Prompting:
    """Return what the model's kind takes as a prompt."""
    return (_Reading if model.config.is_encoder_decoder else _Continuing)(model, tokenizer)


def read_prompt(prompt: str | None, prompt_file: str | Path | None) -> str:
    """Return the prompt from either place, empty from neither. Raises InputError: both, or no UTF-8 text."""
    if prompt_file is None:
        return prompt or ""
    if prompt is not None:
        raise InputError("prompt: expected a text or a file, got both")
    return _read_text(prompt_file)


def read_prompts(file: str | Path) -> list[str]:
    """Return the lines of a file, without their ends. Raises InputError for no lines, or no UTF-8 text."""
    text = _read_text(file)
    if not text:
        raise InputError(f"{file}: expected a prompt on each line, got none")
    return text.removesuffix("\n").split("\n")


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, got another byte at {error.start}") from None
