"""Operators that save less for the backward pass than autograd would by itself.

Legend: B batch, T tokens, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

__all__ = ["RMSNorm"]


class RMSNorm(LlamaRMSNorm):
    """Llama's RMSNorm, in training equal in value and gradient to the last bit, that saves its input alone (ours).

    Autograd would also save the normed input, which one multiplication gives back. That makes room for what the
    solvers save after each evaluation (LayerNorm and combination, or relaxation): a training step saves no more than
    that of a Llama with as many layers as the model has evaluations.

    Without gradients it is torch's own operator: one call where Llama's is eight, and a rounding less in bfloat16.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6, like_llama: bool = False):
        """like_llama: to the last bit without gradients too."""
        super().__init__(hidden_size, eps=eps)
        self.like_llama = like_llama

    def forward(self, hidden_states: Tensor) -> Tensor:
        """x -> weight * x / sqrt(mean(x^2) + eps), both (B, T, D)."""
        if not torch.is_grad_enabled():
            if self.like_llama:
                return super().forward(hidden_states)
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps): (B, T, D) -> (B, T, 1)."""
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class _RMSNorm(torch.autograd.Function):
    """y = weight * n, n = x * rsqrt(mean(x^2) + eps), in float32 as Llama has it."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = hidden_states.to(torch.float32)
        scale, ctx.eps = _scale(x, eps), eps
        ctx.save_for_backward(hidden_states, weight, scale)
        return weight * (x * scale).to(hidden_states.dtype)

    @staticmethod
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # The terms in the order in which autograd adds them for Llama's, so that not even the last bit differs.
        hidden_states, weight, scale = ctx.saved_tensors
        x = hidden_states.to(torch.float32)
        if torch.is_grad_enabled():  # to be differentiated again: through the scale as well
            scale = _scale(x, ctx.eps)
        by_weight = None
        if ctx.needs_input_grad[1]:
            normed = (x * scale).to(hidden_states.dtype)
            by_weight = (by_output * normed).sum_to_size(weight.shape).to(weight.dtype)
        by_normed = (by_output * weight).to(hidden_states.dtype).to(torch.float32)
        by_scale = (by_normed * x).sum(-1, keepdim=True)
        by_mean_square = by_scale * scale.pow(3) * -0.5 / x.shape[-1]
        by_x = by_normed * scale + x * (2 * by_mean_square)
        return by_x.to(hidden_states.dtype), by_weight, None
