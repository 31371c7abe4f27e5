"""The encoder-decoder IIET: an encoder and a decoder of iterated layers, for translation and summarisation.

Legend: B batch, S source tokens, T target tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.utils import can_return_tuple

from .compatibility import CACHE, accept_cache
from .configuration_iiet_seq2seq import IIETSeq2SeqConfig
from .layers import IterativeLayer
from .seq2seq_stacks import IIETSeq2SeqDecoder, IIETSeq2SeqEncoder, IIETSeq2SeqPreTrainedModel
from .stacks import LayerStack

__all__ = ["IIETForConditionalGeneration", "IIETSeq2SeqModel"]


class IIETSeq2SeqModel(IIETSeq2SeqPreTrainedModel):
    """The encoder and the decoder."""

    _tied_weights_keys = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}

    def __init__(self, config: IIETSeq2SeqConfig):
        super().__init__(config)
        config.validate_architecture()  # fields can be set after the configuration checked itself
        self.encoder = IIETSeq2SeqEncoder(config)
        self.decoder = IIETSeq2SeqDecoder(config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The stacks whose layers the plan is a list of, in its order."""
        return self.encoder, self.decoder

    @property
    def layers(self) -> list[IterativeLayer]:
        """The encoder's layers and then the decoder's, as in the plan."""
        return [layer for stack in self.stacks for layer in stack.layers]

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Tie the encoder's table to the decoder's where they are shared, whether or not the head is tied."""
        return dict(self._tied_weights_keys) if self.config.shared_embeddings else {}

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's table, to which a tied head belongs."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table. Raises ValueError where encoder and decoder have one each."""
        if not self.config.shared_embeddings:
            raise ValueError("shared_embeddings: expected true to replace the embeddings, got false")
        self.encoder.embed_tokens = self.decoder.embed_tokens = value

    @accept_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """Source and target -> last_hidden_state (B, T, D), of the decoder, and the cache.

        input_ids: (B, S) with attention_mask (B, S), or inputs_embeds: (B, S, D), or encoder_outputs, of which the
        first is (B, S, D). decoder_input_ids: (B, T) with decoder_attention_mask, or decoder_inputs_embeds.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            outputs.last_hidden_state,
            getattr(outputs, CACHE),
            outputs.hidden_states,
            outputs.attentions,
            outputs.cross_attentions,
            encoder_outputs.last_hidden_state,
            encoder_outputs.hidden_states,
            encoder_outputs.attentions,
        )


class IIETForConditionalGeneration(IIETSeq2SeqPreTrainedModel, GenerationMixin):
    """The encoder-decoder with a language-modelling head on the decoder."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    model_class = IIETSeq2SeqModel

    def __init__(self, config: IIETSeq2SeqConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """labels: (B, T) -> the decoder's inputs (B, T): the start token, and all labels but the last.

        Labels that are not asked, -100, become padding.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        assert start is not None  # validate_architecture requires it
        first = torch.full_like(labels[:, :1], start)
        shifted = torch.cat([first, labels[:, :-1]], 1)
        return shifted.masked_fill(shifted == -100, start if pad is None else pad)

    @accept_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """As `IIETSeq2SeqModel.forward` -> logits (B, T, V); with labels (B, T) also their mean loss.

        labels: what the decoder is to say at each of its positions, -100: not asked; they make decoder_input_ids
        where none are given. logits_to_keep: only the last so many positions (0: all), or the indices of those
        wanted.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_position_ids=decoder_position_ids,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            options = {"vocab_size": self.config.vocab_size, "shift_labels": labels}  # aligned already
            loss = self.loss_function(logits=logits, labels=labels, **options, **kwargs)
        return Seq2SeqLMOutput(
            loss,
            logits,
            getattr(outputs, CACHE),
            outputs.decoder_hidden_states,
            outputs.decoder_attentions,
            outputs.cross_attentions,
            outputs.encoder_last_hidden_state,
            outputs.encoder_hidden_states,
            outputs.encoder_attentions,
        )


AutoModel.register(IIETSeq2SeqConfig, IIETSeq2SeqModel, exist_ok=True)
