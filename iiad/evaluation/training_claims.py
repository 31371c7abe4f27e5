"""Claims about training: recomputing activations or splitting a batch changes neither loss nor gradients.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .claims import GRADIENT, Claim, Skipped, Subject, worst

__all__ = ["TRAINING", "Gradients", "gradient_difference"]


class Gradients(NamedTuple):
    """A loss, and its gradient by each parameter that has one."""

    loss: float
    by_parameter: dict[str, Tensor]


def recomputed(subject: Subject, unit: str) -> float:
    """Recompute each "layer" or "evaluation" in the backward pass, or nothing.

    In training mode with its dropout: the same seed, so that it must come out the same again.
    """
    switch = _recompute_switch(subject.model, unit)
    model = subject.model.train()
    try:
        wanted = _seeded_gradients(subject)
        switch(True)
        found = _seeded_gradients(subject)
    finally:
        switch(False)
        model.eval()
    return gradient_difference(found, wanted)


def accumulated(subject: Subject) -> float:
    """Sum the gradients of a batch's halves, weighted by their numbers of tokens, or take the whole batch's.

    The numbers differ: half of the second half's tokens have no label. Where the forward takes
    `num_items_in_batch`, as training loops of transformers give it, its way of weighting is checked as well.
    """
    labels, count = subject.training_tokens.clone(), subject.inputs.count_labels
    middle = len(labels) // 2
    labels[middle:, : labels.shape[1] // 2] = -100
    total = count(labels)
    wanted = _gradients(subject, labels, [(slice(0, None), 1.0)])
    halves = [slice(0, middle), slice(middle, None)]
    found = [_gradients(subject, labels, [(half, count(labels[half]) / total) for half in halves])]
    parameters = inspect.signature(subject.model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        parts = [(half, 1.0) for half in halves]
        found.append(_gradients(subject, labels, parts, num_items_in_batch=total))
    return worst(gradient_difference(gradients, wanted) for gradients in found)


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


def _recompute_switch(model: Any, unit: str) -> Callable[[bool], None]:
    """Return what turns recomputing on and off. Raises Skipped for a model that cannot."""
    if hasattr(model, "set_recompute"):
        return lambda on: model.set_recompute(unit if on else "none")
    if unit == "evaluation":
        raise Skipped(f"a {model.config.model_type} has no iterations")
    if not model.supports_gradient_checkpointing:
        raise Skipped(f"{type(model).__name__} supports no gradient checkpointing")
    # transformers 5.23 has another name for it than 5.17
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    options = {f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}}
    enable = partial(getattr(model, f"{prefix}_checkpointing_enable"), **options)
    disable = getattr(model, f"{prefix}_checkpointing_disable")
    return lambda on: enable() if on else disable()


def _seeded_gradients(subject: Subject) -> Gradients:
    model = subject.model
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(subject.settings.seed)
        return _gradients(subject, subject.training_tokens, [(slice(0, None), 1.0)])


def _gradients(
    subject: Subject, labels: Tensor, parts: Sequence[tuple[slice, float]], **options: Any
) -> Gradients:
    """Return the sum of scale * loss and its gradients over parts of the training tokens, each rows and scale.

    labels: (2 B, T), of all rows.
    """
    model = subject.model
    model.zero_grad(set_to_none=True)
    total = 0.0
    try:
        for rows, scale in parts:
            given = subject.inputs.arrange(subject.training_tokens[rows], rows)
            loss = scale * model(**given, labels=labels[rows], use_cache=False, **options).loss
            loss.backward()
            total += loss.item()
        named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
    return Gradients(total, named)


TRAINING = [
    Claim("recompute by layer = none", GRADIENT, False, partial(recomputed, unit="layer")),
    Claim("recompute by evaluation = none", GRADIENT, False, partial(recomputed, unit="evaluation")),
    Claim("accumulated = whole batch", GRADIENT, False, accumulated),
]
