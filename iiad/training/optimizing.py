"""The optimizer and the schedule of a recipe, and the gradient's norm, clipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from .processes import gather, gather_full, place_like
from .sections import OptimizationSection, StageSection, TrainingSection, count_warmup

__all__ = ["clip_gradient", "gather_optimizer", "load_optimizer", "make_optimizer", "make_schedule"]


def make_optimizer(model: nn.Module, optimization: OptimizationSection, learning_rate: float) -> Optimizer:
    """AdamW over what learns; matrices alone decay: not norms, biases, history weights or relaxation."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": optimization.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (optimization.adam_beta1, optimization.adam_beta2)
    return torch.optim.AdamW(groups, learning_rate, betas, optimization.adam_epsilon, fused=True)


def make_schedule(
    optimizer: Optimizer, optimization: OptimizationSection, length: TrainingSection | StageSection
) -> LRScheduler:
    """transformers' schedule for the recipe's fields."""
    least = optimization.min_lr_ratio
    name: str = length.lr_scheduler_type or optimization.lr_scheduler_type
    options: dict[str, Any] = {}
    if name == "warmup_stable_decay":
        left = length.max_steps - count_warmup(length)
        decay = min(optimization.decay_steps or max(1, length.max_steps // 10), left)
        options = {"num_decay_steps": decay, "min_lr_ratio": least}
    elif least and name == "cosine":
        name, options = "cosine_with_min_lr", {"min_lr_rate": least}
    elif least and name == "linear":
        name, options = "polynomial", {"power": 1.0, "lr_end": least * length.learning_rate}
    return get_scheduler(name, optimizer, count_warmup(length), length.max_steps, options)


def clip_gradient(model: nn.Module, max_norm: float) -> Tensor:
    """Clip the gradient (0: do not) and return its norm before; drop a gradient that is NaN or infinite. Collective.

    An optimizer leaves parameters without gradient, and its state of them, as they are.
    """
    learning = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = gather_full(torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None]))
    if not norm.isfinite():
        for parameter in learning:
            parameter.grad = None
    elif max_norm:
        torch.nn.utils.clip_grads_with_norm_(learning, max_norm, norm)
    return norm


def gather_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state with whole tensors, on the first process. Collective."""
    state = optimizer.state_dict()
    state["state"] = {number: gather(values) for number, values in state["state"].items()}
    return state


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state that `gather_optimizer` returned, sharded as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if value.shape == parameters[number].shape:
                values[name] = place_like(value, parameters[number])
    optimizer.load_state_dict(state)
