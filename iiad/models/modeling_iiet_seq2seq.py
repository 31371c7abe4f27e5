"""The encoder-decoder IIET: an encoder and a decoder of iterated layers, for translation and summarisation.

Legend: B batch, S source tokens, T target tokens, D model width, K key/value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compatibility import CACHE, accept_cache
from .configuration_iiet_seq2seq import IIETSeq2SeqConfig
from .layers import CrossIterativeLayer, IterativeLayer, SlottedAttention
from .stacks import IIETPreTrainedModel, LayerStack, record_layers

__all__ = [
    "IIETForConditionalGeneration",
    "IIETSeq2SeqDecoder",
    "IIETSeq2SeqEncoder",
    "IIETSeq2SeqModel",
    "IIETSeq2SeqPreTrainedModel",
]


class IIETSeq2SeqPreTrainedModel(IIETPreTrainedModel):
    """Base of the encoder-decoders: IIET's, with other heads."""

    config: IIETSeq2SeqConfig
    config_class = IIETSeq2SeqConfig
    _no_split_modules = ["IterativeLayer", "CrossIterativeLayer"]
    heads: ClassVar = {"ForSeq2SeqLM": "ForConditionalGeneration"}


class IIETSeq2SeqEncoder(LayerStack, IIETSeq2SeqPreTrainedModel):
    """Embeddings, iterated layers that attend to the whole source, and a final norm."""

    config: IIETSeq2SeqConfig
    config_class = IIETSeq2SeqConfig
    is_causal = False
    _can_record_outputs = {
        "hidden_states": record_layers("num_encoder_layers"),
        "attentions": SlottedAttention,
    }

    def __init__(self, config: IIETSeq2SeqConfig):
        super().__init__(config)
        self.build(IterativeLayer(config, layer) for layer in range(config.num_encoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """input_ids: (B, S), or inputs_embeds: (B, S, D) -> last_hidden_state (B, S, D).

        attention_mask: (B, S), 0 at padding.
        """
        kwargs.pop("use_cache", None)  # there is nothing to cache
        inputs_embeds, context = self.prepare(input_ids, attention_mask, inputs_embeds=inputs_embeds)
        return BaseModelOutput(self.run_layers(inputs_embeds, (inputs_embeds,), **context, **kwargs))


class IIETSeq2SeqDecoder(LayerStack, IIETSeq2SeqPreTrainedModel):
    """Embeddings, iterated layers that attend to earlier target tokens and to the source, and a final norm."""

    config: IIETSeq2SeqConfig
    config_class = IIETSeq2SeqConfig
    _can_record_outputs = {
        "hidden_states": record_layers(),
        "attentions": OutputRecorder(SlottedAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(SlottedAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: IIETSeq2SeqConfig):
        super().__init__(config)
        before = config.num_encoder_layers
        self.build(CrossIterativeLayer(config, layer, before + layer) for layer in range(config.num_layers))
        self.post_init()

    @accept_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """input_ids: (B, T), or inputs_embeds: (B, T, D) -> last_hidden_state (B, T, D) and the cache.

        encoder_hidden_states: (B, S, D); encoder_attention_mask: (B, S), 0 at padding.
        """
        inputs_embeds, context = self.prepare(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        context |= self.attended_source(inputs_embeds, encoder_hidden_states, encoder_attention_mask)
        hidden_states = self.run_layers(inputs_embeds, (inputs_embeds,), **context, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(hidden_states, context["past_key_values"])

    def attended_source(
        self, inputs_embeds: Tensor, encoder_hidden_states: Tensor | None, attention_mask: Tensor | None
    ) -> dict[str, Any]:
        """Return what `prepare` lacks of the layers' context: the source that they attend to, and its mask."""
        if encoder_hidden_states is None:
            raise ValueError("encoder_hidden_states: expected the encoder's output, got none")
        # By position, as `make_mask`.
        mask = create_bidirectional_mask(self.config, inputs_embeds, attention_mask, encoder_hidden_states)
        return {"encoder_hidden_states": encoder_hidden_states, "encoder_mask": mask}

    def make_cache(self) -> Cache:
        """An empty cache: slots for self-attention, and for cross-attention, of which each layer uses one."""
        return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))

    def make_mask(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor,
    ) -> Any:
        """The mask of the layers' self-attention. Raises ValueError for a cache that has no place for the source."""
        if past_key_values is not None and not isinstance(past_key_values, EncoderDecoderCache):
            got = type(past_key_values).__name__
            raise ValueError(f"{CACHE}: expected an EncoderDecoderCache, got a {got}")
        own = past_key_values and past_key_values.self_attention_cache
        return super().make_mask(inputs_embeds, attention_mask, own, position_ids)


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
