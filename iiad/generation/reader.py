"""A model that reads a sequence in pieces and can take the last of it back.

Legend: T tokens read so far, n tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from iiad.errors import InputError
from iiad.models import IIETForCausalLM

__all__ = ["Reader"]

# Of these, keys and values of a token do not depend on later ones, so that dropping them takes the token back.
_CAN_ROLL_BACK = {"full_attention", "sliding_attention", "chunked_attention"}


class Reader:
    """A causal language model, its cache, and how many tokens that holds. Batch 1.

    length: T, the tokens that the cache holds.
    """

    def __init__(self, model: Any):
        """model: any causal language model of transformers whose cache is keys and values alone.

        Raises InputError for one with states that cannot be taken back (Mamba, linear attention).
        """
        parameters = inspect.signature(model.forward).parameters
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if "past_key_values" not in parameters or not kinds <= _CAN_ROLL_BACK:
            found = ", ".join(sorted(kinds - _CAN_ROLL_BACK)) or "no keys and values"
            raise InputError(
                f"draft: a {model.config.model_type} cannot take tokens back: found {found} in its cache; "
                "accepted: models whose cache is keys and values of every layer"
            )
        self.model = model
        # Not sized by the configuration: a sliding window's own layers forget what a rollback needs again. The mask
        # keeps to the window all the same.
        self.cache = DynamicCache()
        self.length = 0
        self._only_last = "logits_to_keep" in parameters
        self._is_ours = isinstance(model, IIETForCausalLM)

    def read(self, tokens: Tensor, keep: int = 1) -> Tensor:
        """Read the next tokens (1, n) -> float32 logits (keep, V) after each of the last `keep` of them."""
        self.length += tokens.shape[1]
        if self._is_ours:
            # The same computation as the model's forward, without what transformers' decorators around it cost,
            # which is a tenth of a call of the demo's draft.
            base = self.model.model
            hidden, context = base.prepare(tokens, past_key_values=self.cache, use_cache=True)
            hidden = base.run_layers(hidden, (hidden,), **context)  # (1, n, D)
            return self.model.lm_head(hidden[:, -keep:])[0].float()
        options = {"logits_to_keep": keep} if self._only_last else {}
        outputs = self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True, **options)
        return outputs.logits[0, -keep:].float()

    def rollback(self, length: int) -> None:
        """Be as if only the first `length` tokens had been read; length is at most T."""
        if length < self.length:
            # Of crop's numbers only those below zero mean the same in all versions of transformers: drop so many.
            self.cache.crop(length - self.length)
            self.length = length
