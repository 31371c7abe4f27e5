"""One iterated layer: Llama's block, a cache slot for each of its evaluations, and its corrector.

Legend: B batch, T tokens, D model width, N query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
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
from .selection import EVERY_TOKEN, TokenSelection, select_tokens
from .solvers import ExplicitEuler, MultistepCorrector, PicardCorrector, RungeKutta

__all__ = [
    "EvaluationSlot",
    "IterativeLayer",
    "RMSNorm",
    "SlottedAttention",
    "is_flash",
    "make_norm",
    "make_predictor",
]


Predict = Callable[..., Tensor]
"""predict(x, step, norm, num_stages) -> z(0), by the predictor. It and norm are functions, because accelerate's
hooks move modules that they find among the arguments of a module."""

Angles = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary position embedding, each (B, T, E)."""

KeysAndValues = tuple[Tensor, Tensor]
"""Each (B, K, positions, E), of all positions that may be attended to."""


class EvaluationSlot(nn.Module):
    """A place in the cache: the module, without parameters, that attention functions see.

    layer_idx: its number in any transformers cache. Under the exact policy each evaluation of the forward pass has
    a slot, under the shared policy each layer. Serving engines read it, `scaling` and the source of `forward`.
    """

    def __init__(self, attention: LlamaAttention, layer_idx: int, is_causal: bool = True):
        super().__init__()
        self.is_causal = is_causal
        self.config = attention.config
        self.layer_idx = layer_idx
        self.num_key_value_groups = attention.num_key_value_groups
        self.scaling = attention.scaling

    @property
    def implementation(self) -> str:
        """Name of the attention function."""
        return self.config._attn_implementation

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """query (B, N, T, E), key, value (B, K, positions, E) -> (B, T, N, E) and the attention weights, if any."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        return attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)


def is_flash(config: IIETConfig) -> bool:
    """Return whether attention functions are those of flash attention."""
    return "flash" in (config._attn_implementation or "")


class SlottedAttention(LlamaAttention):
    """Llama's attention, run once an evaluation, with keys and values of its own or those of the layer's first one.

    The configuration also makes it Qwen2's (no bias on o_proj alone) or Qwen3's (RMSNorm on queries and keys), with
    their tensor names.
    """

    def __init__(self, config: IIETConfig, layer_idx: int):
        """layer_idx: the layer, from 0."""
        super().__init__(config, layer_idx)
        bias = config.attention_output_bias
        if bias is not None and bias != config.attention_bias:
            self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=bias)
        self.q_norm, self.k_norm = (
            LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def keys_and_values(
        self,
        hidden_states: Tensor,
        slot: EvaluationSlot,
        position_embeddings: Angles | None,
        past_key_values: Any,
        attention_options: dict[str, Any],
    ) -> KeysAndValues:
        """Keys and values of hidden_states (B, T, D), after those that the cache has in the slot.

        attention_options: for the attention function; a paged cache changes them.
        """
        key = _rotate(self.k_norm(self._heads(self.k_proj(hidden_states))), position_embeddings)
        value = self._heads(self.v_proj(hidden_states)).transpose(1, 2)
        if past_key_values is None:
            return key, value
        return past_key_values.update(key, value, slot.layer_idx, kwargs=attention_options)

    def forward(
        self,
        hidden_states: Tensor,
        slot: EvaluationSlot,
        position_embeddings: Angles | None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        shared: KeysAndValues | None = None,
        tokens: TokenSelection = EVERY_TOKEN,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: (B, T, D); slot: the evaluation's -> (B, T, D) and the attention weights, if any.

        shared: keys and values to attend to instead of the evaluation's own. tokens: those that hidden_states are of.
        """
        angles = position_embeddings
        if angles is not None:
            angles = tokens.take(angles[0]), tokens.take(angles[1])
        query = _rotate(self.q_norm(self._heads(self.q_proj(hidden_states))), angles)
        key, value = shared or self.keys_and_values(
            hidden_states, slot, position_embeddings, past_key_values, kwargs
        )
        if is_flash(self.config):
            # It needs 16 bits, and would look for the type in a Linear inside its module: the slot has none.
            dtype = self._weight_dtype(query.dtype)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        laid_out = tokens.lay_out(query, key, value, attention_mask, slot.is_causal)
        mixed, weights = slot(*laid_out, **kwargs)
        mixed = tokens.flatten(mixed).reshape(*hidden_states.shape[:-1], -1)  # (B, T, N * E)
        return self.o_proj(mixed), weights

    def _heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads * E) -> (B, T, heads, E)."""
        return projected.view(*projected.shape[:-1], -1, self.head_dim)

    def _weight_dtype(self, default: torch.dtype) -> torch.dtype:
        """The type of the projections' weights or, where these are quantized, of the configuration."""
        dtype = getattr(getattr(self.q_proj, "weight", None), "dtype", None)
        if dtype in (torch.float32, torch.float16, torch.bfloat16):
            return dtype
        return self.config.dtype or default


def _rotate(states: Tensor, angles: Angles | None) -> Tensor:
    """Rotary position embedding, none without angles: (B, T, heads, E) -> (B, heads, T, E)."""
    states = states.transpose(1, 2)
    if angles is None:
        return states
    cosine, sine = (part.unsqueeze(1) for part in angles)
    return states * cosine + rotate_half(states) * sine


class RMSNorm(LlamaRMSNorm):
    """Llama's RMSNorm, saving its input alone for the backward pass (ours).

    That makes room for what the solvers save after each evaluation: a training step of IIET at r = 3 saves 1.00
    times the bytes of a Llama with as many layers as it has evaluations, instead of 1.10 (1.14 under bfloat16
    autocast), in 1.00 times the time (width 512, 4 x 256 tokens, one CPU thread).
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """x -> weight * x / sqrt(mean(x^2) + eps), both (B, T, D)."""
        norm = super().forward
        if not torch.is_grad_enabled():
            return norm(hidden_states)
        return checkpoint(norm, hidden_states, use_reentrant=False, preserve_rng_state=False)


def make_norm(config: IIETConfig) -> LlamaRMSNorm:
    """The norm before attention or MLP: ours unless the solver saves nothing beside what a Llama does."""
    kind = RMSNorm if config.history or config.relaxation else LlamaRMSNorm
    return kind(config.hidden_size, eps=config.rms_norm_eps)


def make_predictor(config: IIETConfig) -> ExplicitEuler | RungeKutta:
    """Return the predictor that all layers of a stack share: Runge-Kutta where the configuration has its order."""
    order = getattr(config, "predictor_order", None)
    if order is None:
        return ExplicitEuler()
    return RungeKutta(config.hidden_size, order, config.coefficients, config.layer_norm_eps)


class IterativeLayer(GradientCheckpointingLayer):
    """Layer t: the block F_t with Llama's tensor names, and the corrector that iterates it.

    The predictor is shared between layers, so the model owns it and hands it in.
    """

    slots: list[EvaluationSlot]
    """The layer's own, a plain list: `LayerStack.assign_slots` registers them in the model and fills it."""

    observe: Callable[[int, Tensor, Sequence[Tensor | None]], None] | None = None
    """Called by `solve` with the layer's place, its input (B, T, D) and the tokens (B, T) of each evaluation, None
    for all of them."""

    def __init__(self, config: IIETConfig, layer: int, place: int | None = None):
        """layer: in its stack, from 0; the paper's t is layer + 1. place: in the plan; default, layer."""
        super().__init__()
        self.config, self.layer, self.place = config, layer, layer if place is None else place
        self.self_attn = SlottedAttention(config=config, layer_idx=layer)
        self.mlp = LlamaMLP(config)
        self.input_layernorm, self.post_attention_layernorm = (make_norm(config) for _ in range(2))
        self.corrector: MultistepCorrector | PicardCorrector
        if config.history:
            self.corrector = MultistepCorrector(config.hidden_size, layer + 1, config.layer_norm_eps)
        else:
            self.corrector = PicardCorrector(config.max_num_iterations or 0, config.relaxation)

    @property
    def num_iterations(self) -> int:
        """r_t, from the configuration."""
        return self.config.iterations[self.place]

    @property
    def extrapolation(self) -> list[float]:
        """b_1, b_2, ... at the layer's stop, from the configuration; none: its state is handed on as it is."""
        return self.config.layer_extrapolation(self.place)

    @property
    def gathers(self) -> bool:
        """True where the tokens that go on are gathered.

        Under gradients, in compiled graphs and with other attention all are evaluated, and the others keep theirs.
        """
        sequential = torch.is_grad_enabled() or torch.compiler.is_compiling()
        return not sequential and self.config._attn_implementation in ("sdpa", "eager")

    def evaluate(self, point: Tensor, base: Tensor | None = None, **kwargs: Any) -> Tensor:
        """base + f_t(point), each (B, T, D). base: default, point, which makes it F_t(point)."""
        middle, start = self.attend(point, base, **kwargs)
        return start + self.mlp(self.post_attention_layernorm(middle))

    def attend(self, point: Tensor, base: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return point and base (default, point) plus what is attended to at point, each (B, T, D)."""
        attended, _ = self.self_attn(self.input_layernorm(point), **kwargs)
        middle = point + attended
        # Two sums in Llama's order, so that F_t(point) equals Llama's block to the last bit.
        return middle, middle if base is None else base + attended

    def solve(
        self,
        hidden_states: Tensor,
        predict: Predict,
        *history: Tensor,
        num_stages: int | None = None,
        recompute_evaluations: bool = False,
        **context: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """x_t and H_0, ..., H_{t-1} (ignored without history) -> x_{t+1} and z(0), ..., z(r_t), each (B, T, D).

        The last state is H_t, extrapolated where the configuration says so.
        num_stages: of the predictor; default, the configuration's. recompute_evaluations: save only the inputs of
        evaluations and compute each again in the backward pass. context: that of `LayerStack.prepare`.
        """
        slots, shared = iter(self.slots), None
        if self.config.cache_policy == "shared":
            slots = repeat(self.slots[0])
            # Every predictor evaluates the block first at the layer's input.
            angles, cache = context["position_embeddings"], context["past_key_values"]
            point = self.input_layernorm(hidden_states)
            shared = self.self_attn.keys_and_values(point, self.slots[0], angles, cache, context)

        evaluated: list[Tensor | None] = []

        def step(rule: Any, *states: Tensor, going: Tensor | None = None) -> Tensor:
            evaluated.append(going)
            tokens = select_tokens(going, self.gathers)
            if tokens is None:
                return states[0]
            block = partial(self.evaluate, slot=next(slots), shared=shared, tokens=tokens, **context)
            taken = map(tokens.take, states)
            if recompute_evaluations:
                return tokens.put(checkpoint(rule, block, *taken, use_reentrant=False), states[0])
            return tokens.put(rule(block, *taken), states[0])

        def norm(prediction: Tensor) -> Tensor:  # not the module itself: see Predict
            return self.corrector.start_norm(prediction)

        z = predict(hidden_states, step, norm, num_stages or self.config.num_start_evaluations)
        stop = self.extrapolation, self.config.tolerances[self.place]
        solved = self.corrector(z, hidden_states, history, self.num_iterations, step, *stop)
        if self.observe is not None:
            self.observe(self.place, hidden_states, evaluated)
        return solved

    def output(self, state: Tensor, *history: Tensor) -> Tensor:
        """x_{t+1} where H_t is `state`, after H_0, ..., H_{t-1}, each (B, T, D)."""
        return self.corrector(state, state, history)[0]

    def forward(
        self, hidden_states: Tensor, predict: Predict, *history: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """x_t and H_0, ..., H_{t-1}, one by one as `solve` takes them -> x_{t+1} and H_t, each (B, T, D)."""
        output, iterates = self.solve(hidden_states, predict, *history, **kwargs)
        return output, iterates[-1]
