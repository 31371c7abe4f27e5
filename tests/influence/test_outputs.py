"""Exact KL and loss of stopped models, from final states, against naive float64 loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.errors import InputError
from iiad.influence.outputs import FullOutput
from tests.influence.naive import naive_kl, naive_nll, noise

IDS = torch.tensor([[3, 1, 10], [0, 7, 7]])


def head(vocab=11, width=5, seed=7, dtype=torch.float64):
    linear = torch.nn.Linear(width, vocab, bias=False, dtype=dtype)
    linear.weight.data = noise(vocab, width, seed=seed).to(dtype)
    return linear.requires_grad_(False)


def compared(full, stopped, dtype=torch.float64, **options):
    return FullOutput(head(dtype=dtype, **options), full.to(dtype), IDS).harms(stopped.to(dtype))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 1.0, 4.0]), step=st.sampled_from([0.1, 1.0, 3.0])
)
def test_harms_are_the_double_loop(seed, scale, step):
    full = noise(2, 3, 5, seed=seed, scale=scale)
    stopped = full + noise(4, 2, 3, 5, seed=seed + 1, scale=step)
    to_logits = head()
    before = naive_nll(to_logits(full), IDS)
    assert FullOutput(to_logits, full, IDS).loss == pytest.approx(before, rel=1e-12)
    for harm, narrow, states in zip(
        compared(full, stopped), compared(full, stopped, torch.float32), stopped, strict=True
    ):
        kl, growth = naive_kl(to_logits(full), to_logits(states)), naive_nll(to_logits(states), IDS) - before
        assert harm["kl"] == pytest.approx(kl, rel=1e-9, abs=1e-13)
        assert harm["loss"] == pytest.approx(growth, rel=1e-9, abs=1e-12)
        assert narrow["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert narrow["loss"] == pytest.approx(growth, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_full_model_loses_nothing_against_itself(dtype):
    full = noise(2, 3, 5, scale=5)
    assert compared(full, full[None], dtype) == [{"kl": 0.0, "loss": 0.0}]


def test_harms_keep_their_digits_where_they_are_smaller_than_float32_rounding():
    full = noise(2, 3, 5, scale=3).float().double()
    stopped = (full + noise(2, 3, 5, seed=1, scale=1e-4)).float().double()
    [found] = compared(full, stopped[None], torch.float32)
    to_logits = head()
    to_logits.weight.data = to_logits.weight.data.float().double()  # the same numbers for both
    exact = naive_kl(to_logits(full), to_logits(stopped))
    assert 1e-10 < exact < 1e-7
    assert found["kl"] == pytest.approx(exact, rel=0.01)


def test_far_apart_outputs_stay_finite():
    full, stopped = noise(2, 3, 5, scale=60), noise(2, 3, 5, seed=1, scale=60)
    to_logits = head()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        [found] = compared(full, stopped[None], dtype)
        assert found["kl"] == pytest.approx(naive_kl(to_logits(full), to_logits(stopped)), rel=tolerance)


def test_results_do_not_depend_on_the_chunks_which_are_bounded():
    full, stopped = noise(2, 3, 5), noise(2, 2, 3, 5, seed=1)
    output = FullOutput(head(), full, IDS)
    whole, gradient = output.harms(stopped), output.loss_gradient()
    for chunk_tokens in (1, 4, 6):
        output.chunk_tokens = chunk_tokens
        sizes = []
        hook = output.head.register_forward_hook(lambda _, __, out, to=sizes: to.append(out.shape[0]))
        for found, wanted in zip(output.harms(stopped), whole, strict=True):
            assert found == pytest.approx(wanted, rel=1e-12)
        assert torch.allclose(output.loss_gradient(), gradient, rtol=1e-12)
        hook.remove()
        assert max(sizes) == chunk_tokens


def test_the_gradient_of_the_loss_is_autograds():
    full = noise(2, 3, 5)
    leaf = full.clone().requires_grad_()
    log_q = head()(leaf)[:, :-1].log_softmax(-1)
    (-log_q.gather(-1, IDS[:, 1:, None]).mean()).backward()
    assert torch.allclose(FullOutput(head(), full, IDS).loss_gradient().view_as(full), leaf.grad, rtol=1e-12)


def test_infinite_outputs_are_named():
    with pytest.raises(InputError, match="batch 3: the model's logits hold NaN or infinity"):
        FullOutput(head(), noise(2, 3, 5) * float("nan"), IDS, "batch 3")
    with pytest.raises(InputError, match="layer 2: its logits hold NaN or infinity"):
        FullOutput(head(), noise(2, 3, 5), IDS).harms(noise(1, 2, 3, 5) * float("nan"), "layer 2")
