"""Losses between a student's and its teacher's hidden states.

Legend: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["HIDDEN_LOSSES", "hidden_state_loss"]


def _cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cos, mean over tokens, as half the squared distance of the two directions.

    So it is exactly 0, with no gradient, at equality, states of zeros included.
    """
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return difference.square().sum(-1).mean() / 2


HIDDEN_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "cosine": _cosine_loss,
}
"""Each (B, T, D) twice -> scalar, 0 at equality."""


def hidden_state_loss(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    kind: str = "mse",
) -> Tensor:
    """Return the mean loss over hidden states, each (B, T, D), in float32 (ours).

    kind: one of HIDDEN_LOSSES. Raises ValueError for another kind, for no states, and for states that are not equally
    many and of equal shapes.
    """
    if kind not in HIDDEN_LOSSES:
        raise ValueError(f"kind: expected one of {', '.join(HIDDEN_LOSSES)}, got {kind!r}")
    if len(teacher_states) != len(student_states):
        raise ValueError(
            f"student_states: expected {len(teacher_states)}, as many as the teacher's, got {len(student_states)}"
        )
    if not teacher_states:
        raise ValueError("teacher_states: expected at least one, got none")
    loss, pairs = HIDDEN_LOSSES[kind], zip(student_states, teacher_states, strict=True)
    return torch.stack([loss(*_pair(*pair, number)) for number, pair in enumerate(pairs)]).mean()


def _pair(student: Tensor, teacher: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return both in float32. Raises ValueError for other shapes, which broadcasting would hide."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_states[{number}]: expected the teacher's shape {tuple(teacher.shape)}, "
            f"got {tuple(student.shape)}"
        )
    return student.float(), teacher.float()
