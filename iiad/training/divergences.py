"""How far apart two distributions are, and which way the student has to go.

Legend: N tokens, K buckets, V vocabulary.

A bucket is one token of the vocabulary, or several whose masses are added. P is the teacher's mass in each, Q the
student's, both (N, K) as logarithms, -inf for no mass at all. Every divergence gives its value F per token, in nats,
and the weights w_b = Q_b dF/dQ_b, all that a gradient needs: by the logit of token v in bucket b (ours)

    dF / d logit_v = (q_v / Q_b) (w_b - Q_b sum_c w_c)

Adding masses up never adds divergence (the data processing inequality), so that few buckets give a lower bound of
the divergence over the whole vocabulary: 0 where the masses agree, and no smaller with every bucket that is split.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["DIVERGENCES", "Divergence", "bucket_slope", "forward_kl", "jensen_shannon", "reverse_kl"]

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log P, log Q), each (N, K) -> F (N,) in nats and w (N, K)."""


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) = sum P log(P / Q); w = -P (Hinton et al. 2015 up to a constant).

    The student covers all that the teacher may say. Beyond any bound where it has no mass and the teacher has.
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    p = log_p.exp()
    return _total(p * (log_p - log_q)), p.neg_()


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || teacher) = sum Q log(Q / P); w = Q (log Q - log P + 1) (Gu et al. 2024, MiniLLM).

    The student keeps to what the teacher finds likely. Beyond any bound where it has mass and the teacher has none.
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    q = log_q.exp()
    terms = (log_q - log_p).mul_(q)
    return _total(terms), q.add_(terms)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """JSD = 1/2 KL(P || M) + 1/2 KL(Q || M), M = (P + Q) / 2; w = Q/2 log(Q / M) (Lin 1991). At most ln 2.

    With d = log P - log Q the larger of P and Q is M e^u, u = -log((1 + e^-|d|) / 2) from 0 to ln 2, and the
    smaller one M e^(u - |d|): nothing overflows, and 0 is exactly 0 (ours).
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    difference = log_p - log_q
    larger = difference.abs().neg_().expm1_().div_(2).log1p_().neg_()  # u
    weights = (larger - difference.clamp(min=0)).mul_(log_q.exp()).div_(2)
    terms = difference.clamp_(max=0).add_(larger).mul_(log_p.exp()).div_(2)
    return _total(terms.add_(weights)), weights


DIVERGENCES: dict[str, Divergence] = {"forward": forward_kl, "reverse": reverse_kl, "jsd": jensen_shannon}
"""By the names that recipes use."""


def bucket_slope(weights: Tensor, log_q: Tensor) -> Tensor:
    """w_b - Q_b sum_c w_c: dF by a logit that all of a bucket's tokens share, (N, K). weights, log_q: (N, K)."""
    return torch.addcmul(weights, log_q.exp(), weights.sum(-1, keepdim=True), value=-1)


def _finite(logs: Tensor) -> Tensor:
    """-inf becomes so large a number that its mass is still 0 and 0 times it is 0; NaN stays, to be seen."""
    return logs.clamp(min=torch.finfo(logs.dtype).min / 8)


def _total(terms: Tensor) -> Tensor:
    """Their sum, (N, K) -> (N,); rounding cannot take it below 0, where no divergence is."""
    return terms.sum(-1).clamp_(min=0)
