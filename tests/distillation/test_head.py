"""The head's losses and gradients against double loops and autograd on whole logits, and their identities."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.distillation.divergences import DIVERGENCES, FullTarget, TeacherDivergence, TopTarget
from iiad.evaluation.activation_memory import peak_bytes
from iiad.training.head import asked_labels, head_loss

from .naive import autograd_loss, loop_losses, top_target

N, D, V = 11, 6, 13
SETTINGS = [
    {"divergence": kind, "temperature": temperature, "k": k}
    for kind, temperature, k in itertools.product(DIVERGENCES, (1.0, 2.5), (None, 1, 4, V - 1, V))
]
all_settings = pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda s: f"{s['divergence']}-{s['temperature']:g}-{s['k'] or 'full'}"
)


class Case:
    """Random states and weights of a student and a teacher, in float64."""

    def __init__(self, seed=0, scale=1.0, dtype=torch.float64, shape=(N, D, V)):
        generator = torch.Generator().manual_seed(seed)
        num_tokens, width, vocab_size = shape

        def random(*sizes):
            return (scale * torch.randn(*sizes, generator=generator, dtype=torch.float64)).to(dtype)

        self.states = random(num_tokens, width).requires_grad_()
        self.weight = random(vocab_size, width).requires_grad_()
        self.full = FullTarget(random(num_tokens, width + 2), random(vocab_size, width + 2))
        self.labels = torch.randint(-1, vocab_size, (num_tokens,), generator=generator)
        self.labels[0] = 1

    @property
    def logits(self):
        return (self.states @ self.weight.t()).detach()

    @property
    def teacher_logits(self):
        return self.full.states @ self.full.weight.t()

    def target(self, k=None, temperature=1.0):
        return self.full if k is None else top_target(self.teacher_logits, k, temperature)

    def loss(self, target=None, divergence="forward", temperature=1.0, **options):
        extra = None if target is None else TeacherDivergence(target, divergence, temperature)
        return head_loss(self.states, self.weight, self.labels, extra, **options)

    def run(self, **options):
        """The losses, and both gradients."""
        self.states.grad = self.weight.grad = None
        found = self.loss(**options)
        found.loss.backward()
        return found, self.states.grad, self.weight.grad


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_smoothed_labels_are_those_of_torch_and_the_cross_entropy_is_told_without(smoothing):
    case = Case(2)
    found, *gradients = case.run(label_smoothing=smoothing, ce_weight=0.6, chunk_tokens=4)
    labels = case.labels.where(case.labels >= 0, -100)
    logits = case.states @ case.weight.t()
    wanted = 0.6 * torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert found.loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert found.ce.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-12
    )
    for gradient, expected in zip(
        gradients, torch.autograd.grad(wanted, (case.states, case.weight)), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)


@all_settings
def test_losses_equal_double_loops_and_gradients_equal_autograd_on_whole_logits(setting):
    case = Case(1)
    divergence, temperature, k = setting.values()
    target = case.target(k, temperature)
    ids = None if k is None else target.ids
    how = {"divergence": divergence, "temperature": temperature}
    ce, kl = loop_losses(case.logits, case.labels, case.teacher_logits, ids=ids, **how)
    for ce_weight, kl_weight in ((1.0, 0.0), (0.0, 1.0), (0.3, 1.7)):
        weights = {"ce_weight": ce_weight, "kl_weight": kl_weight}
        found, *gradients = case.run(target=target, chunk_tokens=4, **how, **weights)
        assert found.ce.item() == pytest.approx(ce, rel=1e-12)
        assert found.kl.item() == pytest.approx(kl, rel=1e-11, abs=1e-14)
        assert found.loss.item() == pytest.approx(ce_weight * ce + kl_weight * kl, rel=1e-12, abs=1e-14)
        assert not found.ce.requires_grad
        assert not found.kl.requires_grad
        loss = autograd_loss(
            case.states, case.weight, case.labels, case.teacher_logits, ids=ids, **how, **weights
        )
        expected = torch.autograd.grad(loss, [case.states, case.weight])
        torch.testing.assert_close(gradients, list(expected), rtol=1e-9, atol=1e-13)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    chunk_tokens=st.integers(1, N + 3),
    divergence=st.sampled_from(sorted(DIVERGENCES)),
    k=st.sampled_from([None, 3, V]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_nothing_depends_on_the_chunk(seed, chunk_tokens, divergence, k, dtype):
    case = Case(seed, dtype=dtype)
    options = {"target": case.target(k, 2.0), "kl_weight": 0.7, "divergence": divergence, "temperature": 2.0}
    whole, states, weight = case.run(chunk_tokens=N, **options)
    split, *gradients = case.run(chunk_tokens=chunk_tokens, **options)
    exact = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    torch.testing.assert_close(tuple(split), tuple(whole), **exact)
    torch.testing.assert_close(gradients, [states, weight], **exact)


@pytest.mark.parametrize("k", [None, 3])
def test_micro_batches_average_to_the_whole_batch(k):
    case = Case(4, shape=(12, D, V))
    case.labels = case.labels.clamp(min=0)
    target = case.target(k)
    whole, *expected = case.run(target=target, kl_weight=0.7)
    case.states.grad = case.weight.grad = None
    losses = []
    for start in range(0, 12, 4):
        part = slice(start, start + 4)
        micro = (
            FullTarget(target.states[part], target.weight)
            if k is None
            else TopTarget(*(x[part] for x in target))
        )
        extra = TeacherDivergence(micro)
        loss = head_loss(case.states[part], case.weight, case.labels[part], extra, kl_weight=0.7).loss / 3
        loss.backward()
        losses.append(loss.item())
    assert sum(losses) == pytest.approx(whole.loss.item(), rel=1e-12)
    torch.testing.assert_close([case.states.grad, case.weight.grad], expected, rtol=1e-11, atol=1e-13)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 3),
    divergence=st.sampled_from(sorted(DIVERGENCES)),
    temperature=st.floats(0.5, 5),
)
def test_top_k_is_a_lower_bound_that_grows_with_k(seed, scale, divergence, temperature):
    case = Case(seed, scale)
    options = {"divergence": divergence, "temperature": temperature}
    bounds = [case.run(target=case.target(k, temperature), **options)[0].kl for k in (1, 2, 4, 8, V - 1, V)]
    bounds.append(case.run(target=case.full, **options)[0].kl)
    for few, more in itertools.pairwise(bounds):
        assert 0 <= few <= more + 1e-12 * (1 + more)
    torch.testing.assert_close(bounds[-3:], bounds[-1:] * 3, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_teacher_itself_is_at_zero_exactly_and_learns_nothing(divergence, dtype, temperature):
    case = Case(5, dtype=dtype, shape=(30, 8, 50))
    case.full = FullTarget(case.states.detach(), case.weight.detach())
    options = {"ce_weight": 0.0, "kl_weight": 1.0, "divergence": divergence, "temperature": temperature}
    found, *gradients = case.run(target=case.full, **options)
    assert found.kl == 0
    assert found.loss == 0
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)
    near, *_ = case.run(target=top_target(case.logits.float(), 5, temperature), **options)
    assert near.kl.item() == pytest.approx(0, abs=1e-6 if dtype == torch.float32 else 1e-4)


def test_the_gradient_keeps_its_size_as_the_temperature_grows():
    case = Case(6, scale=0.3)
    norms = [
        case.run(target=case.full, ce_weight=0.0, kl_weight=1.0, temperature=temperature)[1].norm().item()
        for temperature in (1.0, 10.0, 100.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.1)
    assert norms[2] == pytest.approx(norms[0], rel=0.1)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(divergence, k, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = 1e4 * (2 * torch.randint(0, 2, (2, 8, 5), generator=generator, dtype=dtype) - 1)
    logits[0, 0], logits[1, 0] = -1e4, -1e4
    logits[0, 0, 0], logits[1, 0, 1] = 1e4, 1e4
    states = logits[0].clone().requires_grad_()
    eye = torch.eye(5, dtype=dtype, requires_grad=True)
    full = FullTarget(logits[1], eye.detach())
    target = full if k is None else top_target(logits[1], k)
    extra = TeacherDivergence(target, divergence)
    found = head_loss(states, eye, torch.arange(8) % 5, extra, kl_weight=1.0)
    found.loss.backward()
    assert all(value.isfinite() for value in found)
    assert states.grad.isfinite().all()
    assert eye.grad.isfinite().all()
    ce = torch.nn.functional.cross_entropy(states.double(), torch.arange(8) % 5)
    assert found.ce.item() == pytest.approx(ce.item(), rel=1e-6)
    if k is None and divergence == "forward":
        p, q = logits[1].double().log_softmax(-1), states.detach().double().log_softmax(-1)
        assert found.kl.item() == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_tail_below_rounding_is_no_trap(divergence):
    case = Case(7, dtype=torch.float32)
    for k in (V - 2, V - 1, V):
        ids, log_probs, tail = case.target(k)
        target = TopTarget(ids, log_probs - log_probs.logsumexp(-1, True), torch.full_like(tail, -math.inf))
        found, *gradients = case.run(target=target, kl_weight=1.0, divergence=divergence)
        assert found.kl.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_tokens_that_predict_nothing_have_no_part_in_the_cross_entropy():
    case = Case(8)
    case.labels[3:7] = -1  # a whole chunk
    found, states, _ = case.run(chunk_tokens=4)
    expected = torch.nn.functional.cross_entropy(case.logits, case.labels, ignore_index=-1)
    assert found.ce.item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.kl is None
    assert (states[3:7] == 0).all()
    case.labels[:] = -1
    found, states, weight = case.run(chunk_tokens=4)
    assert found.loss == 0
    assert (states == 0).all()
    assert (weight == 0).all()


def test_the_next_token_is_the_label_and_a_block_ends_without():
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]], dtype=torch.int32)
    labels = asked_labels({"labels": ids.long()})
    assert labels.tolist() == [6, 7, -100, 9, 10, -100]
    assert labels.dtype == torch.int64
    assert asked_labels({"labels": torch.tensor([[3]])}).tolist() == [-100]


def test_states_of_blocks_are_states_of_tokens():
    case = Case(9, shape=(12, D, V))
    _, states, weight = case.run()
    blocks = case.states.detach().view(3, 4, D).requires_grad_()
    case.weight.grad = None
    head_loss(blocks, case.weight, case.labels).loss.backward()
    torch.testing.assert_close(blocks.grad.flatten(0, 1), states)
    torch.testing.assert_close(case.weight.grad, weight)


def test_a_frozen_part_gets_no_gradient_and_the_other_the_same():
    case = Case(10)
    options = {"target": case.full, "kl_weight": 0.5}
    found, states, weight = case.run(**options)
    case.weight.requires_grad_(False)
    _, alone, nothing = case.run(**options)
    assert nothing is None
    assert torch.equal(alone, states)
    case.weight.requires_grad_(True)
    case.states.requires_grad_(False)
    _, nothing, alone = case.run(**options)
    assert nothing is None
    assert torch.equal(alone, weight)
    with torch.no_grad():
        values = case.loss(**options)
    assert not values.loss.requires_grad
    assert torch.equal(torch.stack(values), torch.stack([value.detach() for value in found]))


def test_backward_scales_and_runs_once():
    case = Case(11)
    _, states, weight = case.run()
    case.states.grad = case.weight.grad = None
    loss = case.loss().loss
    (loss / 3 * 6).backward(retain_graph=True)
    torch.testing.assert_close(case.states.grad, 2 * states)
    torch.testing.assert_close(case.weight.grad, 2 * weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(case.loss().loss, case.weight, create_graph=True)


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_half_precision_is_close_to_single(k, kind):
    case = Case(12, scale=0.5, dtype=torch.float32, shape=(64, 32, 300))
    options = {"target": case.target(k), "kl_weight": 0.7, "chunk_tokens": 24}
    expected, *gradients = case.run(**options)
    if kind == "bfloat16":
        case.states, case.weight = (
            x.detach().bfloat16().requires_grad_() for x in (case.states, case.weight)
        )
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found, *rough = case.run(**options)
    assert all(value.dtype == torch.float32 for value in found)
    assert torch.stack(found).allclose(torch.stack(expected), rtol=0.01)
    for one, other in zip(rough, gradients, strict=True):
        assert one.dtype == (torch.float32 if kind == "autocast" else torch.bfloat16)
        assert (one - other).norm() < 0.02 * other.norm()


def test_float16_keeps_gradients_that_are_far_below_its_range():
    case = Case(15, scale=0.5, dtype=torch.float32, shape=(8192, 8, 100))  # 1 / (8192 * 100) is about 1e-6
    _, *expected = case.run()
    with torch.autocast("cpu", torch.float16):
        _, *found = case.run(chunk_tokens=1000)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


# Of torch's own making after a graph break: it hides the warning, which does not help where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_code_may_call_it():
    case = Case(16)
    _, states, weight = case.run()
    case.states.grad = case.weight.grad = None
    compiled = torch.compile(lambda x: 2 * head_loss(x, case.weight, case.labels).loss, backend="eager")
    compiled(case.states).backward()
    torch.testing.assert_close([case.states.grad, case.weight.grad], [2 * states, 2 * weight])


def test_half_precision_adds_up_over_chunks_without_losing_digits():
    case = Case(13, scale=0.5, dtype=torch.float32, shape=(128, 16, 40))
    _, _, expected = case.run()
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            (case.run(chunk_tokens=length)[2] - expected).norm() / expected.norm() for length in (128, 1)
        ]
    assert errors[1] < 1.5 * errors[0] + 1e-3


def test_what_does_not_fit_together_is_named():
    case = Case(14)
    states, weight, labels, full, top = case.states, case.weight, case.labels, case.full, case.target(3)
    for message, arguments in [
        (r"weight: expected \(V, 6\), got \(13, 5\)", (states, weight[:, 1:], labels)),
        (r"labels: expected \(11,\)", (states, weight, labels[1:])),
        ("states: expected the weight's type", (states.float(), weight, labels)),
        ("target: expected 11 tokens, got 10", FullTarget(full.states[1:], full.weight)),
        ("target.weight: expected 13 tokens, got 12", FullTarget(full.states, full.weight[1:])),
        (r"target.log_probs: expected \(11, 3\)", top._replace(log_probs=top.log_probs[:, 1:])),
        (r"target.tail: expected \(11,\)", top._replace(tail=top.tail[:, None])),
    ]:
        if isinstance(arguments, FullTarget | TopTarget):
            arguments = (states, weight, labels, TeacherDivergence(arguments))
        with pytest.raises(ValueError, match=message):
            head_loss(*arguments)
    with pytest.raises(ValueError, match="divergence: expected one of forward, reverse, jsd, got 'kl'"):
        TeacherDivergence(full, "kl")
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        TeacherDivergence(full, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens: expected at least 1"):
        case.loss(chunk_tokens=0)


def beyond_weights(vocab_size, kind, monkeypatch, autocast=False, num_tokens=240, width=4):
    """Peak of a training step without the head's own gradient, and without autocast's copies of weights."""
    monkeypatch.setattr("iiad.training.head.CHUNK_LOGITS", {"cpu": 1 << 17})
    monkeypatch.setattr("iiad.training.head.ROW_LOGITS", {"cpu": 1 << 13})
    states = torch.zeros(num_tokens, width, requires_grad=True)
    weight = torch.zeros(vocab_size, width, requires_grad=True)
    labels = torch.zeros(num_tokens, dtype=torch.long)
    target = FullTarget(torch.zeros(num_tokens, width), torch.zeros(vocab_size, width))
    if kind == "top":
        ids = torch.arange(4).expand(num_tokens, 4)
        target = TopTarget(ids, torch.full((num_tokens, 4), -2.0), torch.full((num_tokens,), -0.8))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            extra = None if kind == "ce" else TeacherDivergence(target)
            loss = head_loss(states, weight, labels, extra, kl_weight=float(kind != "ce")).loss
        loss.backward()

    copies = 2 * (1 + (kind == "full")) * weight.numel() * autocast
    return peak_bytes(step) - weight.nbytes - copies


@pytest.mark.parametrize("kind", ["ce", "full", "top"])
def test_memory_does_not_grow_with_the_vocabulary(kind, monkeypatch):
    small, large = (beyond_weights(size, kind, monkeypatch) for size in (1_000, 4_000))
    assert large <= 1.2 * small
    assert large < 0.5 * 240 * 4_000 * 4  # not even half a batch's logits in float32


def test_half_precision_takes_less_memory(monkeypatch):
    single, half = (beyond_weights(1_000, "full", monkeypatch, autocast) for autocast in (False, True))
    assert half < 0.7 * single


def test_a_vocabulary_larger_than_a_chunk_still_gets_one_token_at_a_time(monkeypatch):
    case = Case(17)
    whole, *expected = case.run()
    for sizes in ("CHUNK_LOGITS", "ROW_LOGITS"):
        monkeypatch.setattr(f"iiad.training.head.{sizes}", {"cpu": V - 1})
    found, *gradients = case.run()
    torch.testing.assert_close(found.loss, whole.loss)
    torch.testing.assert_close(gradients, expected)
