"""The divergences between buckets against double loops, their weights against autograd, and their bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.distillation.divergences import DIVERGENCES

from .naive import loop_divergence

kinds = pytest.mark.parametrize("kind", DIVERGENCES)
LOG_ZERO = -math.inf


def log_masses(seed, shape=(4, 9), scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1).to(dtype)


def value_and_slope(kind, log_p, log_q):
    """The divergence (N,), and its gradient by log Q (N, K)."""
    log_q = log_q.detach().requires_grad_()
    value = DIVERGENCES[kind](log_p, log_q)
    return value.detach(), torch.autograd.grad(value.sum(), log_q)[0]


@kinds
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 30))
def test_a_divergence_equals_its_sum_over_buckets(kind, seed, scale):
    log_p, log_q = log_masses(seed, scale=scale), log_masses(seed + 1, scale=scale)
    values = DIVERGENCES[kind](log_p, log_q)
    for value, p, q in zip(values.tolist(), log_p.exp().tolist(), log_q.exp().tolist(), strict=True):
        assert value == pytest.approx(loop_divergence(kind, p, q), rel=1e-10, abs=1e-13)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), step=st.floats(0, 1))
def test_no_divergence_is_negative_and_equality_is_exactly_zero(kind, dtype, seed, scale, step):
    log_p = log_masses(seed, scale=scale, dtype=dtype)
    log_q = ((1 - step) * log_p + step * log_masses(seed + 1, scale=scale, dtype=dtype)).log_softmax(-1)
    assert (DIVERGENCES[kind](log_p, log_q) >= 0).all()
    assert (DIVERGENCES[kind](log_p, log_p) == 0).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 1000))
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(seed, scale):
    log_p, log_q = log_masses(seed, scale=scale), log_masses(seed + 1, scale=scale)
    jsd = DIVERGENCES["jsd"]
    assert (jsd(log_p, log_q) <= math.log(2) + 1e-12).all()
    torch.testing.assert_close(jsd(log_p, log_q), jsd(log_q, log_p), rtol=1e-12, atol=1e-14)


@kinds
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20))
def test_splitting_a_bucket_never_lowers_a_divergence(kind, seed, scale):
    log_p, log_q = log_masses(seed, scale=scale), log_masses(seed + 1, scale=scale)
    before = torch.zeros(len(log_p), dtype=torch.float64)
    for split in range(1, log_p.shape[1] + 1):
        few = [
            torch.cat([x[:, : split - 1], x[:, split - 1 :].logsumexp(-1, True)], -1) for x in (log_p, log_q)
        ]
        value = DIVERGENCES[kind](*few)
        assert (value >= before - 1e-12 * (1 + before)).all()
        before = value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jensen_shannon_of_what_shares_no_bucket_is_ln_2(dtype):
    log_p, log_q = torch.tensor([[0.0, LOG_ZERO, LOG_ZERO], [LOG_ZERO, LOG_ZERO, 0.0]], dtype=dtype).split(1)
    value, slope = value_and_slope("jsd", log_p, log_q)
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)
    assert slope.isfinite().all()


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buckets_without_mass_count_nothing(kind, dtype):
    log_p = torch.tensor([[math.log(0.25), math.log(0.75), LOG_ZERO]], dtype=dtype)
    log_q = torch.tensor([[math.log(0.5), math.log(0.5), LOG_ZERO]], dtype=dtype)
    value, slope = value_and_slope(kind, log_p, log_q)
    assert value.item() == pytest.approx(loop_divergence(kind, [0.25, 0.75], [0.5, 0.5]), rel=1e-5)
    assert slope.isfinite().all()
    assert slope[0, 2] == 0
    assert DIVERGENCES[kind](log_p, log_p) == 0
    certain = torch.tensor([[0.0, LOG_ZERO, LOG_ZERO]], dtype=dtype)
    assert DIVERGENCES[kind](certain, certain) == 0


def test_forward_ignores_what_only_the_student_says_and_reverse_what_only_the_teacher_says():
    some = torch.tensor([[math.log(0.5), math.log(0.5)]])
    certain = torch.tensor([[0.0, LOG_ZERO]])
    assert DIVERGENCES["forward"](certain, some).item() == pytest.approx(math.log(2))
    assert DIVERGENCES["reverse"](some, certain).item() == pytest.approx(math.log(2))
    assert DIVERGENCES["forward"](some, certain).item() > 1e30  # infinite, in truth
    assert DIVERGENCES["reverse"](certain, some).item() > 1e30


@kinds
def test_nan_is_not_hidden(kind):
    good, bad = log_masses(0), log_masses(1)
    bad[2, 3] = math.nan
    assert DIVERGENCES[kind](good, bad).isnan().tolist() == [False, False, True, False]
    assert DIVERGENCES[kind](bad, good).isnan().tolist() == [False, False, True, False]


def test_the_forward_divergence_is_not_a_cross_entropy_and_not_symmetric():
    log_p, log_q = log_masses(3), log_masses(4)
    forward, reverse = DIVERGENCES["forward"], DIVERGENCES["reverse"]
    assert (forward(log_p, log_p) == 0).all()  # a cross-entropy would give the teacher's entropy
    assert (forward(log_p, log_q) != forward(log_q, log_p)).all()
    torch.testing.assert_close(forward(log_p, log_q), reverse(log_q, log_p))
