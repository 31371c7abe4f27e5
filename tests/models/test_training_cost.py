"""Cost of training an iterated model beside a Llama with as many layers as it has evaluations; recomputation."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from iiad.evaluation.activation_memory import saved_bytes
from iiad.models import IIETConfig, IIETModel
from iiad.models.compatibility import CACHE
from iiad.models.layers import RMSNorm
from tests.helpers import VARIANTS, make_iiet

WIDE = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 2}


def saved_by(model, autocast):
    tokens = torch.randint(50, (2, 64))

    def work():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(tokens, use_cache=False).last_hidden_state

    return saved_bytes(work, model)


@cache
def saved_by_llama(depth, autocast, attention):
    config = LlamaConfig(**WIDE, num_hidden_layers=depth, attn_implementation=attention)
    return saved_by(LlamaModel(config).train(), autocast)


def ratio(autocast=False, attention="sdpa", recompute="none", **fields):
    model = IIETModel(IIETConfig(**WIDE, num_layers=4, **fields, attn_implementation=attention)).train()
    model.set_recompute(recompute)
    llama = saved_by_llama(model.config.num_hidden_layers, autocast, attention)
    return saved_by(model, autocast) / llama


@pytest.mark.parametrize(
    ("autocast", "attention"),
    [(False, "sdpa"), (True, "sdpa"), (True, "eager")],
    ids=["float32", "autocast", "eager"],
)
@pytest.mark.parametrize(
    "fields",
    [
        {"num_iterations": 3},
        {"num_iterations": [3, 0, 1, 2]},
        {"num_iterations": 0},
        {"num_iterations": 3, "history": False},
        {"num_iterations": 3, "history": False, "relaxation": True},
    ],
    ids=["history", "plan", "no-iterations", "plain", "relaxed"],
)
def test_a_step_saves_no_more_than_a_llamas_of_as_many_evaluations(fields, autocast, attention):
    assert ratio(autocast, attention, **fields) <= 1.01


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize(
    ("recompute", "autocast", "bound"),
    [
        ("layer", False, 0.05),
        ("layer", True, 0.07),
        ("evaluation", False, 0.1),
        ("evaluation", True, 0.13),  # what is kept stays in float32, while half of the Llama's is bfloat16
    ],
)
def test_recomputation_saves_a_small_part(recompute, autocast, bound, history):
    assert ratio(autocast, recompute=recompute, num_iterations=3, history=history) <= bound


def gradients(model, tokens, autocast):
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        # Recomputation goes without a cache, which under autocast would keep bfloat16 values in float32.
        loss = model(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [kind for kind in VARIANTS if kind != "untied"])
def test_recomputation_changes_no_gradient_dropout_and_changes_of_plan_included(kind, tokens):
    model = VARIANTS[kind]().train()
    model.config.attention_dropout = 0.3
    for plan, autocast in ((model.config.num_iterations, False), ([0, 1, 0], True)):
        model.set_num_iterations(plan)
        model.set_recompute("none")
        wanted = gradients(model, tokens, autocast)
        for recompute in ("layer", "evaluation"):
            model.set_recompute(recompute)
            found = gradients(model, tokens, autocast)
            assert wanted.keys() == found.keys()
            assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_an_evaluation_is_run_once_more_and_one_after_the_other(tokens):
    model = make_iiet(num_iterations=[2, 0, 1], max_num_iterations=3).train()
    runs = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: runs.append("forward"))
        layer.mlp.register_full_backward_hook(lambda *_: runs.append("backward"))
    model.set_recompute("evaluation")
    loss = model(tokens, labels=tokens).loss
    assert runs == ["forward"] * 6
    runs.clear()
    loss.backward()
    assert runs == ["forward", "backward"] * 6


def test_the_switch_is_transformers_own_and_not_in_the_configuration(tokens):
    model = make_iiet(num_iterations=1)
    assert model.recompute == model.model.recompute == "none"
    before = model.config.to_dict()
    for unit in ("evaluation", "layer", "evaluation"):
        model.set_recompute(unit)
        assert model.recompute == model.model.recompute == unit
    assert model.config.to_dict() == before
    assert model.train()(tokens, use_cache=True).get(CACHE) is None
    cache = DynamicCache(config=model.config)
    model(tokens, labels=tokens, cache=cache).loss.backward()
    assert cache.get_seq_length() == 0  # else the backward pass would write to it again
    assert model.eval()(tokens, use_cache=True).get(CACHE) is not None
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    assert model.recompute == "layer"
    model.set_recompute("evaluation")
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()
    assert model.recompute == "none"
    with pytest.raises(ValueError, match="recompute: expected 'none', 'layer' or 'evaluation', got 'block'"):
        model.set_recompute("block")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@pytest.mark.slow  # the gate compiles whole training steps in the training room
@pytest.mark.parametrize("recompute", ["none", "evaluation"])
def test_training_compiles_as_one_graph(recompute, tokens):
    model = make_iiet(num_iterations=1).train()
    wanted = torch.autograd.grad(model(tokens, use_cache=False).logits.square().mean(), [*model.parameters()])
    model.set_recompute(recompute)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(
        compiled(tokens, use_cache=False).logits.square().mean(), [*model.parameters()]
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


SHAPES = st.sampled_from([(1, 8), (2, 3, 16), (2, 7, 33), (1, 5, 4, 8)])
TYPES = [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.bfloat16, torch.float32)]


@settings(max_examples=40)
@given(
    shape=SHAPES, types=st.sampled_from(TYPES), scale=st.sampled_from([1e-3, 1.0, 30.0]), seed=st.integers(0)
)
def test_rms_norm_is_llamas_to_the_last_bit_of_value_and_gradient(shape, types, scale, seed):
    generator = torch.Generator().manual_seed(seed % 2**63)
    x, direction = (scale * torch.randn(shape, generator=generator) for _ in range(2))
    weight = torch.randn(shape[-1], generator=generator)
    results = []
    for norm in (LlamaRMSNorm(shape[-1]), RMSNorm(shape[-1])):
        norm.weight.data = weight.to(types[1])
        point = x.to(types[0]).requires_grad_()
        value = norm(point)
        results.append((value, *torch.autograd.grad(value, [point, norm.weight], direction.to(value.dtype))))
    for theirs, ours in zip(*results, strict=True):
        assert theirs.dtype == ours.dtype
        assert torch.equal(theirs, ours)


WEIGHT = torch.nn.Parameter(torch.randn(6, 4))
INPUT = torch.randn(5, 4)  # 80 bytes
LINEAR = torch.nn.Linear(4, 6, bias=False)
FROZEN = torch.nn.Linear(4, 6, bias=False).requires_grad_(False)


def autocast_linear():
    with torch.autocast("cpu", torch.bfloat16):
        return LINEAR(INPUT)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: INPUT @ WEIGHT.T, 80),  # the input, for the weight's gradient; the weight is none
        (lambda: (INPUT @ WEIGHT.T).exp(), 80 + 120),  # and exp's result
        (lambda: (INPUT[1:] @ WEIGHT.T, INPUT.view(20)[:4] * WEIGHT[0]), 80),  # views of one storage
        (lambda: (INPUT @ WEIGHT.T).detach().exp(), 80),
        (lambda: checkpoint(lambda x: (x @ WEIGHT.T).exp().exp(), INPUT, use_reentrant=False), 80),
        (lambda: INPUT + WEIGHT[:5], 0),
        (lambda: (WEIGHT * 2).exp(), 96),
        (autocast_linear, 40),  # the input in bfloat16, and not the weight's copy
    ],
)
def test_saved_bytes_are_those_that_one_can_count_by_hand(work, expected):
    assert saved_bytes(work) == expected
    with torch.no_grad():
        assert saved_bytes(work) == expected


def test_saved_bytes_leave_out_tensors_of_the_modules_named():
    point = INPUT.clone().requires_grad_()
    assert saved_bytes(lambda: FROZEN(point * 2)) == 96
    assert saved_bytes(lambda: FROZEN(point * 2), FROZEN) == 0
