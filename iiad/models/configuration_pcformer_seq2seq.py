"""Configuration of the encoder-decoder PCformer."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_iiet_seq2seq import IIETSeq2SeqConfig
from .configuration_pcformer import PCformerConfig
from .field_values import AcceptedValues

__all__ = ["PCformerSeq2SeqConfig"]


@strict
class PCformerSeq2SeqConfig(IIETSeq2SeqConfig, PCformerConfig):
    """Shape of an encoder-decoder PCformer: all fields of `IIETSeq2SeqConfig` and of `PCformerConfig`."""

    model_type = "pcformer_seq2seq"
    accepted_values: ClassVar[dict[str, AcceptedValues]] = (
        IIETSeq2SeqConfig.accepted_values | PCformerConfig.accepted_values
    )

    num_iterations: int | list[int] = 1
    num_encoder_iterations: int | list[int] = 1
