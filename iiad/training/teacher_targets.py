"""What a teacher says of N tokens, and how a student's log probabilities compare with it.

Legend: N tokens, m tokens of a chunk, r rows of a chunk, D' the teacher's width, V vocabulary, k kept tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .divergences import Divergence, bucket_slope

__all__ = ["FullComparison", "FullTarget", "TopComparison", "TopTarget"]


class FullTarget(NamedTuple):
    """The teacher's whole distribution, from which its logits are made for one chunk of tokens at a time."""

    states: Tensor
    """(N, D'), after the final norm."""
    weight: Tensor
    """(V, D'), the head's."""


class TopTarget(NamedTuple):
    """The k likeliest tokens and the mass of all others, at the temperature of the distillation."""

    ids: Tensor
    """(N, k) int64, all of a token's k different."""
    log_probs: Tensor
    """(N, k), nats."""
    tail: Tensor
    """(N,), the logarithm of what the kept tokens leave; -inf where that is too little to be a number."""


class FullComparison:
    """A student against a FullTarget, every token its own bucket."""

    def __init__(
        self, target: FullTarget, divergence: Divergence, temperature: float, autocast: torch.dtype | None
    ):
        """autocast: the type of its products, if it is on; else they are made in that of the teacher's weight."""
        self.states, self.weight = target.states, target.weight.to(autocast or target.weight.dtype)
        self.divergence, self.temperature = divergence, temperature
        self.logits = self.weight.new_empty(0, 0)

    def read(self, chunk: slice) -> None:
        """Make the teacher's logits of a chunk, (m, V), over those of the one before."""
        states = self.states[chunk].to(self.weight.dtype)
        if len(self.logits) < len(states):
            self.logits = self.weight.new_empty(len(states), len(self.weight))
        torch.mm(states, self.weight.t(), out=self.logits[: len(states)])

    def compare(self, rows: slice, log_q: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """The divergence of r tokens, (r,), and if asked its slope by the student's tempered logits, (r, V).

        rows: which of the chunk read last. log_q: (r, V), the student's at this temperature.
        """
        logits = self.logits[rows].to(log_q.dtype)
        log_p = (logits if self.temperature == 1 else logits / self.temperature).log_softmax(-1)
        value, weights = self.divergence(log_p, log_q)
        return value, bucket_slope(weights, log_q) if gradient else None


class TopComparison:
    """A student against a TopTarget: a bucket for each kept token and one for all the rest.

    A lower bound of the divergence over the whole vocabulary.
    """

    def __init__(self, target: TopTarget, divergence: Divergence, vocab_size: int, dtype: torch.dtype):
        """dtype: to compute in, float32 or float64."""
        self.ids, self.divergence = target.ids, divergence
        tail = target.tail.to(dtype)
        if target.ids.shape[1] == vocab_size:
            tail = torch.full_like(tail, -math.inf)  # no token is left: what is stored is rounding
        else:  # a mass too small to be stored counts as the smallest one: the student always has some
            tail = tail.clamp(min=math.log(torch.finfo(dtype).tiny))
        self.log_p = torch.cat([target.log_probs.to(dtype), tail[:, None]], -1)  # (N, k + 1)
        self.chunk = slice(0, 0)

    def read(self, chunk: slice) -> None:
        """Turn to a chunk."""
        self.chunk = chunk

    def compare(self, rows: slice, log_q: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """As FullComparison's.

        The rest's mass is added up from its tokens: 1 minus the kept ones would be rounding where it is small.
        """
        ids, log_p = self.ids[self.chunk][rows], self.log_p[self.chunk][rows]
        rest = log_q.scatter(1, ids, -math.inf)  # (r, V)
        tail = rest.logsumexp(-1, keepdim=True).clamp_(min=torch.finfo(rest.dtype).min)
        log_buckets = torch.cat([log_q.gather(1, ids), tail], -1)  # (r, k + 1)
        value, weights = self.divergence(log_p, log_buckets)
        if not gradient:
            return value, None
        slope = bucket_slope(weights, log_buckets)
        shares = rest.sub_(tail).exp_()  # q_v / Q_tail, 0 at the kept tokens
        return value, shares.mul_(slope[:, -1:]).scatter_(1, ids, slope[:, :-1])
