"""The Iterative Implicit Euler Transformer (Liu et al., EMNLP 2025, arXiv 2509.22463) as transformers models.

Legend: B batch, T tokens, D model width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compatibility import CACHE, accept_cache
from .configuration_iiet import IIETConfig
from .layers import EvaluationSlot, IterativeLayer, SlottedAttention
from .solvers import ExplicitEuler, MultistepCorrector, PicardCorrector, RungeKutta

__all__ = [
    "IIETForCausalLM",
    "IIETForSequenceClassification",
    "IIETForTokenClassification",
    "IIETModel",
    "IIETPreTrainedModel",
]


def _record_layers() -> OutputRecorder:
    # Older transformers neither know nor need the key.
    key = {"num_hidden_layers_key": "num_layers"}
    known = key if "num_hidden_layers_key" in OutputRecorder.__dataclass_fields__ else {}
    return OutputRecorder(IterativeLayer, index=0, **known)


class IIETPreTrainedModel(PreTrainedModel):
    """Base of the iterated models: initial weights, saving, and changes of plan, cache policy and recomputation."""

    config: IIETConfig
    config_class = IIETConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["IterativeLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": _record_layers(), "attentions": SlottedAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MultistepCorrector):
            init.constant_(module.update_weights, 1 / module.update_weights.numel())
            init.constant_(module.output_weights, 1 / module.output_weights.numel())
        elif isinstance(module, PicardCorrector) and module.relaxation is not None:
            init.zeros_(module.relaxation)
        elif isinstance(module, RungeKutta) and module.alpha is not None:
            init.constant_(module.alpha, 0.5)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save weights, configuration and code, so that the folder also loads where iiad is not installed."""
        base = type(self.base_model)
        module, kind = base.__module__.rsplit(".")[-1], base.__name__.removesuffix("Model")
        # transformers itself lists the configuration and the class that is saved, not those of other heads.
        heads = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
        others = {f"AutoModel{head}": f"{module}.{kind}{head}" for head in heads}
        known = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = {**known, "AutoModel": f"{module}.{base.__name__}", **others}
        super().save_pretrained(save_directory, *args, **kwargs)

    def set_num_iterations(self, num_iterations: int | Sequence[int]) -> None:
        """Follow another plan from now on: r_t for each layer, or one number for all.

        The weights stay as they are; the configuration changes with the plan, so that a saved model keeps it.
        Raises ValueError for a plan of another length or above the maximum.
        """
        if isinstance(num_iterations, int):
            num_iterations = [num_iterations] * self.config.num_layers
        self.reconfigure("num_iterations", list(num_iterations))

    def set_cache_policy(self, cache_policy: str) -> None:
        """Let a layer's evaluations have keys and values each of its own ("exact") or of its first one ("shared").

        Another policy is another function of the same weights, which are to be trained on under it. The
        configuration changes with it, so that a saved model keeps it. Raises ValueError for anything else.
        """
        self.reconfigure("cache_policy", cache_policy)

    def reconfigure(self, field: str, value: Any) -> None:
        """Set a field of the configuration that the weights do not depend on, and assign the cache slots anew.

        Raises ValueError for a value that does not fit, and leaves the model as it was.
        """
        before = getattr(self.config, field)
        try:
            setattr(self.config, field, value)
            self.config.validate_architecture()
        except ValueError:
            setattr(self.config, field, before)
            raise
        assert isinstance(self.base_model, IIETModel)
        self.base_model.assign_slots()

    def set_recompute(self, recompute: str) -> None:
        """Compute parts again in the backward pass instead of saving them; no value or gradient changes.

        recompute: "none"; "layer": save the inputs of layers alone, and hold the 1 + r_t evaluations of one layer in
        the backward pass; "evaluation": save the inputs of evaluations, and hold one evaluation.
        transformers' activation checkpointing is the switch: turned on by other means it is "layer", turned off
        "none". The configuration does not change. Raises ValueError for anything else.
        """
        if recompute not in ("none", "layer", "evaluation"):
            raise ValueError(f"recompute: expected 'none', 'layer' or 'evaluation', got {recompute!r}")
        # Older transformers know "gradient" alone, which newer ones have deprecated.
        prefix = "activation" if hasattr(self, "activation_checkpointing_enable") else "gradient"
        if recompute == "none":
            getattr(self, f"{prefix}_checkpointing_disable")()
            return
        getattr(self, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
        for layer in self.base_model.layers:
            layer.gradient_checkpointing = recompute == "layer"

    @property
    def recompute(self) -> str:
        """The unit computed again in the backward pass: "none", "layer" or "evaluation"."""
        if not self.base_model.gradient_checkpointing:
            return "none"
        whole_layers = any(layer.gradient_checkpointing for layer in self.base_model.layers)
        return "layer" if whole_layers else "evaluation"


class IIETModel(IIETPreTrainedModel):
    """Embeddings, L iterated layers and the final norm."""

    def __init__(self, config: IIETConfig):
        super().__init__(config)
        config.validate_architecture()  # fields can be set after the configuration checked itself
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.predictor = self.make_predictor(config)
        self.layers: Any = nn.ModuleList(IterativeLayer(config, layer) for layer in range(config.num_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.assign_slots()
        self.post_init()

    def make_predictor(self, config: IIETConfig) -> ExplicitEuler | RungeKutta:
        """The predictor that all layers share."""
        return ExplicitEuler()

    def assign_slots(self) -> None:
        """Make the cache slots that the configuration asks for, and give each layer its own, in order."""
        shared, start = self.config.cache_policy == "shared", self.config.num_start_evaluations
        slots: list[EvaluationSlot] = []
        for layer, num_iterations in zip(self.layers, self.config.iterations, strict=True):
            num_slots = 1 if shared else start + num_iterations
            layer.slots = [EvaluationSlot(layer.self_attn, len(slots) + j) for j in range(num_slots)]
            slots += layer.slots
        self.slots = nn.ModuleList(slots).train(self.training)

    def first_iterate(self, *args: Any) -> Tensor:
        """z(0) of a layer, by the predictor that all share: what layers are given as `Predict`."""
        return self.predictor(*args)

    def run_layers(
        self, hidden_states: Tensor, history: tuple[Tensor, ...], start: int = 0, **kwargs: Any
    ) -> Tensor:
        """Run layers start, ..., L - 1 and the final norm.

        hidden_states: (B, T, D), the input of layer `start` (from 0). history: H_0, ..., H_start, each (B, T, D);
        ignored without history. Returns (B, T, D).
        """
        for layer in range(start, len(self.layers)):
            hidden_states, history = self.run_layer(layer, hidden_states, history, **kwargs)
        return self.norm(hidden_states)

    def run_layer(
        self, layer: int, hidden_states: Tensor, history: tuple[Tensor, ...], **kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x_t (B, T, D) and the history before a layer (from 0) -> x_{t+1} and the history after it."""
        if self.training and self.gradient_checkpointing and torch.is_grad_enabled():
            kwargs["past_key_values"] = None  # it would be written to again
            kwargs["recompute_evaluations"] = self.recompute == "evaluation"
        hidden_states, state = self.layers[layer](hidden_states, self.first_iterate, *history, **kwargs)
        return hidden_states, (*history, state) if self.layers[layer].corrector.uses_history else history

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

    def prepare(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return H_0, the embeddings (B, T, D), and the context of every layer: mask, rotary angles and cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids: expected either these or inputs_embeds, got both or neither")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = positions.unsqueeze(0)
        # By position, as the name of the fourth is that of CACHE.
        mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        return inputs_embeds, {
            "attention_mask": mask,
            "position_ids": position_ids,
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids=position_ids),
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }


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
