"""The metrics against naive float64 loops: two outputs of a layer, and two outputs of the model."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.influence.metrics import FullOutput, cosine, fixed_point, relative_l2
from tests.helpers import refused
from tests.influence.naive import (
    inner,
    length,
    naive_cosine,
    naive_kl,
    naive_nll,
    naive_relative_l2,
    noise,
    rows,
)

NAIVE = [(cosine, naive_cosine), (relative_l2, naive_relative_l2)]
IDS = torch.tensor([[3, 1, 10], [0, 7, 7]])
TEXT = {"labels": IDS}
seeds = st.integers(0, 1000)


@settings(max_examples=20)
@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 1e4]))
@pytest.mark.parametrize(("metric", "naive"), NAIVE)
def test_iterate_metrics_are_the_double_loop(metric, naive, seed, scale):
    before = noise(2, 3, 7, seed=seed, scale=scale)
    after = before + noise(2, 3, 7, seed=seed + 1, scale=scale)
    assert metric(before, after) == pytest.approx(naive(before, after), rel=1e-9)
    assert metric(before.float(), after.float()) == pytest.approx(naive(before, after), rel=1e-4)


@pytest.mark.parametrize(("metric", "naive"), NAIVE)
def test_they_keep_their_digits_for_nearly_equal_states(metric, naive):
    before = noise(1, 4, 64)
    after = before + noise(1, 4, 64, seed=1, scale=1e-5)
    before, after = before.float(), after.float()
    exact = naive(before.double(), after.double())
    assert exact < 1e-4
    assert metric(before, after) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("metric", "naive"), NAIVE)
def test_narrow_states_are_measured_in_float32(metric, naive, dtype):
    before, after = noise(2, 3, 64).to(dtype), noise(2, 3, 64, seed=1).to(dtype)
    assert metric(before, after) == pytest.approx(naive(before.double(), after.double()), rel=1e-4)


def test_equal_opposite_doubled_and_zero_states():
    states = noise(2, 3, 8)
    assert cosine(states, 3 * states) == pytest.approx(0, abs=1e-15)
    assert cosine(states, -states) == pytest.approx(2)
    assert relative_l2(states, states) == 0
    assert relative_l2(states, 2 * states) == pytest.approx(1)
    assert relative_l2(0 * states, 0 * states) == 0


@settings(max_examples=20)
@given(seed=seeds, r=st.integers(0, 4))
def test_residuals_contractions_and_turns_are_the_double_loop(seed, r):
    iterates = [noise(2, 3, 7, seed=seed + 10 * i) for i in range(r + 1)]
    found = fixed_point(iterates)
    steps = [rows(b - a) for a, b in itertools.pairwise(iterates)]
    residuals = [naive_relative_l2(a, b) for a, b in itertools.pairwise(iterates)]
    contractions, turns = [], []
    for earlier, later in itertools.pairwise(steps):
        contractions.append(sum(map(length, later)) / sum(map(length, earlier)))
        cosines = [inner(a, b) / length(a) / length(b) for a, b in zip(earlier, later, strict=True)]
        turns.append(sum(cosines) / len(cosines))
    assert found.residuals == pytest.approx(residuals, rel=1e-9)
    assert found.contractions == pytest.approx(contractions, rel=1e-9)
    assert found.turns == pytest.approx(turns, rel=1e-9)


@pytest.mark.parametrize(("ratio", "turn"), [(0.5, 1), (-1.0, -1)])
def test_a_linear_contraction_is_recognised_and_so_is_a_cycle(ratio, turn):
    goal, gap = noise(2, 3, 8), noise(2, 3, 8, seed=1)
    found = fixed_point([goal + gap * ratio**i for i in range(4)])
    assert found.contractions == pytest.approx([abs(ratio)] * 2)
    assert found.turns == pytest.approx([turn] * 2)


def test_iterates_at_rest_have_zeros_and_no_nan():
    state = noise(2, 3, 8)
    found = fixed_point([state] * 3)
    assert (found.residuals, found.contractions, found.turns) == ([0, 0], [0], [0])
    assert all(math.isfinite(x) for x in fixed_point([0 * state] * 3).residuals)


def head(vocab=11, width=5, seed=7, dtype=torch.float64):
    linear = torch.nn.Linear(width, vocab, bias=False, dtype=dtype)
    linear.weight.data = noise(vocab, width, seed=seed).to(dtype)
    return linear.requires_grad_(False)


def compared(full, stopped, dtype=torch.float64):
    return FullOutput(head(dtype=dtype), full.to(dtype), TEXT).harms(stopped.to(dtype))


@settings(max_examples=20)
@given(seed=seeds, scale=st.sampled_from([0.01, 1.0, 4.0]), step=st.sampled_from([0.1, 1.0, 3.0]))
def test_kl_and_loss_are_the_double_loop(seed, scale, step):
    full = noise(2, 3, 5, seed=seed, scale=scale)
    stopped = full + noise(4, 2, 3, 5, seed=seed + 1, scale=step)
    to_logits = head()
    loss = naive_nll(to_logits(full), IDS)
    kl = [naive_kl(to_logits(full), to_logits(states)) for states in stopped]
    growth = [naive_nll(to_logits(states), IDS) - loss for states in stopped]
    assert FullOutput(to_logits, full, TEXT).loss == pytest.approx(loss, rel=1e-12)
    found, narrow = compared(full, stopped), compared(full, stopped, torch.float32)
    assert found["kl"] == pytest.approx(kl, rel=1e-9, abs=1e-13)
    assert found["loss"] == pytest.approx(growth, rel=1e-9, abs=1e-12)
    assert narrow["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert narrow["loss"] == pytest.approx(growth, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_full_model_loses_nothing_against_itself(dtype):
    full = noise(2, 3, 5, scale=5)
    assert compared(full, full[None], dtype) == {"kl": [0.0], "loss": [0.0]}


def test_kl_keeps_its_digits_where_it_is_smaller_than_float32_rounding():
    full = noise(2, 3, 5, scale=3).float().double()
    stopped = (full + noise(2, 3, 5, seed=1, scale=1e-4)).float().double()
    to_logits = head()
    to_logits.weight.data = to_logits.weight.data.float().double()  # the same numbers for both
    exact = naive_kl(to_logits(full), to_logits(stopped))
    assert 1e-10 < exact < 1e-7
    assert compared(full, stopped[None], torch.float32)["kl"] == pytest.approx([exact], rel=0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_far_apart_outputs_stay_finite(dtype, tolerance):
    full, stopped = noise(2, 3, 5, scale=60), noise(2, 3, 5, seed=1, scale=60)
    exact = naive_kl(head()(full), head()(stopped))
    assert compared(full, stopped[None], dtype)["kl"] == pytest.approx([exact], rel=tolerance)


def test_kl_and_loss_depend_on_neither_chunks_nor_parts_of_the_batch():
    full, stopped = noise(2, 3, 5), noise(2, 2, 3, 5, seed=1)
    output = FullOutput(head(), full, TEXT)
    gradient, wanted = output.loss_gradient(), output.harms(stopped)
    for chunk_tokens in (1, 4, 6):
        output.chunk_tokens, sizes = chunk_tokens, []
        hook = output.head.register_forward_hook(lambda _, __, out, to=sizes: to.append(out.shape[0]))
        parts = [output.harms(stopped[:, rows], rows=rows) for rows in (slice(0, 1), slice(1, 2))]
        for name in ("kl", "loss"):
            assert output.harms(stopped)[name] == pytest.approx(wanted[name], rel=1e-12)
            sums = [a + b for a, b in zip(*(part[name] for part in parts), strict=True)]
            assert sums == pytest.approx(wanted[name], rel=1e-12)
        assert torch.allclose(output.loss_gradient(), gradient, rtol=1e-12)
        hook.remove()
        assert max(sizes) == chunk_tokens


def test_the_gradient_of_the_loss_is_autograds():
    full = noise(2, 3, 5)
    leaf = full.clone().requires_grad_()
    log_q = head()(leaf)[:, :-1].log_softmax(-1)
    (-log_q.gather(-1, IDS[:, 1:, None]).mean()).backward()
    assert torch.allclose(FullOutput(head(), full, TEXT).loss_gradient(), leaf.grad, rtol=1e-12)


def test_infinite_outputs_are_named():
    with refused("batch 3: expected finite logits, got NaN or infinity"):
        FullOutput(head(), noise(2, 3, 5) * math.nan, TEXT, "batch 3")
    with refused("layer 2: expected finite logits"):
        FullOutput(head(), noise(2, 3, 5), TEXT).harms(noise(1, 2, 3, 5) * math.nan, "layer 2")
