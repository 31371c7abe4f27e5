"""The language-modelling head and its losses, a chunk of tokens at a time.

Legend: B batch, T tokens of a block, N = B T, m tokens of a chunk, r rows of a chunk, D model width, V vocabulary.

The logits of a whole batch, (N, V), would be the largest tensor of a training step by far, and so would their
gradient. Here both exist for m tokens only: each chunk's logits are turned into their own gradient where they lie,
and that at once into the gradients of the final states and of the head's weight (as in the fused linear
cross-entropy of Hsu et al. 2024, Liger Kernel). Backward then only scales what forward has found.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .divergences import DIVERGENCES
from .head_gradients import HeadGradients
from .teacher_targets import FullComparison, FullTarget, TopComparison, TopTarget

__all__ = ["HeadLoss", "choose_chunk_tokens", "head_loss", "next_token_labels"]

CHUNK_NUMBERS = {"cpu": 1 << 23, "cuda": 1 << 25}
"""Logits that are made at a time."""

ROW_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Of those, what a core or a GPU works on at a time, with several copies: near a core's cache, and yet so many that
threads seldom wait for each other."""

MOST_CORES = 4
"""As many cores' rows are taken at a time; more share them, so that the copies stay small beside a chunk."""


class HeadLoss(NamedTuple):
    """Scalars, in float32 or float64."""

    loss: Tensor
    """ce_weight * ce + kl_weight * kl, to be differentiated."""
    ce: Tensor
    """Cross-entropy, mean nats per predicted token; 0 where none is predicted. Detached."""
    kl: Tensor | None
    """temperature^2 * divergence from the teacher, mean nats per token; None without one. Detached."""


def next_token_labels(input_ids: Tensor) -> Tensor:
    """What each token has to predict, (B, T) -> (B * T,) int64: the next one, and -1 at the end of each block."""
    labels = torch.full_like(input_ids, -1, dtype=torch.long)
    labels[:, :-1] = input_ids[:, 1:]
    return labels.flatten()


def choose_chunk_tokens(num_tokens: int, vocab_size: int, device_type: str) -> int:
    """m: as many tokens as a fixed number of logits allows, at least 1."""
    numbers = CHUNK_NUMBERS.get(device_type, CHUNK_NUMBERS["cpu"])
    return max(1, min(num_tokens, numbers // vocab_size))


@torch.compiler.disable
def head_loss(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    target: FullTarget | TopTarget | None = None,
    *,
    ce_weight: float = 1.0,
    kl_weight: float = 0.0,
    divergence: str = "forward",
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> HeadLoss:
    """ce_weight * CE + kl_weight * temperature^2 * divergence of the teacher and the student.

    states: (B, T, D) or (N, D), after the final norm; weight: (V, D); labels: (N,) int64, negative where nothing is
    predicted. target: what the teacher says of the N tokens. divergence: one of DIVERGENCES, between distributions at
    `temperature`; its square keeps the gradient's size (Hinton et al. 2015). CE is the mean over the predicted
    tokens, at temperature 1; the divergence that over all N. chunk_tokens: m, chosen if None; nothing depends on it
    but cost.

    Products are made in the type of states and weight, or in autocast's; all else, and what is added up over chunks,
    in float32 (float64 for float64). The gradients are found here, where grad mode is on and for what requires one:
    backward may be called once, and has no derivative. Nothing waits for a GPU.
    Raises ValueError for arguments that do not fit together.
    """
    states = states.flatten(0, -2)
    _check(states, weight, labels, target, divergence, temperature, chunk_tokens)
    device_type = states.device.type
    autocast = None
    if torch.is_autocast_enabled(device_type) and weight.dtype != torch.float64:
        autocast = torch.get_autocast_dtype(device_type)
    elif states.dtype != weight.dtype:
        raise ValueError(f"states must have the weight's type ({weight.dtype}), found {states.dtype}")
    job = _Job(target, ce_weight, kl_weight, divergence, temperature, chunk_tokens, autocast)
    needs = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (states, weight))
    with torch.autocast(device_type, enabled=False):
        loss, ce, kl = _HeadFunction.apply(states, weight, labels, job, needs)
    return HeadLoss(loss, ce, None if target is None else kl)


class _Job(NamedTuple):
    """What `head_loss` was asked for; autocast: the type of its products, if it is on."""

    target: FullTarget | TopTarget | None
    ce_weight: float
    kl_weight: float
    divergence: str
    temperature: float
    chunk_tokens: int | None
    autocast: torch.dtype | None


class _HeadFunction(torch.autograd.Function):
    """Finds the gradients together with the loss."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, job: _Job, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = _Head(weight, labels, job, needs, len(states))
        loss, ce, kl = head.run(states)
        gradients = head.gradients
        ctx.gradients = (gradients.states, gradients.weight)
        ctx.dtypes = (states.dtype, weight.dtype)
        ctx.mark_non_differentiable(ce, kl)
        ctx.set_materialize_grads(False)
        return loss, ce, kl

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: what was found here would count as constant
            raise RuntimeError("head_loss has no second derivative: backward must be without create_graph")
        if grad_loss is None:
            return None, None, None, None, None
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of head_loss were given away by an earlier backward pass; call head_loss again"
            )
        found, ctx.gradients = ctx.gradients, None  # scaled in place: a copy would be as large as the weight
        scaled = [
            None if gradient is None else _scale(gradient, grad_loss).to(dtype)
            for gradient, dtype in zip(found, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def _scale(gradient: Tensor, factor: Tensor) -> Tensor:
    """gradient * factor, in place. factor: a scalar."""
    if factor.device.type == "cpu" and factor.item() == 1:  # on a GPU to ask would be to wait
        return gradient
    return gradient.mul_(factor)


class _Head:
    """One call of `head_loss`."""

    def __init__(self, weight: Tensor, labels: Tensor, job: _Job, needs: tuple[bool, bool], num_tokens: int):
        self.job, self.labels = job, labels
        self.weight = weight.to(job.autocast or weight.dtype)  # once, not in each chunk
        self.wide = torch.promote_types(self.weight.dtype, torch.float32)
        self.gradients = HeadGradients((num_tokens, *weight.shape), weight.device, self.wide, needs)
        self.needs_slope = any(needs)
        predicted = (labels >= 0).to(self.wide)
        self.num_predicted = predicted.sum().clamp(min=1)
        self.ce_scale = predicted * (job.ce_weight * num_tokens) / self.num_predicted  # (N,)
        self.comparison = self._comparison()

    def run(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """states: (N, D) -> loss, CE and divergence; the gradients lie in `gradients` then."""
        job, (num_tokens, _), vocab_size = self.job, states.shape, len(self.weight)
        length = job.chunk_tokens or choose_chunk_tokens(num_tokens, vocab_size, states.device.type)
        values = torch.zeros(2, num_tokens, dtype=self.wide, device=states.device)
        # Written over and over: memory that is new for every chunk costs more than what is computed in it.
        logits = self.weight.new_empty(min(length, num_tokens), vocab_size)  # (m, V)
        for start in range(0, num_tokens, length):
            chunk = slice(start, min(start + length, num_tokens))
            self._run_chunk(
                chunk, states[chunk].to(self.weight.dtype), logits[: chunk.stop - start], values[:, chunk]
            )
        ce = values[0].sum() / self.num_predicted
        kl = values[1].sum() * (job.temperature**2 / max(1, num_tokens))
        return job.ce_weight * ce + job.kl_weight * kl, ce, kl

    def _run_chunk(self, chunk: slice, states: Tensor, logits: Tensor, values: Tensor) -> None:
        """states: (m, D); logits: (m, V), room for them; values: (2, m), where each token's losses go."""
        torch.mm(states, self.weight.t(), out=logits)
        if self.comparison is not None:
            self.comparison.read(chunk)
        for rows in self._row_blocks(logits):
            self._run_rows(
                rows, logits[rows], self.labels[chunk][rows], self.ce_scale[chunk][rows], values[:, rows]
            )
        if self.needs_slope:
            self.gradients.add(chunk, logits, states, self.weight)

    def _run_rows(
        self, rows: slice, logits: Tensor, labels: Tensor, ce_scale: Tensor, values: Tensor
    ) -> None:
        """Turn r tokens' logits, (r, V), into N d loss / d logits. labels, ce_scale: (r,); values: (2, r)."""
        job = self.job
        log_q = logits.to(self.wide).log_softmax(-1)
        chosen = labels.clamp(min=0)[:, None]
        values[0] = torch.where(labels >= 0, log_q.gather(1, chosen)[:, 0].neg(), 0.0)
        slope = None
        if self.comparison is not None:
            tempered = log_q
            if job.temperature != 1:
                tempered = (logits.to(self.wide) / job.temperature).log_softmax(-1)
            values[1], slope = self.comparison.compare(
                rows, tempered, self.needs_slope and job.kl_weight != 0
            )
        if not self.needs_slope:
            return
        total = log_q.exp_().mul_(ce_scale[:, None])
        total.scatter_(1, chosen, total.gather(1, chosen) - ce_scale[:, None])
        if slope is not None:
            total.add_(slope, alpha=job.kl_weight * job.temperature)
        logits.copy_(total)

    def _row_blocks(self, logits: Tensor) -> list[slice]:
        if logits.device.type == "cuda":
            numbers = ROW_NUMBERS["cuda"]
        else:
            numbers = ROW_NUMBERS["cpu"] * min(MOST_CORES, torch.get_num_threads())
        length = max(1, numbers // logits.shape[1])
        starts = range(0, len(logits), length)
        return [slice(start, min(start + length, len(logits))) for start in starts]

    def _comparison(self) -> FullComparison | TopComparison | None:
        job = self.job
        if job.target is None:
            return None
        divergence = DIVERGENCES[job.divergence]
        if isinstance(job.target, TopTarget):
            return TopComparison(job.target, divergence, len(self.weight), self.wide)
        return FullComparison(job.target, divergence, job.temperature, job.autocast)


def _check(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    target: FullTarget | TopTarget | None,
    divergence: str,
    temperature: float,
    chunk_tokens: int | None,
) -> None:
    """Raise ValueError for what does not fit together."""
    num_tokens, width = states.shape
    if weight.dim() != 2 or weight.shape[1] != width:
        raise ValueError(f"weight must be (V, {width}), found {tuple(weight.shape)}")
    if labels.shape != (num_tokens,):
        raise ValueError(f"labels must be ({num_tokens},), one for each token, found {tuple(labels.shape)}")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, found {divergence!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, found {chunk_tokens}")
    if target is not None and len(target[0]) != num_tokens:
        raise ValueError(f"target must be of {num_tokens} tokens, found {len(target[0])}")
    if isinstance(target, TopTarget) and not (
        target.ids.shape == target.log_probs.shape and target.tail.shape == (num_tokens,)
    ):
        raise ValueError(
            f"target must have log_probs of {tuple(target.ids.shape)}, as its ids, and a tail of ({num_tokens},), "
            f"found {tuple(target.log_probs.shape)} and {tuple(target.tail.shape)}"
        )
    if isinstance(target, FullTarget) and len(target.weight) != len(weight):
        raise ValueError(f"target.weight must be of {len(weight)} tokens, found {len(target.weight)}")
