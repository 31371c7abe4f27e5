"""How far two outputs of a layer are apart, and how its iteration runs.

Legend: B batch, T tokens, D model width, t the layer, i the iteration, z(i) its iterates, x_{t+1}(i) the output of
layer t stopped after iteration i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from .profile import FixedPoint

__all__ = ["ITERATE_METRICS", "cosine", "fixed_point", "relative_l2", "wide"]


def cosine(before: Tensor, after: Tensor) -> float:
    """1 - mean over tokens of cos(before, after), in [0, 2]: the paper's kind of score, like ShortGPT's.

    before, after: x_{t+1}(i - 1) and x_{t+1}(i), each (B, T, D). Computed as |a/|a| - b/|b||^2 / 2, which equals
    1 - cos and stays exact where the cosine is so near to 1 that the difference would be rounding alone.
    """
    gap = F.normalize(wide(before), dim=-1) - F.normalize(wide(after), dim=-1)  # (B, T, D)
    return gap.square().sum(-1).mean(dtype=torch.float64).item() / 2


def relative_l2(before: Tensor, after: Tensor) -> float:
    """Mean over tokens of |after - before| / |before|: the fixed-point residual of the layer's output (ours).

    before, after: x_{t+1}(i - 1) and x_{t+1}(i), each (B, T, D). 0 where nothing changes, also from zero.
    """
    before, after = wide(before), wide(after)
    return _ratio((after - before).norm(dim=-1), before.norm(dim=-1)).mean(dtype=torch.float64).item()


ITERATE_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"cosine": cosine, "relative_l2": relative_l2}
"""Metrics of one layer's outputs: f(x_{t+1}(i - 1), x_{t+1}(i)) is the score of iteration i."""


def fixed_point(iterates: Sequence[Tensor]) -> FixedPoint:
    """How z(0), ..., z(r), each (B, T, D), approach each other or do not (ours; the terms are those of Picard).

    A residual is a mean over tokens, relative; a contraction is the ratio of the mean lengths of two successive
    changes (a mean of ratios would hang on the tokens that hardly change); a turn is the mean cosine between
    them. Where nothing changes, they are 0.
    """
    residuals = [relative_l2(a, b) for a, b in pairwise(iterates)]
    contractions, turns = [], []
    for a, b, c in zip(iterates, iterates[1:], iterates[2:], strict=False):
        earlier, later = wide(b) - wide(a), wide(c) - wide(b)  # (B, T, D)
        lengths = torch.stack([earlier.norm(dim=-1), later.norm(dim=-1)]).flatten(1).double()  # (2, B * T)
        contractions.append(_ratio(lengths[1].mean(), lengths[0].mean()).item())
        turns.append(F.cosine_similarity(earlier, later, dim=-1, eps=1e-30).mean(dtype=torch.float64).item())
    return FixedPoint(residuals=residuals, contractions=contractions, turns=turns)


def wide(states: Tensor) -> Tensor:
    """In float32, or float64 where they are that."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 for 0 / 0."""
    return torch.where(above == 0, 0.0, above / below)
