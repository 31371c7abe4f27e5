"""Inputs of a checked model: sequences or, for an encoder-decoder, sources and the sequences decoded from them.

Legend: B sequences, T tokens of one, S tokens of its source, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from iiad.generation.guards import start_token

if TYPE_CHECKING:
    from .claims import Subject

__all__ = ["Inputs", "choose_inputs"]


class Inputs:
    """A causal model's: the sequences themselves."""

    tokens, mask, positions = "input_ids", "attention_mask", "position_ids"
    """Arguments for what is decoded: its tokens, where it is padded, its positions."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def begin(self, tokens: Tensor) -> Tensor:
        """Let sequences (B, T) begin as the model decodes."""
        return tokens

    def arrange(self, tokens: Tensor, rows: slice, padded: bool = False) -> dict[str, Any]:
        """Return the arguments of one call: the tokens (B, T) of these rows of all sequences.

        padded: where the batch is, as `keep` has it; the rows are given without their padding.
        """
        return {self.tokens: tokens}

    def keep(self, num_rows: int, padded: bool) -> dict[str, Any]:
        """Return the arguments that are alike in all calls of decoding the first rows; padded: with padding."""
        return {}

    def prompt(self, prompts: Tensor, mask: Tensor) -> dict[str, Any]:
        """Return the arguments of generate() for prompts (B, P) and their mask."""
        return {"inputs": prompts, "attention_mask": mask}

    def cache(self, make: Callable[[], Cache]) -> Cache:
        """Return an empty cache of those that `make` returns."""
        return make()

    def count_labels(self, labels: Tensor) -> int:
        """Count labels (B, T) of which a loss is taken: those of tokens with a token before them."""
        return int((labels[:, 1:] != -100).sum())


class PairInputs(Inputs):
    """An encoder-decoder's: sources (B, S), drawn at random as well, with as many tokens as the sequences."""

    tokens, mask, positions = "decoder_input_ids", "decoder_attention_mask", "decoder_position_ids"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.start = start_token(subject.model)

    @cached_property
    def sources(self) -> Tensor:
        """(2 B, S), enough for training too."""
        return self.subject.draw_tokens(2 * len(self.subject.tokens), self.subject.settings.seed + 2)

    def begin(self, tokens: Tensor) -> Tensor:
        return torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, 1:]], 1)

    def arrange(self, tokens: Tensor, rows: slice, padded: bool = False) -> dict[str, Any]:
        sources = self.sources[rows]
        if padded and rows.start:  # a row alone
            sources = sources[:, : self._num_real]
        return {"input_ids": sources, self.tokens: tokens}

    def keep(self, num_rows: int, padded: bool) -> dict[str, Any]:
        sources, mask = self._batch(num_rows, padded)
        encoded = self.subject.model.get_encoder()(input_ids=sources, attention_mask=mask)
        return {"encoder_outputs": encoded, "attention_mask": mask}

    def prompt(self, prompts: Tensor, mask: Tensor) -> dict[str, Any]:
        sources, source_mask = self._batch(len(prompts), padded=not mask.all())
        own = {self.tokens: prompts, self.mask: mask, "decoder_start_token_id": self.start}
        return {"inputs": sources, "attention_mask": source_mask, **own}

    def cache(self, make: Callable[[], Cache]) -> Cache:
        return EncoderDecoderCache(make(), make())

    def count_labels(self, labels: Tensor) -> int:
        return int((labels != -100).sum())

    @property
    def _num_real(self) -> int:
        """Tokens of a padded source that are none of its padding, which is on the right as in training."""
        return self.sources.shape[1] - self.subject.settings.prompt_tokens // 2

    def _batch(self, num_rows: int, padded: bool) -> tuple[Tensor, Tensor]:
        sources = self.sources[:num_rows]
        mask = torch.ones_like(sources)
        if padded:
            mask[1:, self._num_real :] = 0
        return sources, mask


def choose_inputs(subject: Subject) -> Inputs:
    """Return what the subject's kind of model is given."""
    return (PairInputs if subject.model.config.is_encoder_decoder else Inputs)(subject)
