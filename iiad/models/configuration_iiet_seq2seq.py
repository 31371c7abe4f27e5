"""Configuration of the encoder-decoder IIET."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_iiet import IIETConfig
from .field_values import ACCEPTED, AcceptedValues

__all__ = ["IIETSeq2SeqConfig"]


@strict
class IIETSeq2SeqConfig(IIETConfig):
    """Shape of an encoder-decoder IIET. All fields of `IIETConfig`, of which two are the decoder's, and:

    num_layers, num_iterations: those of the decoder.
    num_encoder_layers, num_encoder_iterations: those of the encoder.
    shared_embeddings: encoder and decoder embed tokens by one table; false: by one each.
    tie_word_embeddings: the head is the decoder's table.
    decoder_start_token_id: the first token that the decoder is given. Default: pad_token_id or, where there is none,
        bos_token_id or eos_token_id.

    The plan, `iterations`, is that of the encoder's layers and then of the decoder's; max_num_iterations holds for
    both. `num_hidden_layers`, the slots of the cache, are those of the decoder alone.
    """

    model_type = "iiet_seq2seq"
    base_model_tp_plan = {
        f"{half}.{name}".replace("self_attn", attention): style
        for name, style in IIETConfig.base_model_tp_plan.items()
        for half, attention in (("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "cross_attn"))
    }
    accepted_values: ClassVar[dict[str, AcceptedValues]] = ACCEPTED | {
        "is_encoder_decoder": (lambda value: value is True, "true"),
        "num_encoder_layers": ACCEPTED["num_layers"],
        "num_encoder_iterations": ACCEPTED["num_iterations"],
        "shared_embeddings": ACCEPTED["use_cache"],
        "decoder_start_token_id": ACCEPTED["pad_token_id"],
    }

    is_encoder_decoder: bool = True
    num_layers: int = 6
    num_encoder_layers: int = 6
    num_encoder_iterations: int | list[int] = 3
    shared_embeddings: bool = True
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_start_token_id is None:
            candidates = (self.pad_token_id, self.bos_token_id, self.eos_token_id)
            self.decoder_start_token_id = next(
                (token for token in candidates if isinstance(token, int)), None
            )
        super().__post_init__(**kwargs)

    @property
    def plan_fields(self) -> dict[str, str]:
        """Fields that the plan is made of, in order, and those that say how many layers each is for."""
        return {"num_encoder_iterations": "num_encoder_layers", "num_iterations": "num_layers"}

    @property
    def iterations(self) -> list[int]:
        """The plan: r_t for each of the layers, the encoder's first."""
        return self._plan_of("num_encoder_iterations") + self._plan_of("num_iterations")

    @property
    def num_hidden_layers(self) -> int:
        """Slots of the decoder's cache: one an evaluation or, under the shared policy, one a layer."""
        if self.cache_policy == "shared":
            return self.num_layers
        return sum(self.num_start_evaluations + r for r in self.iterations[self.num_encoder_layers :])

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        """Nothing: the number follows from other fields, but transformers assigns to it in places."""

    def validate_architecture(self) -> None:
        """Raise ValueError for a value out of range, a plan of the wrong length or above the maximum."""
        super().validate_architecture()
        start, size = self.decoder_start_token_id, self.vocab_size
        fits = start is not None and 0 <= start < size
        self._require("decoder_start_token_id", fits, f"a token below vocab_size ({size})")
