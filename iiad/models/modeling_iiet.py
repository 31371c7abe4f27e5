"""The Iterative Implicit Euler Transformer (Liu et al., EMNLP 2025, arXiv 2509.22463) as transformers models.

Legend: B batch, T tokens, D model width, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .compatibility import CACHE, accept_cache
from .configuration_iiet import IIETConfig
from .layers import IterativeLayer
from .stacks import IIETPreTrainedModel, LayerStack

__all__ = [
    "IIETForCausalLM",
    "IIETForSequenceClassification",
    "IIETForTokenClassification",
    "IIETModel",
    "IIETPreTrainedModel",
]


class IIETModel(LayerStack):
    """Embeddings, L iterated layers and the final norm."""

    def __init__(self, config: IIETConfig):
        super().__init__(config)
        config.validate_architecture()  # fields can be set after the configuration checked itself
        layers = (IterativeLayer(config, layer) for layer in range(config.num_layers))
        self.build(layers, config.pad_token_id)
        self.post_init()

    @accept_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids: (B, T), or inputs_embeds: (B, T, D) -> last_hidden_state (B, T, D) and the cache."""
        inputs_embeds, context = self.prepare(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        hidden_states = self.run_layers(inputs_embeds, (inputs_embeds,), **context, **kwargs)
        return BaseModelOutputWithPast(hidden_states, context["past_key_values"])  # by position: see CACHE


class IIETForCausalLM(IIETPreTrainedModel, GenerationMixin):
    """IIET with a language-modelling head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    model_class = IIETModel

    def __init__(self, config: IIETConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @accept_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids: (B, T) -> logits (B, T, V); with labels (B, T), which are shifted inside, also the mean loss.

        logits_to_keep: only the last so many positions (0: all), or the indices of those wanted.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        cache = getattr(outputs, CACHE)
        return CausalLMOutputWithPast(loss, logits, cache, outputs.hidden_states, outputs.attentions)


class IIETForSequenceClassification(GenericForSequenceClassification, IIETPreTrainedModel):
    """IIET with a label, or a number, for each text: read off the last token that is not padding."""


class IIETForTokenClassification(GenericForTokenClassification, IIETPreTrainedModel):
    """IIET with a label for each token."""


AutoModel.register(IIETConfig, IIETModel, exist_ok=True)  # by which the generic heads make their base model
