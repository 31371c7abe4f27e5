"""The language-modelling head and its losses, a chunk of tokens at a time.

Legend: B batch, T tokens of a block, N = B T, m tokens of a chunk, r rows of a chunk, D model width, V vocabulary.

The logits of a whole batch, (N, V), would be the largest tensor of a training step by far, and so would their
gradient. Here both exist for m tokens only: forward turns each chunk's logits into their gradient, which autograd
finds for r rows at a time, and that into the gradients of states and weight (as in Liger Kernel, Hsu et al. 2024).
Backward only scales them. Checkpointed chunks, which make the logits twice, take 1.2 times the whole step (V = 8,192)
and 1.7 times (V = 32,000; width 192, 4 layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from iiad.data import output_labels

__all__ = ["ChunkLoss", "HeadLoss", "TokenLoss", "asked_labels", "asked_values", "head_loss", "product_dtype"]

CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 25}
"""Logits made at a time: enough tokens for efficient products."""

ROW_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits differentiated at a time, with several copies: on a CPU they stay in cache."""

ChunkLoss = Callable[[Tensor, slice], Tensor]
"""The model's log-probabilities (r, V) and which rows of the chunk they are -> losses (r,), differentiable."""


class TokenLoss(Protocol):
    """A loss of every token beside the cross-entropy: the divergence from a teacher."""

    def require_size(self, num_tokens: int, vocab_size: int) -> None:
        """Raise ValueError where it is of other tokens or of another vocabulary."""

    def __call__(self, tokens: slice) -> ChunkLoss:
        """Prepare for a chunk of the N tokens."""


class HeadLoss(NamedTuple):
    """Scalars, in float32 or float64."""

    loss: Tensor
    """ce_weight * ce + kl_weight * kl, to be differentiated; the labels of this ce are smoothed."""
    ce: Tensor
    """Cross-entropy, mean nats per predicted token; 0 where none is predicted. Never smoothed. Detached."""
    kl: Tensor | None
    """Mean of the divergence over all tokens; None without one. Detached."""


def asked_values(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the values of outputs that the batch asks a token for: (B, T, ...) -> (N, ...); of text all."""
    values = values.flatten(0, 1)
    return values[batch["asked"]] if "asked" in batch else values


def asked_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the tokens that the batch asks for, (N,); of text that after each, and a negative one for the last."""
    return asked_values(output_labels(batch), batch)


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return autocast's type where it is on (never for float64), else the weight's."""
    device_type = weight.device.type
    if torch.is_autocast_enabled(device_type) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return weight.dtype


@torch.compiler.disable
def head_loss(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    divergence: TokenLoss | None = None,
    *,
    ce_weight: float = 1.0,
    kl_weight: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_tokens: int | None = None,
) -> HeadLoss:
    """ce_weight * CE + kl_weight * divergence.

    states: (B, T, D) or (N, D), after the final norm; weight: (V, D); labels: (N,) int64, negative where nothing is
    predicted. CE is the mean over the predicted tokens, the divergence over all N. label_smoothing: e of the target
    (1 - e) label + e / V (Szegedy et al. 2016), as torch's cross_entropy. chunk_tokens: m, chosen if None; it changes
    only cost.

    Products are made in `product_dtype`; all else, and what is added up over chunks, in float32 (float64 for
    float64). The gradients are found here, in grad mode, for what requires one: backward runs once, and has no
    derivative. Nothing waits for a GPU. Raises ValueError for arguments that do not fit together.
    """
    states = states.flatten(0, -2)
    _check(states, weight, labels, divergence, chunk_tokens)
    dtype = product_dtype(weight)
    if dtype == weight.dtype != states.dtype:
        raise ValueError(f"states: expected the weight's type, {weight.dtype}, got {states.dtype}")
    needs = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (states, weight))
    job = _Job(labels, divergence, ce_weight, kl_weight, label_smoothing, chunk_tokens, dtype, needs)
    with torch.autocast(states.device.type, enabled=False):
        loss, ce, kl = _Head.apply(states, weight, job)
    return HeadLoss(loss, ce, None if divergence is None else kl)


class _Job(NamedTuple):
    """Arguments of `head_loss`; needs: a gradient for states, for weight."""

    labels: Tensor
    divergence: TokenLoss | None
    ce_weight: float
    kl_weight: float
    label_smoothing: float
    chunk_tokens: int | None
    dtype: torch.dtype
    needs: tuple[bool, ...]


class _Head(torch.autograd.Function):
    """Loss, CE and divergence; the gradients are found together with them."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, job: _Job) -> tuple[Tensor, Tensor, Tensor]:
        num_tokens, head = len(states), weight.to(job.dtype)
        wide = torch.promote_types(job.dtype, torch.float32)
        grad_states, grad_weight = (
            torch.zeros_like(x, dtype=wide) if need else None
            for x, need in zip((states, weight), job.needs, strict=True)
        )
        num_predicted = (job.labels >= 0).sum().clamp(min=1)
        ce_scale = job.ce_weight * num_tokens / num_predicted.to(wide)
        sums = torch.zeros(3, dtype=wide, device=states.device)
        length = job.chunk_tokens or _num_tokens(CHUNK_LOGITS, head)
        # Written over and over: new memory for every chunk costs more than what is computed in it.
        room = head.new_empty(min(length, num_tokens), len(head))
        for start in range(0, num_tokens, length):
            tokens = slice(start, min(start + length, num_tokens))
            chunk = states[tokens].to(job.dtype)  # (m, D)
            logits = torch.mm(chunk, head.t(), out=room[: len(chunk)])  # (m, V)
            sums += _differentiate(logits, tokens, job, ce_scale)
            if grad_states is not None:
                grad_states[tokens] = logits @ head
            if grad_weight is not None and job.dtype == wide:
                grad_weight.addmm_(logits.t(), chunk)
            elif grad_weight is not None:
                grad_weight += logits.t() @ chunk
        ce, smoothed, kl = sums[0] / num_predicted, sums[1] / num_predicted, sums[2] / max(1, num_tokens)
        ctx.num_tokens, ctx.dtypes = num_tokens, (states.dtype, weight.dtype)
        ctx.save_for_backward(grad_states, grad_weight)
        ctx.mark_non_differentiable(ce, kl)
        return job.ce_weight * smoothed + job.kl_weight * kl, ce, kl

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: what was found in forward would count as constant
            raise RuntimeError("head_loss has no second derivative: call backward without create_graph")
        scale = grad_loss / max(1, ctx.num_tokens)
        # In place, as a copy would be as large as the weight; torch refuses a second backward pass.
        found = (
            None if grad is None else grad.mul_(scale).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *found, None


def _differentiate(logits: Tensor, tokens: slice, job: _Job, ce_scale: Tensor) -> Tensor:
    """Return a chunk's CE, plain and smoothed, and divergence, summed, (3,).

    Leaves N d loss / d logits in place of its logits (m, V): N times, as half precision would round 1 / N away.
    ce_scale: N ce_weight / predicted tokens.
    """
    sums, gradient, smoothing = ce_scale.new_zeros(3), any(job.needs), job.label_smoothing
    chunk_loss = None if job.divergence is None else job.divergence(tokens)
    length = _num_tokens(ROW_LOGITS, logits.t())
    for start in range(0, len(logits), length):
        rows = slice(start, min(start + length, len(logits)))
        labels = job.labels[tokens][rows]
        part = logits[rows].to(sums.dtype).detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            log_q = part.log_softmax(-1)  # (r, V)
            chosen = log_q.gather(1, labels.clamp(min=0)[:, None])[:, 0]
            ce = smoothed = torch.where(labels >= 0, -chosen, 0).sum()
            if smoothing:
                uniform = torch.where(labels >= 0, -log_q.mean(1), 0).sum()
                smoothed = (1 - smoothing) * ce + smoothing * uniform
            kl = torch.zeros_like(ce) if chunk_loss is None else chunk_loss(log_q, rows).sum()
            total = ce_scale * smoothed + job.kl_weight * kl
        sums += torch.stack([ce.detach(), smoothed.detach(), kl.detach()])
        if gradient:
            logits[rows] = torch.autograd.grad(total, part)[0]
    return sums


def _num_tokens(most_logits: dict[str, int], head: Tensor) -> int:
    """Return how many tokens have so many logits, at least 1. head: V first."""
    return max(1, most_logits.get(head.device.type, most_logits["cpu"]) // len(head))


def _check(
    states: Tensor, weight: Tensor, labels: Tensor, divergence: TokenLoss | None, chunk_tokens: int | None
) -> None:
    """Raise ValueError for what does not fit together."""
    num_tokens, width = states.shape
    if weight.dim() != 2 or weight.shape[1] != width:
        raise ValueError(f"weight: expected (V, {width}), got {tuple(weight.shape)}")
    if labels.shape != (num_tokens,):
        raise ValueError(f"labels: expected ({num_tokens},), one for each token, got {tuple(labels.shape)}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens: expected at least 1, got {chunk_tokens}")
    if divergence is not None:
        divergence.require_size(num_tokens, len(weight))
