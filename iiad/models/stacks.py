"""The base class of all iterated models, and a stack of iterated layers.

Legend: B batch, T tokens, D model width, L layers of a stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.output_capturing import OutputRecorder

from .configuration_iiet import IIETConfig
from .layers import EvaluationSlot, IterativeLayer, SlottedAttention, make_predictor
from .solvers import MultistepCorrector, PicardCorrector, RungeKutta

__all__ = ["IIETPreTrainedModel", "LayerStack", "record_layers"]


def record_layers(num_layers: str = "num_layers") -> OutputRecorder:
    """Record the output of each layer. num_layers: the field of the configuration that counts them."""
    # Older transformers neither know nor need the key.
    key = {"num_hidden_layers_key": num_layers}
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
    heads: ClassVar = {
        head: head for head in ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
    }
    """Models of the kind, by the end of their Auto class: the end of their name."""
    _can_record_outputs = {"hidden_states": record_layers(), "attentions": SlottedAttention}

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
        module = base.__module__.rsplit(".")[-1]
        kind = base.__name__.removesuffix("Model").removesuffix("Seq2Seq")
        # transformers itself lists the configuration and the class that is saved, not those of other heads.
        others = {f"AutoModel{task}": f"{module}.{kind}{head}" for task, head in self.heads.items()}
        known = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = {**known, "AutoModel": f"{module}.{base.__name__}", **others}
        super().save_pretrained(save_directory, *args, **kwargs)

    def set_num_iterations(
        self, num_iterations: int | Sequence[int], extrapolation: Sequence[Sequence[float]] | None = None
    ) -> None:
        """Follow another plan from now on: r_t for each layer, or one number for all.

        An encoder-decoder's layers are the encoder's and then the decoder's. extrapolation: b_1, b_2, ... of each
        layer at its stop r_t, in place of what the configuration has for that stop; default: that.

        The weights stay as they are; the configuration changes with the plan, so that a saved model keeps it.
        Raises ValueError for a plan of another length or above the maximum.
        """
        self.reconfigure(**self.config.split_plan(num_iterations, extrapolation))

    def follow_plan(self, plan: Any) -> None:
        """Run what a plan says, and nothing of an earlier one: iterations, extrapolation of its stops, tolerance.

        plan: iiad's Plan, the identity of a model, or anything with their `num_iterations`, `coefficients` and
        `tolerance`. Raises ValueError for one that does not fit.
        """
        fields = self.config.split_plan(plan.num_iterations, plan.coefficients)
        self.reconfigure(**fields, tolerance=plan.tolerance)

    def set_cache_policy(self, cache_policy: str) -> None:
        """Let a layer's evaluations have keys and values each of its own ("exact") or of its first one ("shared").

        Another policy is another function of the same weights, which are to be trained on under it. The
        configuration changes with it, so that a saved model keeps it. Raises ValueError for anything else.
        """
        self.reconfigure(cache_policy=cache_policy)

    def reconfigure(self, **fields: Any) -> None:
        """Set fields of the configuration that the weights do not depend on, and assign the cache slots anew.

        Raises ValueError for a value that does not fit, and leaves the model as it was.
        """
        before = {name: getattr(self.config, name) for name in fields}
        try:
            self._set_fields(fields)
            self.config.validate_architecture()
        except ValueError:
            self._set_fields(before)
            raise
        for stack in self.base_model.stacks:
            stack.assign_slots()

    def _set_fields(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            setattr(self.config, name, value)

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


class LayerStack(IIETPreTrainedModel):
    """L iterated layers one after another, their predictor, their history and the final norm."""

    is_causal = True
    """True: a position attends to itself and earlier ones alone."""

    def build(self, layers: Iterable[IterativeLayer], padding_idx: int | None = None) -> None:
        """Make the table of embeddings, the predictor, the final norm and the cache slots around these layers.

        padding_idx: the token whose embedding learns nothing.
        """
        config = self.config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx)
        self.predictor = make_predictor(config)
        self.layers: Any = nn.ModuleList(layers)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.assign_slots()

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The stacks whose layers the plan is a list of, in its order."""
        return (self,)

    def assign_slots(self) -> None:
        """Make the cache slots that the configuration asks for, and give each layer its own, in order."""
        shared, start = self.config.cache_policy == "shared", self.config.num_start_evaluations
        slots: list[EvaluationSlot] = []
        for layer in self.layers:
            num_slots = 1 if shared else start + layer.num_iterations
            layer.slots = [
                EvaluationSlot(layer.self_attn, len(slots) + j, self.is_causal) for j in range(num_slots)
            ]
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
            past_key_values = self.make_cache()
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = positions.unsqueeze(0)
        return inputs_embeds, {
            "attention_mask": self.make_mask(inputs_embeds, attention_mask, past_key_values, position_ids),
            "position_ids": position_ids,
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids=position_ids),
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    def make_cache(self) -> Cache:
        """An empty cache for what the layers attend to."""
        return DynamicCache(config=self.config)

    def make_mask(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor,
    ) -> Any:
        """The mask of the layers' self-attention, as the attention implementation takes it."""
        if not self.is_causal:
            return create_bidirectional_mask(self.config, inputs_embeds, attention_mask)
        # By position, as the name of the fourth is that of CACHE.
        return create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
