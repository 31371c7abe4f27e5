"""How far a student's hidden states are from its teacher's.

Legend: B batch, T tokens, D model width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["HIDDEN_LOSSES", "hidden_state_loss"]


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos, mean over tokens, as half the squared distance of the two directions.

    The same number, but exactly 0 at equality, without slope there, and for states of zeros too.
    """
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return difference.square().sum(-1).mean() / 2


HIDDEN_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "cosine": cosine_loss,
}
"""Each (B, T, D) twice -> scalar, 0 at equality."""


def hidden_state_loss(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    kind: str = "mse",
    layers: Sequence[int] | None = None,
) -> Tensor:
    """Mean loss over the chosen hidden states, each (B, T, D), in float32 (ours).

    kind: one of HIDDEN_LOSSES. layers: which of the L + 1 states, 0 for the embeddings and L for what comes out of
    the final norm; None for all. Raises ValueError for another kind or layer, for none, and for states that are not
    equally many and of equal shapes.
    """
    if kind not in HIDDEN_LOSSES:
        raise ValueError(f"kind must be one of {', '.join(HIDDEN_LOSSES)}, found {kind!r}")
    if len(teacher_states) != len(student_states):
        raise ValueError(
            f"student_states must be as many as the teacher's ({len(teacher_states)}), found {len(student_states)}"
        )
    last = len(teacher_states) - 1
    chosen = range(last + 1) if layers is None else layers
    if not chosen or not all(0 <= layer <= last for layer in chosen):
        raise ValueError(f"layers must be numbers from 0 to {last}, at least one, found {list(chosen)}")
    loss = HIDDEN_LOSSES[kind]
    return torch.stack([loss(*_pair(student_states[i], teacher_states[i], i)) for i in chosen]).mean()


def _pair(student: Tensor, teacher: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Both in float32, or ValueError where broadcasting would compare what does not belong together."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's hidden state {layer} must have the teacher's shape {tuple(teacher.shape)}, "
            f"found {tuple(student.shape)}"
        )
    return student.float(), teacher.float()
