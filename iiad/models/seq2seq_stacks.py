"""The encoder and the decoder of iterated layers.

Legend: B batch, S source tokens, T target tokens, D model width, K key/value heads, E head width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compatibility import CACHE, accept_cache
from .configuration_iiet import IIETConfig
from .configuration_iiet_seq2seq import IIETSeq2SeqConfig
from .layers import (
    EvaluationSlot,
    IterativeLayer,
    KeysAndValues,
    Predict,
    SlottedAttention,
    is_flash,
    make_norm,
)
from .selection import EVERY_TOKEN
from .stacks import IIETPreTrainedModel, LayerStack, record_layers

__all__ = ["CrossIterativeLayer", "IIETSeq2SeqDecoder", "IIETSeq2SeqEncoder", "IIETSeq2SeqPreTrainedModel"]


class SourceSlot(EvaluationSlot):
    """The cross-attention's place in the cache, one a layer.

    It runs sdpa in place of flash attention, for which transformers would take the source's padding for the target's.
    """

    @property
    def implementation(self) -> str:
        """Name of the attention function."""
        return "sdpa" if is_flash(self.config) else self.config._attn_implementation


class CrossIterativeLayer(IterativeLayer):
    """A decoder's layer: attention to the encoder's output stands between self-attention and MLP.

    Its keys and values depend on the encoder's output and the layer's weights alone: all evaluations of the layer,
    and all steps of decoding, use one slot of the cross-attention's cache. Its queries are not rotated (ours).
    """

    def __init__(self, config: IIETConfig, layer: int, place: int | None = None):
        super().__init__(config, layer, place)
        self.cross_attn = SlottedAttention(config=config, layer_idx=layer)
        self.cross_attention_layernorm = make_norm(config)
        self.cross_slot = SourceSlot(self.cross_attn, layer, is_causal=False)

    def attend(self, point: Tensor, base: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return point and base (default, point) plus what is attended to at point, each (B, T, D).

        kwargs: those of `IterativeLayer.attend`, the source's keys and values and its mask.
        """
        source, mask = kwargs.pop("source"), kwargs.pop("encoder_mask")
        middle, start = super().attend(point, base, **kwargs)
        states = self.cross_attention_layernorm(middle)
        tokens = kwargs.get("tokens", EVERY_TOKEN)
        attended, _ = self.cross_attn(states, self.cross_slot, None, mask, shared=source, tokens=tokens)
        middle = middle + attended
        return middle, middle if base is None else start + attended

    def solve(
        self, hidden_states: Tensor, predict: Predict, *history: Tensor, **context: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """As `IterativeLayer.solve`; the context also has the encoder's output (B, S, D) and its mask."""
        cache = context["past_key_values"]
        source = self.source_keys_and_values(context.pop("encoder_hidden_states"), cache)
        context["past_key_values"] = None if cache is None else cache.self_attention_cache
        return super().solve(hidden_states, predict, *history, source=source, **context)

    def source_keys_and_values(self, encoder_hidden_states: Tensor, past_key_values: Any) -> KeysAndValues:
        """encoder_hidden_states: (B, S, D) -> keys and values (B, K, S, E), from the cache where it has them."""
        slot, length = self.cross_slot.layer_idx, encoder_hidden_states.shape[1]
        cache = None if past_key_values is None else past_key_values.cross_attention_cache
        if cache is not None and past_key_values.is_updated.get(slot):
            key, value = cache.layers[slot].keys, cache.layers[slot].values
        else:
            key, value = self.cross_attn.keys_and_values(
                encoder_hidden_states, self.cross_slot, None, cache, {}
            )
            if cache is not None:
                past_key_values.is_updated[slot] = True
        return key[:, :, :length], value[:, :, :length]  # a static cache may be longer


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
        if is_flash(self.config):  # see SourceSlot
            mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        else:  # by position, as `make_mask`
            mask = create_bidirectional_mask(
                self.config, inputs_embeds, attention_mask, encoder_hidden_states
            )
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
        # Not by its truth: an empty one is false.
        own = None if past_key_values is None else past_key_values.self_attention_cache
        return super().make_mask(inputs_embeds, attention_mask, own, position_ids)
