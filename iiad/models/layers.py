"""One iterated layer: Llama's block, a cache slot for each of its evaluations, and its solver.

Legend: B batch, T tokens, D model width, N query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .configuration_iiet import IIETConfig
from .operators import RMSNorm
from .solvers import ExplicitEuler, MultistepCorrector, PicardCorrector, Run, RungeKutta, run_step, solve

__all__ = ["EvaluationSlot", "IterativeLayer", "SlottedAttention"]


class EvaluationSlot(nn.Module):
    """One evaluation's place in the cache: what attention functions see as their module. It has no parameters.

    layer_idx: the evaluation's number in the forward pass, which is its slot in any transformers cache.
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
    """Llama's attention, run several times a forward pass with keys and values apart.

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
        """Give this layer the cache slots first, ..., first + num_slots - 1."""
        self.layer_idx = first
        self.slots = nn.ModuleList(EvaluationSlot(self, first + j) for j in range(num_slots))
        self.slots.train(self.training)

    def forward(
        self,
        hidden_states: Tensor,
        slot: int,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: (B, T, D); slot: the evaluation, from 0 -> (B, T, D) and the attention weights, if any."""
        evaluation = self.slots[slot]
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)  # (B, T, N or K, E)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, N, T, E)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, K, T, E)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, evaluation.layer_idx)
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


class IterativeLayer(GradientCheckpointingLayer):
    """Layer t: the block F_t with Llama's tensor names, and the corrector that iterates it.

    The predictor may be shared between layers, so the model owns it and hands it in.
    """

    def __init__(self, config: IIETConfig, layer: int):
        """layer: from 0; the paper's t is layer + 1."""
        super().__init__()
        self.self_attn = SlottedAttention(config=config, layer_idx=layer)
        self.mlp = LlamaMLP(config)
        # The plain iteration saves no more than Llama, whose own norm also keeps its gradients equal to the last bit.
        norm = RMSNorm if config.history or config.relaxation else LlamaRMSNorm
        self.input_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.corrector: MultistepCorrector | PicardCorrector
        if config.history:
            self.corrector = MultistepCorrector(config.hidden_size, layer + 1, config.layer_norm_eps)
        else:
            self.corrector = PicardCorrector(config.max_num_iterations or 0, config.relaxation)

    def set_num_iterations(self, num_iterations: int, first_slot: int, num_start_evaluations: int) -> None:
        """Run num_iterations from now on, with cache slots from first_slot on."""
        self.num_iterations = num_iterations
        self.self_attn.assign_slots(first_slot, num_start_evaluations + num_iterations)

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

        def evaluate(slot: int, point: Tensor, base: Tensor) -> Tensor:
            return self.evaluate(slot, point, base, **kwargs)

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
