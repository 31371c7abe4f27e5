"""The encoder-decoder PCformer: IIET's with another predictor, one of its own for each half."""

from __future__ import annotations

from transformers import AutoModel

from .configuration_pcformer_seq2seq import PCformerSeq2SeqConfig
from .modeling_iiet_seq2seq import IIETForConditionalGeneration, IIETSeq2SeqModel
from .modeling_pcformer import PCformerPreTrainedModel

__all__ = ["PCformerForConditionalGeneration", "PCformerSeq2SeqModel"]


class PCformerSeq2SeqModel(IIETSeq2SeqModel, PCformerPreTrainedModel):
    """The encoder and the decoder."""

    config: PCformerSeq2SeqConfig
    config_class = PCformerSeq2SeqConfig


class PCformerForConditionalGeneration(IIETForConditionalGeneration, PCformerPreTrainedModel):
    """The encoder-decoder PCformer with a language-modelling head on the decoder."""

    config: PCformerSeq2SeqConfig
    config_class = PCformerSeq2SeqConfig
    model_class = PCformerSeq2SeqModel


AutoModel.register(PCformerSeq2SeqConfig, PCformerSeq2SeqModel, exist_ok=True)
