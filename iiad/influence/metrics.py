"""The influence metrics: how far two outputs of a layer, or of the model, are apart.

Legend: B batch, T tokens, D model width, V vocabulary, t the layer, i the iteration, x_{t+1}(i) the output of
layer t stopped after iteration i.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ITERATE_METRICS", "OUTPUT_METRICS", "cosine", "kl"]

CHUNK_NUMBERS = 1 << 22
"""Logits that `kl` converts at a time: 16 MiB for each of its few float32 copies."""


def cosine(before: Tensor, after: Tensor) -> float:
    """1 - mean over tokens of cos(before, after), in [0, 2]: the paper's kind of score, like ShortGPT's.

    before, after: x_{t+1}(i - 1) and x_{t+1}(i), each (B, T, D). Computed as |a/|a| - b/|b||^2 / 2, which equals
    1 - cos and stays exact where the cosine is so near to 1 that the difference would be rounding alone.
    """
    wide = torch.promote_types(before.dtype, torch.float32)
    gap = F.normalize(before.to(wide), dim=-1) - F.normalize(after.to(wide), dim=-1)  # (B, T, D)
    return gap.square().sum(-1).mean(dtype=torch.float64).item() / 2


def kl(full: Tensor, stopped: Tensor) -> float:
    """Mean over tokens of KL(full || stopped), in nats; 0 for identical logits (ours: the exact output metric).

    full, stopped: logits (B, T, V) of any float type. Computed in float32 (float64 for float64 logits) over a few
    tokens at a time, so that no copy of all the logits is made.
    """
    full, stopped = full.flatten(0, 1), stopped.flatten(0, 1)  # (B * T, V), views
    size = max(1, CHUNK_NUMBERS // full.shape[-1])
    chunks = zip(full.split(size), stopped.split(size), strict=True)
    return sum(_token_kl(p, q).sum(dtype=torch.float64).item() for p, q in chunks) / len(full)


def _token_kl(full: Tensor, stopped: Tensor) -> Tensor:
    """KL of each token: (n, V) logits -> (n,).

    Summed as p (e^d - 1 - d) with d = log q - log p: the same, as p and q both sum to 1. But no term is negative
    and a rounding error of either normaliser drops out to first order; the usual p (log p - log q) has it in
    full, as large as the influence of an iteration that has nearly converged.
    """
    wide = torch.promote_types(full.dtype, torch.float32)
    log_p, log_q = full.to(wide).log_softmax(-1), stopped.to(wide).log_softmax(-1)
    p, difference = log_p.exp(), log_q - log_p
    near = p * (torch.expm1(difference) - difference)
    far = log_q.exp() - p - p * difference  # where e^d may overflow though q = p e^d does not
    return torch.where(difference.abs() < 1, near, far).sum(-1)


ITERATE_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"cosine": cosine}
"""Metrics of one layer's outputs: f(x_{t+1}(i - 1), x_{t+1}(i)) is the score of iteration i."""

OUTPUT_METRICS: dict[str, Callable[[Tensor, Tensor, Tensor], float]] = {
    "kl": lambda full, stopped, input_ids: kl(full, stopped),
}
"""Metrics of the model's output: harm(full logits, stopped logits, input ids), 0 for the full model.

The score of iteration i is the harm of stopping at i - 1 less that of stopping at i.
"""
