"""What a student learns from its teacher.

Legend: B batch, T tokens, D model width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["hidden_state_loss", "kl_divergence"]

CHUNK_TOKENS = 1024


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student), mean nats per token, in float32 (Hinton et al. 2015; method.md, 5).

    Both logits: (B, T, V). The factor T^2 keeps the gradient's size as the temperature changes. Computed in chunks
    of tokens; the result does not depend on them. 0 at equal logits, never below.
    """
    teacher, student = teacher_logits.flatten(0, 1), student_logits.flatten(0, 1)  # (B * T, V)
    total = student.new_zeros((), dtype=torch.float32)
    for target, output in zip(teacher.split(CHUNK_TOKENS), student.split(CHUNK_TOKENS), strict=True):
        target = F.log_softmax(target.float() / temperature, dim=-1)
        output = F.log_softmax(output.float() / temperature, dim=-1)
        total = total + F.kl_div(output, target, reduction="sum", log_target=True)
    return temperature**2 * total / teacher.shape[0]


def hidden_state_loss(teacher_states: Sequence[Tensor], student_states: Sequence[Tensor]) -> Tensor:
    """Mean squared error over all L + 1 hidden states, each (B, T, D), in float32 (method.md, 5; ours)."""
    errors = [
        F.mse_loss(student.float(), teacher.float())
        for teacher, student in zip(teacher_states, student_states, strict=True)
    ]
    return torch.stack(errors).mean()
