"""The divergence of a student's next-token distribution from its teacher's.

Legend: N tokens, m tokens of a chunk, r rows of it, D' the teacher's width, V vocabulary, k kept tokens, K buckets.

A bucket is one token of the vocabulary, or several whose masses are added. P is the teacher's mass in each, Q the
student's, both (r, K) as logarithms, -inf for no mass at all. Adding masses up never adds divergence (the data
processing inequality), so that few buckets give a lower bound of the divergence over the whole vocabulary: 0 where
the masses agree, and no smaller with every bucket that is split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from iiad.training.head import ChunkLoss, product_dtype

__all__ = [
    "DIVERGENCES",
    "FullTarget",
    "TeacherDivergence",
    "TopTarget",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
]


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(teacher || student) = sum P log(P / Q) (Hinton et al. 2015 up to a constant).

    The student covers all that the teacher may say. Beyond any bound where it has no mass and the teacher has.
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    return _total(log_p.exp() * (log_p - log_q))


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(student || teacher) = sum Q log(Q / P) (Gu et al. 2024, MiniLLM).

    The student keeps to what the teacher finds likely. Beyond any bound where it has mass and the teacher has none.
    """
    return forward_kl(log_q, log_p)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """JSD = 1/2 KL(P || M) + 1/2 KL(Q || M), M = (P + Q) / 2 (Lin 1991). At most ln 2.

    log(P / M) = ln 2 - softplus(log Q - log P), and so for Q: nothing overflows, and 0 is exactly 0 (ours).
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    difference = log_q - log_p
    own = log_p.exp() * (math.log(2) - F.softplus(difference))
    return _total(own + log_q.exp() * (math.log(2) - F.softplus(-difference))) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": jensen_shannon,
}
"""By the names that recipes use: (log P, log Q), each (r, K) -> (r,) nats, differentiable."""


Buckets = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""The student's log-probabilities (r, V) and which rows of the chunk they are -> log P and log Q, each (r, K)."""


class FullTarget(NamedTuple):
    """The teacher's whole distribution, from which its logits are made for one chunk of tokens at a time."""

    states: Tensor
    """(N, D'), after the final norm."""
    weight: Tensor
    """(V, D'), the head's."""

    def buckets(self, tokens: slice, temperature: float) -> Buckets:
        """Every token its own bucket."""
        logits = self.states[tokens].to(self.weight.dtype) @ self.weight.t()  # (m, V)
        return lambda log_q, rows: (_temper(logits[rows].to(log_q.dtype).log_softmax(-1), temperature), log_q)


class TopTarget(NamedTuple):
    """The k likeliest tokens and the mass of all others, at the temperature of the distillation."""

    ids: Tensor
    """(N, k) int64, all of a token's k different."""
    log_probs: Tensor
    """(N, k), nats."""
    tail: Tensor
    """(N,), the logarithm of what the kept tokens leave; -inf where that is too little to be a number."""

    def buckets(self, tokens: slice, temperature: float) -> Buckets:
        """A bucket for each kept token and one for all the rest: a lower bound of the divergence over all tokens."""

        def compare(log_q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            ids, log_p, tail = (x[tokens][rows] for x in self)
            log_p, kept = log_p.to(log_q.dtype), log_q.gather(1, ids)  # (r, k)
            if ids.shape[1] == log_q.shape[1]:
                return log_p, kept  # no token is left: what is stored as tail is rounding
            # The rest's mass is added up from its tokens: 1 minus the kept ones would be rounding where it is small.
            rest = log_q.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
            # A mass too small to be stored counts as the smallest one: the student always has some.
            tail = tail.to(log_q.dtype).clamp(min=math.log(torch.finfo(log_q.dtype).tiny))
            return torch.cat([log_p, tail[:, None]], -1), torch.cat([kept, rest], -1)

        return compare


class TeacherDivergence:
    """temperature^2 * divergence of each token, for `head_loss` to add; the square keeps the gradient's size
    (Hinton et al. 2015).

    Make it where `head_loss` is called: under autocast the teacher's logits are made in autocast's type too.
    """

    def __init__(self, target: FullTarget | TopTarget, kind: str = "forward", temperature: float = 1.0):
        """kind: one of DIVERGENCES, between distributions at `temperature`. Raises ValueError for another."""
        if kind not in DIVERGENCES:
            raise ValueError(f"divergence: expected one of {', '.join(DIVERGENCES)}, got {kind!r}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")
        if isinstance(target, FullTarget):
            target = target._replace(weight=target.weight.to(product_dtype(target.weight)))
        self.target, self.divergence, self.temperature = target, DIVERGENCES[kind], temperature

    def require_size(self, num_tokens: int, vocab_size: int) -> None:
        """Raise ValueError where the target is of other tokens or of another vocabulary."""
        target = self.target
        if len(target[0]) != num_tokens:
            raise ValueError(f"target: expected {num_tokens} tokens, got {len(target[0])}")
        if isinstance(target, FullTarget):
            if len(target.weight) != vocab_size:
                raise ValueError(f"target.weight: expected {vocab_size} tokens, got {len(target.weight)}")
        elif target.log_probs.shape != target.ids.shape:
            raise ValueError(
                f"target.log_probs: expected {tuple(target.ids.shape)}, got {tuple(target.log_probs.shape)}"
            )
        elif target.tail.shape != (num_tokens,):
            raise ValueError(f"target.tail: expected ({num_tokens},), got {tuple(target.tail.shape)}")

    def __call__(self, tokens: slice) -> ChunkLoss:
        """Prepare for a chunk of the N tokens."""
        T, buckets = self.temperature, self.target.buckets(tokens, self.temperature)
        return lambda log_q, rows: T**2 * self.divergence(*buckets(_temper(log_q, T), rows))


def _temper(log_probs: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (r, V) at a temperature, from those at 1."""
    return log_probs if temperature == 1 else (log_probs / temperature).log_softmax(-1)


def _finite(logs: Tensor) -> Tensor:
    """-inf becomes so large a number that its mass is still 0 and 0 times it is 0; NaN stays, to be seen."""
    return logs.clamp(min=torch.finfo(logs.dtype).min / 8)


def _total(terms: Tensor) -> Tensor:
    """Their sum, (r, K) -> (r,); rounding cannot take it below 0, where no divergence is."""
    return terms.sum(-1).clamp(min=0)
