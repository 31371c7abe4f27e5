"""Claims about training: neither recomputing nor cutting up a batch changes loss or gradient.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .check_subject import Subject
from .claims import GRADIENT, Claim, Gradients, Skipped, gradient_difference, worst

__all__ = ["TRAINING"]


def recomputed(subject: Subject, recompute: str) -> float:
    """Loss and gradients with the unit computed again in the backward pass ("layer", "evaluation"), against none.

    In training mode with its dropout: the same seed, so that it must come out the same again.
    """
    switch = _recompute_switch(subject.model, recompute)
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
    """Gradient of a batch's mean loss, against its halves' gradients, weighted by their numbers of tokens.

    The halves have different numbers: half of the second one's tokens have no label. Where the forward takes
    `num_items_in_batch`, as transformers' Trainer gives it, its way of weighting is checked as well.
    """
    model, tokens = subject.model, subject.training_tokens
    labels = tokens.clone()
    labels[len(labels) // 2 :, : labels.shape[1] // 2] = -100
    total = _count_labels(labels)
    wanted = _gradients(model, tokens, labels)
    halves = list(zip(tokens.chunk(2), labels.chunk(2), strict=True))
    by_hand = [_gradients(model, *half, scale=_count_labels(half[1]) / total) for half in halves]
    ways = [by_hand]
    if any(kind.kind is kind.VAR_KEYWORD for kind in inspect.signature(model.forward).parameters.values()):
        ways.append([_gradients(model, *half, num_items_in_batch=total) for half in halves])
    return worst(gradient_difference(first + second, wanted) for first, second in ways)


def _recompute_switch(model: Any, recompute: str) -> Callable[[bool], None]:
    """What turns recomputing by that unit on and off. Raises Skipped for a model that cannot."""
    if hasattr(model, "set_recompute"):
        return lambda on: model.set_recompute(recompute if on else "none")
    if recompute == "evaluation":
        raise Skipped(f"a {model.config.model_type} has no iterations")
    if not model.supports_gradient_checkpointing:
        raise Skipped(f"{type(model).__name__} supports no gradient checkpointing")

    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"

    def switch(on: bool) -> None:  # transformers 5.23 has another name for it than 5.17
        if on:
            options = {f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}}
            getattr(model, f"{prefix}_checkpointing_enable")(**options)
        else:
            getattr(model, f"{prefix}_checkpointing_disable")()

    return switch


def _seeded_gradients(subject: Subject) -> Gradients:
    with torch.random.fork_rng(devices=_cuda_devices(subject.model)):
        torch.manual_seed(subject.settings.seed)
        return _gradients(subject.model, subject.training_tokens, subject.training_tokens)


def _cuda_devices(model: Any) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []


def _gradients(
    model: Any, tokens: Tensor, labels: Tensor, *, scale: float = 1.0, **options: Any
) -> Gradients:
    """scale * loss and its gradients; tokens, labels: (B, T)."""
    model.zero_grad(set_to_none=True)
    try:
        loss = scale * model(input_ids=tokens, labels=labels, use_cache=False, **options).loss
        loss.backward()
        named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
    return Gradients(loss.item(), named)


def _count_labels(labels: Tensor) -> int:
    """Tokens that a loss is taken of: those with a label and a token before it."""
    return int((labels[:, 1:] != -100).sum())


TRAINING = [
    Claim("recompute by layer = none", GRADIENT, False, partial(recomputed, recompute="layer")),
    Claim("recompute by evaluation = none", GRADIENT, False, partial(recomputed, recompute="evaluation")),
    Claim("accumulated = whole batch", GRADIENT, False, accumulated),
]
