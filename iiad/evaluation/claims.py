"""What a claim is, and the figures that decide about it. All definitions here are ours.

Logits are compared by their largest difference, relative to the standard deviation of the model's logits: an absolute
difference would say nothing about a model whose logits are large. Two exact ways to the same number differ by the
order in which they sum, and a fault by much more: the bound on rounding (`runner.ROUNDING_BOUNDS`) lies between.

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .check_subject import Subject

__all__ = [
    "CONTENT",
    "FIELDS",
    "GRADIENT",
    "LAYERS",
    "LOGITS",
    "TOKENS",
    "Claim",
    "Gradients",
    "Skipped",
    "count_unlikely_tokens",
    "gradient_difference",
    "logit_difference",
    "worst",
]


LOGITS, GRADIENT = "of logits' std", "of gradient"
TOKENS, CONTENT, LAYERS, FIELDS = "tokens", "tensors, fields", "layers", "fields"
"""Units of figures."""


class Skipped(Exception):  # noqa: N818  # nothing went wrong
    """A claim does not apply to this model or cannot be checked here; the message is the reason."""


@dataclass(frozen=True)
class Claim:
    """One thing that must hold for a model.

    Attributes:
        name: the claim itself, as "cached = uncached".
        unit: what the figure is.
        exact: whether the figure must be 0; otherwise it may reach the bound on rounding.
        measure: gives the figure, 0 where the claim holds exactly. Raises Skipped where it does not apply; any
            other error means that the claim fails.
    """

    name: str
    unit: str
    exact: bool
    measure: Callable[[Subject], float]


@dataclass(frozen=True)
class Gradients:
    """A loss, and its gradient by each parameter that has one."""

    loss: float
    by_parameter: dict[str, Tensor]

    def __add__(self, other: Gradients) -> Gradients:
        summed = dict(self.by_parameter)
        for name, gradient in other.by_parameter.items():
            summed[name] = summed[name] + gradient if name in summed else gradient
        return Gradients(self.loss + other.loss, summed)


def logit_difference(found: Tensor, wanted: Tensor, deviation: float) -> float:
    """Largest |found - wanted| / deviation, the standard deviation of the model's logits; both of one shape."""
    if found.shape != wanted.shape:
        raise ValueError(f"found shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    # In float64, so that small differences of bfloat16 logits are not rounded away.
    return float((found.double() - wanted.double()).abs().max()) / deviation


def count_unlikely_tokens(chosen: Tensor, logits: Tensor, margin: float) -> int:
    """How many tokens were not the likeliest, by more than the margin.

    chosen: (B, T); logits: (B, T, V) from which each should have been chosen. margin: where two logits lie closer
    than that, either is the likeliest up to rounding.
    """
    logits = logits.double()
    behind = logits.amax(-1) - logits.gather(-1, chosen[..., None])[..., 0]  # (B, T)
    return int((~(behind <= margin)).sum())  # so that NaN counts


def gradient_difference(found: Gradients, wanted: Gradients) -> float:
    """Largest over parameters of |g - g'| / (|g'| + |all gradients| / 100), by Euclidean norms, or of the losses.

    Relative to each parameter's own gradient, so that a small parameter (a relaxation, a norm) counts as much as
    an embedding; the second term is for gradients that are nothing but rounding.
    """
    others, own = wanted.by_parameter, found.by_parameter
    if own.keys() != others.keys():
        odd = sorted(own.keys() ^ others.keys())
        raise ValueError(f"{odd[0]} has a gradient in one of the two only")
    floor = torch.stack([gradient.norm() for gradient in others.values()]).norm() / 100
    figures = [abs(found.loss - wanted.loss) / abs(wanted.loss)]
    for name, gradient in others.items():
        figures.append(float((own[name] - gradient).norm() / (gradient.norm() + floor)))
    return worst(figures)


def worst(figures: Iterable[float]) -> float:
    """The largest, or NaN if there is any, of which max() may lose sight."""
    return max(figures, key=lambda figure: (math.isnan(figure), figure))
