"""What a student learns from its teacher.

Legend: B batch, T tokens, D model width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["hidden_state_loss", "kl_divergence"]


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student), mean nats per token, in float32 (Hinton et al. 2015; the paper's stage 1).

    Both logits: (B, T, V). The factor T^2 keeps the gradient's size as the temperature changes. 0 at equal logits;
    next to that, rounding may take it some 1e-7 below. For measuring there is `iiad.influence.metrics.kl`.
    """
    target = F.log_softmax(teacher_logits.flatten(0, 1).float() / temperature, dim=-1)  # (B * T, V)
    output = F.log_softmax(student_logits.flatten(0, 1).float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(output, target, reduction="batchmean", log_target=True)


def hidden_state_loss(teacher_states: Sequence[Tensor], student_states: Sequence[Tensor]) -> Tensor:
    """Mean squared error over all L + 1 hidden states, each (B, T, D), in float32 (ours)."""
    errors = [
        F.mse_loss(student.float(), teacher.float())
        for teacher, student in zip(teacher_states, student_states, strict=True)
    ]
    return torch.stack(errors).mean()
