"""The distillation losses against naive float64 versions, and their identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.distillation import hidden_state_loss, kl_divergence


def naive_kl(teacher, student, temperature):
    total = 0.0
    rows = teacher.flatten(0, 1).double().tolist()
    for row, other in zip(rows, student.flatten(0, 1).double().tolist(), strict=True):
        p = softmax([value / temperature for value in row])
        q = softmax([value / temperature for value in other])
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(rows)


def softmax(row):
    top = max(row)
    exps = [math.exp(value - top) for value in row]
    return [value / sum(exps) for value in exps]


def logits(seed, scale=2.0):
    return scale * torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 8))
def test_kl_equals_the_double_loop_over_tokens_and_vocabulary(seed, temperature):
    teacher, student = logits(seed), logits(seed + 1)
    found = kl_divergence(teacher, student, temperature).item()
    assert found == pytest.approx(naive_kl(teacher, student, temperature), rel=1e-5, abs=1e-6)
    assert found >= -1e-6


def test_kl_of_identical_logits_is_zero_and_so_is_its_gradient():
    teacher = logits(0)
    student = teacher.clone().requires_grad_(True)
    loss = kl_divergence(teacher, student, 2.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-7


def test_kl_is_not_a_cross_entropy_and_is_not_symmetric():
    teacher, student = logits(3), logits(4)
    assert kl_divergence(teacher, student) != kl_divergence(student, teacher)
    assert kl_divergence(teacher, teacher) == 0  # a cross-entropy would give the teacher's entropy


def test_the_gradient_keeps_its_size_as_the_temperature_grows():
    norms = []
    for temperature in (1.0, 10.0, 100.0):
        student = logits(1, scale=0.1).requires_grad_(True)
        kl_divergence(logits(0, scale=0.1), student, temperature).backward()
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.1)
    assert norms[2] == pytest.approx(norms[0], rel=0.1)


def test_hidden_state_loss_is_the_mean_over_all_states_and_needs_equally_many():
    teacher = [torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)]
    student = [torch.zeros(1, 2, 3), torch.full((1, 2, 3), 2.0)]
    assert hidden_state_loss(teacher, student).item() == pytest.approx(2.0)
    assert hidden_state_loss(teacher, teacher).item() == 0
    with pytest.raises(ValueError, match="zip"):
        hidden_state_loss(teacher, student[:1])
