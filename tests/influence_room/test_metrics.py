"""The metrics against naive float64 loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.influence import metrics
from iiad.influence.metrics import cosine, kl
from iiad.influence.profile import METRICS


def noise(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def naive_kl(full, stopped):
    total, tokens = 0.0, 0
    for p_logits, q_logits in zip(full.flatten(0, 1).tolist(), stopped.flatten(0, 1).tolist(), strict=True):
        p_norm = math.log(math.fsum(math.exp(x) for x in p_logits))
        q_norm = math.log(math.fsum(math.exp(x) for x in q_logits))
        for p, q in zip(p_logits, q_logits, strict=True):
            total += math.exp(p - p_norm) * ((p - p_norm) - (q - q_norm))
        tokens += 1
    return total / tokens


def naive_cosine(before, after):
    total, tokens = 0.0, 0
    for a, b in zip(before.flatten(0, 1).tolist(), after.flatten(0, 1).tolist(), strict=True):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        total += 1 - product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
        tokens += 1
    return total / tokens


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 1.0, 8.0]), step=st.sampled_from([0.1, 1.0, 3.0])
)
def test_kl_is_the_double_loop(seed, scale, step):
    full = noise(2, 3, 11, seed=seed, scale=scale)
    stopped = full + noise(2, 3, 11, seed=seed + 1, scale=step)
    assert kl(full, stopped) == pytest.approx(naive_kl(full, stopped), rel=1e-9, abs=1e-13)
    assert kl(full.float(), stopped.float()) == pytest.approx(naive_kl(full, stopped), rel=1e-4, abs=1e-7)


def test_kl_does_not_depend_on_its_chunks_which_are_bounded_views(monkeypatch):
    full, stopped = noise(3, 7, 13), noise(3, 7, 13, seed=1)
    whole, token_kl, sizes = kl(full, stopped), metrics._token_kl, []

    def recorded(p, q):
        assert p.untyped_storage().data_ptr() == full.untyped_storage().data_ptr()
        assert q.untyped_storage().data_ptr() == stopped.untyped_storage().data_ptr()
        sizes.append(len(p))
        return token_kl(p, q)

    monkeypatch.setattr(metrics, "_token_kl", recorded)
    for numbers, wanted in ((1, [1] * 21), (13 * 4 + 5, [4] * 5 + [1]), (13 * 21, [21])):
        monkeypatch.setattr(metrics, "CHUNK_NUMBERS", numbers)
        sizes.clear()
        assert kl(full, stopped) == pytest.approx(whole, rel=1e-13)
        assert sizes == wanted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_kl_of_identical_logits_is_zero(dtype):
    logits = noise(2, 5, 50, scale=5).to(dtype)
    assert kl(logits, logits.clone()) == 0.0


def test_kl_keeps_its_digits_where_it_is_smaller_than_float32_rounding():
    full = noise(1, 4, 2000, scale=3)
    stopped = full + noise(1, 4, 2000, seed=1, scale=1e-4)
    full, stopped = full.float().double(), stopped.float().double()  # the same numbers for both
    exact = naive_kl(full, stopped)
    assert 1e-9 < exact < 1e-7
    assert kl(full.float(), stopped.float()) == pytest.approx(exact, rel=0.02)


def test_kl_of_far_apart_logits_stays_finite():
    full = torch.tensor([[[0.0, -300.0, 5.0]]])
    stopped = torch.tensor([[[0.0, 300.0, 5.0]]])
    assert kl(full, stopped) == pytest.approx(naive_kl(full, stopped), rel=1e-5)
    assert kl(stopped, full) == pytest.approx(naive_kl(stopped, full), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_cosine_is_the_double_loop(seed, scale):
    before = noise(2, 3, 7, seed=seed, scale=scale)
    after = before + noise(2, 3, 7, seed=seed + 1, scale=scale)
    assert cosine(before, after) == pytest.approx(naive_cosine(before, after), rel=1e-9)
    assert cosine(before.float(), after.float()) == pytest.approx(naive_cosine(before, after), rel=1e-4)


def test_cosine_keeps_its_digits_for_nearly_equal_states():
    before = noise(1, 4, 64)
    after = before + noise(1, 4, 64, seed=1, scale=1e-5)
    before, after = before.float(), after.float()
    exact = naive_cosine(before.double(), after.double())
    assert exact < 1e-9
    assert cosine(before, after) == pytest.approx(exact, rel=0.02)


def test_cosine_of_equal_and_of_opposite_states():
    states = noise(2, 3, 8)
    assert cosine(states, 3 * states) == pytest.approx(0, abs=1e-15)
    assert cosine(states, -states) == pytest.approx(2)


def test_every_metric_of_a_profile_is_computed_by_exactly_one_registry():
    assert sorted([*metrics.ITERATE_METRICS, *metrics.OUTPUT_METRICS]) == sorted(METRICS)
