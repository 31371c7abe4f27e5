"""One iterated layer: Llama's block, a cache slot for each of its evaluations, and its solver.

Legend: B batch, T tokens, D model width, N query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
    rotate_half,
)

from .configuration_iiet import IIETConfig
from .operators import RMSNorm
from .solvers import ExplicitEuler, MultistepCorrector, PicardCorrector, Run, RungeKutta, run_step, solve

__all__ = ["EvaluationSlot", "IterativeLayer", "SlottedAttention"]


KeysAndValues = tuple[Tensor, Tensor]
"""Of all positions that may be attended to, each (B, K, positions, E)."""


class EvaluationSlot(nn.Module):
    """A place in the cache: what attention functions see as their module. It has no parameters.

    layer_idx: its number in any transformers cache. Under the exact policy each evaluation of the forward pass has
    one, under the shared policy each layer.
    """

    is_causal = True

    def __init__(self, attention: LlamaAttention, layer_idx: int):
        super().__init__()
        self.config = attention.config
        self.layer_idx = layer_idx
        self.num_key_value_groups = attention.num_key_value_groups
        self.scaling = attention.scaling
        self.attention_dropout = attention.attention_dropout


class SlottedAttention(LlamaAttention):
    """Llama's attention, run several times a forward pass, with keys and values apart or those of the first run.

    By the configuration also Qwen2's (no bias on o_proj alone) and Qwen3's (queries and keys normed), under the
    tensor names that they have there.
    """

    def __init__(self, config: IIETConfig, layer_idx: int):
        """layer_idx: the layer, from 0; `assign_slots` makes it the layer's first cache slot."""
        super().__init__(config, layer_idx)
        bias = config.attention_output_bias
        if bias is not None and bias != config.attention_bias:
            self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=bias)
        self.q_norm, self.k_norm = (
            LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def assign_slots(self, first: int, num_slots: int) -> None:
        """Give this layer the cache slots first, ..., first + num_slots - 1: one an evaluation, or one for all."""
        self.layer_idx = first
        self.slots = nn.ModuleList(EvaluationSlot(self, first + j) for j in range(num_slots))
        self.slots.train(self.training)

    def keys_and_values(
        self,
        hidden_states: Tensor,
        slot: int,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Any = None,
        **_: Any,
    ) -> KeysAndValues:
        """Keys and values of hidden_states (B, T, D), after those that the cache has in the slot."""
        (key,) = _rotate(position_embeddings, self._heads(hidden_states, self.k_proj, self.k_norm))
        return self._remember(key, self._heads(hidden_states, self.v_proj), slot, past_key_values)

    def _heads(self, hidden_states: Tensor, projection: nn.Module, norm: nn.Module | None = None) -> Tensor:
        """(B, T, D) -> (B, N or K, T, E), normed head by head where a norm is given."""
        heads = projection(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim)
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def _remember(self, key: Tensor, value: Tensor, slot: int, past_key_values: Any) -> KeysAndValues:
        """Keys and values (B, K, T, E) after those that the cache, if there is one, has in the slot."""
        if past_key_values is None:
            return key, value
        return past_key_values.update(key, value, self.slots[slot].layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        slot: int,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        shared: KeysAndValues | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: (B, T, D); slot: from 0, the evaluation -> (B, T, D) and the attention weights, if any.

        shared: keys and values to attend to instead of the evaluation's own; slot is then the layer's only one, 0.
        """
        evaluation = self.slots[slot]
        query = self._heads(hidden_states, self.q_proj, self.q_norm)
        if shared is None:
            key = self._heads(hidden_states, self.k_proj, self.k_norm)
            query, key = _rotate(position_embeddings, query, key)
            shared = self._remember(key, self._heads(hidden_states, self.v_proj), slot, past_key_values)
        else:
            (query,) = _rotate(position_embeddings, query)
        key, value = shared
        implementation = self.config._attn_implementation
        if "flash" in (implementation or ""):
            # Its own way to find the right dtype looks for a Linear inside the module that it is given.
            query, key, value = (states.to(self.q_proj.weight.dtype) for states in (query, key, value))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        mixed, weights = attend(
            evaluation,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(mixed.flatten(2)), weights  # (B, T, N * E) -> (B, T, D)


def _make_norm(config: IIETConfig) -> LlamaRMSNorm:
    """The norm before attention and MLP. With no iterations a plain model is a Llama, to the last bit."""
    if config.history or config.relaxation:
        return RMSNorm(config.hidden_size, eps=config.rms_norm_eps, like_llama=not config.history)
    # It saves no more than Llama, whose own norm also keeps its gradients equal to the last bit.
    return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


def _rotate(angles: tuple[Tensor, Tensor], *states: Tensor) -> Sequence[Tensor]:
    """Rotary position embedding of queries, keys or both, each (B, heads, T, E); angles: cosine, sine, (B, T, E)."""
    if states[0].shape[2] == 1 and len(states) > 1:
        # One token is decoded: all heads in half the calls, and no number otherwise than apart.
        (together,) = _rotate(angles, torch.cat(states, 1))
        return together.split([part.shape[1] for part in states], 1)
    cosine, sine = (part.unsqueeze(1) for part in angles)
    return [part * cosine + rotate_half(part) * sine for part in states]


class IterativeLayer(GradientCheckpointingLayer):
    """Layer t: the block F_t with Llama's tensor names, and the corrector that iterates it.

    The predictor may be shared between layers, so the model owns it and hands it in.
    """

    def __init__(self, config: IIETConfig, layer: int):
        """layer: from 0; the paper's t is layer + 1."""
        super().__init__()
        self.self_attn = SlottedAttention(config=config, layer_idx=layer)
        self.mlp = LlamaMLP(config)
        self.input_layernorm, self.post_attention_layernorm = (_make_norm(config) for _ in range(2))
        self.corrector: MultistepCorrector | PicardCorrector
        if config.history:
            self.corrector = MultistepCorrector(config.hidden_size, layer + 1, config.layer_norm_eps)
        else:
            self.corrector = PicardCorrector(config.max_num_iterations or 0, config.relaxation)

    def set_num_iterations(self, num_iterations: int, first_slot: int, num_slots: int) -> None:
        """Run num_iterations from now on, with num_slots cache slots from first_slot on."""
        self.num_iterations = num_iterations
        self.self_attn.assign_slots(first_slot, num_slots)

    def evaluate(self, slot: int, point: Tensor, base: Tensor, **kwargs: Any) -> Tensor:
        """base + f_t(point), each (B, T, D): attention, then MLP, each of the normed running state."""
        increment, _ = self.self_attn(self.input_layernorm(point), slot, **kwargs)
        middle = point + increment
        # Added in Llama's order when base is point, so that the result is equal to the last bit.
        running = middle if base is point else base + increment
        return running + self.mlp(self.post_attention_layernorm(middle))

    def iterates(
        self,
        hidden_states: Tensor,
        known: tuple[Tensor, Tensor],
        predictor: ExplicitEuler | RungeKutta,
        run: Run = run_step,
        **kwargs: Any,
    ) -> list[Tensor]:
        """z(0), ..., z(r_t), each (B, T, D), from the layer's input (B, T, D). run: makes each evaluation's step."""
        shared = None
        if self.self_attn.config.cache_policy == "shared":
            # Every layer is evaluated first at its own input, by whatever predictor.
            shared = self.self_attn.keys_and_values(self.input_layernorm(hidden_states), 0, **kwargs)

        def evaluate(number: int, point: Tensor, base: Tensor) -> Tensor:
            slot = number if shared is None else 0
            return self.evaluate(slot, point, base, shared=shared, **kwargs)

        return solve(predictor, self.corrector, evaluate, hidden_states, known, self.num_iterations, run)

    def forward(
        self,
        hidden_states: Tensor,
        predictor: ExplicitEuler | RungeKutta,
        *history: Tensor,
        run: Run = run_step,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """x_t (B, T, D) and H_0, ..., H_{t-1} (ignored without history) -> x_{t+1} and H_t, each (B, T, D).

        The history comes one by one, because a checkpoint of the layer sees no tensors inside other arguments.
        run: makes each evaluation's step.
        """
        known = self.corrector.prepare(hidden_states, history, self.num_iterations)
        state = self.iterates(hidden_states, known, predictor, run, **kwargs)[-1]
        return self.corrector.output(state, known), state
