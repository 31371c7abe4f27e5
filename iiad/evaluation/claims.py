"""Claims about a model, and the figures that decide them. All definitions here are ours.

Two exact ways to the same logits differ by the order in which they sum, a fault by much more: the bound on rounding
(`checks.ROUNDING_BOUNDS`) lies between. Logit differences are relative to the standard deviation of the logits.

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .check_subject import Subject

__all__ = ["Claim", "Gradients", "Skipped", "count_unlikely_tokens", "gradient_difference", "worst"]

LOGITS, GRADIENT = "of logits' std", "of gradient"
TOKENS, CONTENT, LAYERS, FIELDS = "tokens", "tensors, fields", "layers", "fields"
"""Units of figures."""


class Skipped(Exception):  # noqa: N818  # nothing went wrong
    """A claim does not apply to this model or cannot be checked here; the message is the reason."""


@dataclass(frozen=True)
class Claim:
    """One property that must hold for a model.

    Attributes:
        name: the property, as "cached = uncached".
        unit: of the figure.
        exact: the figure must be 0; otherwise it may reach the bound on rounding.
        measure: returns the figure, 0 where the claim holds exactly. Raises Skipped where it does not apply; any
            other error means that the claim fails.
    """

    name: str
    unit: str
    exact: bool
    measure: Callable[[Subject], float]


class Gradients(NamedTuple):
    """A loss, and its gradient by each parameter that has one."""

    loss: float
    by_parameter: dict[str, Tensor]


def count_unlikely_tokens(chosen: Tensor, logits: Tensor, margin: float) -> int:
    """Count tokens whose logit is below the highest by more than the margin, or NaN.

    chosen: (B, T); logits: (B, T, V) from which each should have been chosen.
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
    """Return the largest figure, or NaN if there is any, which max() may miss."""
    return max(figures, key=lambda figure: (math.isnan(figure), figure))
