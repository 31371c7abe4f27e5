"""The losses between hidden states against loops, and their identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.distillation.hidden_losses import HIDDEN_LOSSES, hidden_state_loss

kinds = pytest.mark.parametrize("kind", HIDDEN_LOSSES)


def states(seed, num=3):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(2, 4, 5, generator=generator) for _ in range(num)]


def naive(kind, teacher, student):
    """Mean over layers of one loop over tokens and width, in float64."""
    losses = []
    for one, other in zip(teacher, student, strict=True):
        tokens = list(
            zip(one.flatten(0, 1).double().tolist(), other.flatten(0, 1).double().tolist(), strict=True)
        )
        if kind == "cosine":
            terms = [
                1 - sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
                for x, y in tokens
            ]
        else:
            gaps = [abs(a - b) for x, y in tokens for a, b in zip(x, y, strict=True)]
            terms = [gap * gap if kind == "mse" else gap * gap / 2 if gap < 1 else gap - 0.5 for gap in gaps]
        losses.append(math.fsum(terms) / len(terms))
    return sum(losses) / len(losses)


@kinds
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_a_hidden_state_loss_equals_the_loop_over_layers_tokens_and_width(kind, seed):
    teacher, student = states(seed), states(seed + 1)
    assert hidden_state_loss(teacher, student, kind).item() == pytest.approx(
        naive(kind, teacher, student), rel=1e-5
    )


@kinds
def test_equal_states_have_no_loss_and_no_slope(kind):
    teacher = states(0)
    student = [state.clone().requires_grad_() for state in teacher]
    loss = hidden_state_loss(teacher, student, kind)
    loss.backward()
    assert loss.item() == 0
    assert all((state.grad == 0).all() for state in student)
    zeros = [torch.zeros(1, 2, 3)]
    assert hidden_state_loss(zeros, zeros, kind).item() == 0


def test_cosine_ignores_how_long_states_are():
    teacher = states(0)
    assert hidden_state_loss(teacher, [3 * s for s in teacher], "cosine").item() < 1e-12
    assert hidden_state_loss(teacher, [-s for s in teacher], "cosine").item() == pytest.approx(2)


def test_half_precision_is_compared_in_float32():
    teacher, student = states(0), [state.bfloat16() for state in states(1)]
    loss = hidden_state_loss(teacher, student)
    assert loss.dtype == torch.float32
    assert loss == hidden_state_loss(teacher, [state.float() for state in student])


def test_what_cannot_be_compared_is_named():
    teacher, student = states(0), states(1)
    with pytest.raises(ValueError, match="kind: expected one of mse, smooth_l1, cosine, got 'l3'"):
        hidden_state_loss(teacher, student, "l3")
    with pytest.raises(ValueError, match="expected at least one, got none"):
        hidden_state_loss([], [])
    with pytest.raises(ValueError, match="student_states: expected 3, as many as the teacher's, got 2"):
        hidden_state_loss(teacher, student[:2])
    with pytest.raises(ValueError, match=r"student_states\[1\]: expected the teacher's shape"):
        hidden_state_loss(teacher, [student[0], student[1][..., :1], student[2]])
