"""The binary form: what is rounded, by how much, and that what is read is a distribution again."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.distillation.signal_encoding import (
    decode_gaps,
    decode_ids,
    decode_states,
    encode_gaps,
    encode_ids,
    encode_states,
)
from iiad.distillation.signal_record import SignalLayout
from iiad.distillation.teacher_outputs import top_gaps

FLOOR = math.exp(-39.9)


def make_layout(**fields):
    usual = {"block_size": 4, "vocab_size": 50, "top_k": 3, "hidden_size": 8, "blocks_per_shard": 2}
    return SignalLayout(**{**usual, **fields})


def cells(logits, top_k):
    """The k likeliest and the tail of softmax(logits), in float64: ids, log-probabilities (m, k + 1)."""
    log_probs = logits.double().log_softmax(-1)
    top, ids = log_probs.topk(top_k)
    tail = log_probs.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return ids, torch.cat([top, tail], 1)


def stored_cells(logits, top_k, temperature=1.0):
    ids, gaps, kept = top_gaps(logits.clone(), top_k, temperature)
    log_probs, tail = decode_gaps(encode_gaps(gaps))
    return ids, torch.from_numpy(np.concatenate([log_probs, tail[:, None]], 1)).double(), kept


logit_rows = st.tuples(
    st.integers(2, 60), st.sampled_from([1e-3, 0.3, 2.0, 10.0, 80.0, 3000.0]), st.integers(0, 999)
)


@settings(max_examples=40)
@given(logit_rows, st.integers(1, 60))
def test_what_is_read_is_a_distribution_close_to_the_true_one(rows, top_k):
    vocab_size, scale, seed = rows
    top_k = min(top_k, vocab_size)
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale
    ids, true = cells(logits, top_k)
    found_ids, found, kept = stored_cells(logits, top_k)
    assert torch.equal(found_ids, ids)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5).double(), rtol=0, atol=2e-6)
    torch.testing.assert_close(kept, true[:, :-1].exp().sum(1), rtol=0, atol=1e-5)
    assert (found[:, :-1].diff(dim=1) <= 0).all()
    assert (found[:, -1] == -math.inf).all() == (top_k == vocab_size)
    # Logits in float32 are themselves only so exact.
    slack = 2**-10 + 4e-7 * scale * 8
    shown = true > true[:, :1] - 39.9
    assert ((found - true)[shown].abs() <= slack).all()
    assert (found[~shown].exp() <= FLOOR * 2).all()
    if scale <= 10:
        kl = torch.where(true > -math.inf, true.exp() * (true - found), 0).sum(1)
        assert (kl <= 2**-23 + 4e-7).all()
        assert (kl >= -4e-7).all()


@pytest.mark.parametrize("scale", [0.3, 2.0, 6.0])
def test_measured_kl_of_the_stored_form_is_a_tenth_of_that_of_float16(scale):
    logits = torch.randn(100, 8192, generator=torch.Generator().manual_seed(0)) * scale
    _, true = cells(logits, 64)
    _, found, _ = stored_cells(logits, 64)
    half = true.half().double()
    half = half - half.logsumexp(1, keepdim=True)
    kls = [(true.exp() * (true - other)).sum(1).mean().item() for other in (found, half)]
    assert kls[0] < 3.5e-8
    assert kls[0] < kls[1] / 4


def test_kl_over_the_cells_is_never_above_that_over_the_vocabulary_but_for_rounding():
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(300, 500, generator=generator).mul(3) for _ in range(2))
    ids, found, _ = stored_cells(p, 20)
    log_q = q.double().log_softmax(1)
    rest = log_q.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    ratios = found - torch.cat([log_q.gather(1, ids), rest], 1)
    whole = (p.double().softmax(1) * (p.double().log_softmax(1) - log_q)).sum(1)
    kept = (found.exp() * ratios).sum(1)
    assert (kept <= whole + 1.1e-3 * (found.exp() * ratios.abs()).sum(1)).all()
    assert kept.mean() > 0.5 * whole.mean()


def test_tail_keeps_its_digits_however_little_is_left():
    logits = torch.tensor([[20.0, 0.0, -1.0, -2.0]])
    _, gaps, kept = top_gaps(logits, 1, 1.0)
    expected = math.log(1 + math.exp(-1) + math.exp(-2)) - 20
    assert gaps[0, 0].item() == pytest.approx(-expected, abs=1e-6)
    _, tail = decode_gaps(encode_gaps(gaps))
    assert tail[0] == pytest.approx(expected, abs=2**-10)
    assert 1 - kept.item() == pytest.approx(math.exp(expected), rel=1e-4)


def test_logits_of_minus_infinity_are_a_mass_of_nothing_and_nan_shows():
    masked = torch.tensor([[0.0, 1.0, -math.inf, -math.inf, -math.inf]])
    _, found, _ = stored_cells(masked, 3)
    assert found[0, :3].isfinite().all()
    assert found[0, 2] < -39
    assert found[0, 3] == -math.inf
    for bad in (math.nan, math.inf):
        _, gaps, _ = top_gaps(torch.tensor([[0.0, bad, 1.0]]), 2, 1.0)
        assert gaps.isnan().any()


@pytest.mark.parametrize(("vocab_size", "num_bytes"), [(65536, 4), (65537, 5), (1 << 24, 5)])
def test_ids_of_any_vocabulary_come_back_in_two_or_three_bytes(vocab_size, num_bytes):
    layout = make_layout(vocab_size=vocab_size)
    assert layout.bytes_per_token == num_bytes * layout.top_k
    ids = torch.randint(vocab_size, (5, 4, 3))
    ids[0, 0, 0] = vocab_size - 1
    blocks = np.zeros(5, layout.block_dtype)
    encode_ids(ids, blocks)
    assert np.array_equal(decode_ids(blocks), ids.numpy())


@settings(max_examples=25)
@given(st.integers(0, 999), st.sampled_from([1e-20, 1e-3, 1.0, 1e4]), st.sampled_from(["int8", "bfloat16"]))
def test_hidden_states_come_back_within_the_stated_error(seed, scale, compression):
    layout = make_layout(hidden_layers=[0, 2], compression=compression)
    states = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(seed)) * scale
    states[0, 0, 0] = 0
    states[1, 1, :, 3] *= 1000
    blocks = np.zeros(3, layout.block_dtype)
    encode_states(states, compression, blocks)
    found = torch.stack([decode_states(block, compression, [0, 1]) for block in blocks])
    error = (found.float() - states).abs()
    if compression == "int8":
        assert found.dtype == torch.float32
        assert (error <= states.abs().amax(-1, keepdim=True) * (1 / 254 + 1e-6)).all()
    else:
        assert torch.equal(found, states.to(torch.bfloat16))
        assert (error <= states.abs() * 2**-8).all()
    only = decode_states(blocks[1], compression, [1])
    assert torch.equal(only[0], found[1, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 51}, "top_k: expected at most vocab_size"),
        ({"hidden_layers": [1]}, "compression: expected one with"),
        ({"compression": "int8"}, "compression: expected one with"),
        ({"hidden_layers": [2, 1], "compression": "int8"}, "each once, ascending"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_layout(**fields)
