"""Weight-only quantization by torchao: what it touches, that caches stay exact, and what it costs in quality."""

import copy
import logging
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from iiad.conversion.quantization import (
    GROUP_SIZE,
    KINDS,
    check_kinds,
    hide_load_remarks,
    quantize,
    quantized_copy,
)
from iiad.evaluation import Evaluation
from iiad.memory import tensor_bytes, weight_bytes
from tests.helpers import make_iiet, make_pcformer, refused

MODELS = {
    "iiet": lambda: make_iiet(num_iterations=[0, 2, 1], max_num_iterations=3, intermediate_size=64),
    "pcformer": lambda: make_pcformer(intermediate_size=64),
}


def block_weights(model):
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layers" in name
    }


def decode(model, tokens, mask, use_cache):
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(tokens, attention_mask=mask, use_cache=use_cache, **options)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_decodes_from_its_cache_what_it_decodes_without(model, kind, dtype, tokens):
    model = model.to(dtype)
    quantize(model, kind)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0  # padded on the left
    assert torch.equal(*(decode(model, tokens, mask, use_cache) for use_cache in (True, False)))


@pytest.mark.parametrize(("kind", "step"), [("int8", 1 / 127), ("int4", 1 / 15)])
def test_weights_of_blocks_and_no_others_are_rounded_to_a_grid(model, kind, step):
    before = copy.deepcopy(model)
    assert quantize(model, kind) == len(block_weights(before))
    for name, weight in block_weights(model).items():
        old = block_weights(before)[name]
        unit = torch.eye(old.shape[1])
        new = torch.nn.functional.linear(unit, weight).T  # what the layer computes with
        groups = old.unflatten(1, (-1, old.shape[1] if kind == "int8" else GROUP_SIZE))
        scale = groups.abs().amax(-1) if kind == "int8" else groups.amax(-1) - groups.amin(-1)
        error = (new - old).unflatten(1, groups.shape[1:]).abs().amax(-1)
        assert (error <= 0.51 * step * scale + 1e-6).all()
        assert (error > 0).any()
    rest = set(dict(before.named_parameters())) - {f"{name}.weight" for name in block_weights(before)}
    for name in rest:
        assert torch.equal(model.get_parameter(name), before.get_parameter(name))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weight_bytes_are_those_of_what_is_stored(model):
    quarter, eighth = quantized_copy(model, "int8"), quantized_copy(model, "int4")
    for name, weight in block_weights(model).items():
        rows, columns = weight.shape
        # int8: a float32 scale for each row, and room for an int8 zero point.
        assert rows * columns + 4 * rows <= tensor_bytes(block_weights(quarter)[name].data)
        assert tensor_bytes(block_weights(quarter)[name].data) <= rows * columns + 5 * rows
        # int4: a float32 scale and zero for each group.
        groups = rows * columns // GROUP_SIZE
        assert tensor_bytes(block_weights(eighth)[name].data) == rows * columns // 2 + 8 * groups
    others = weight_bytes(model) - sum(weight.nbytes for weight in block_weights(model).values())
    assert others < weight_bytes(eighth) < weight_bytes(quarter) < weight_bytes(model)


@torch.no_grad()
def test_a_copy_shares_all_but_the_quantized_weights_and_leaves_the_model(model, tokens):
    before = model(tokens, use_cache=False).logits
    other = quantized_copy(model, "int8")
    assert torch.equal(model(tokens, use_cache=False).logits, before)
    assert other.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert other.model.layers[1].corrector.update_weights is model.model.layers[1].corrector.update_weights
    assert type(other.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    with refused("expected whole weights, got a model that is quantized already"):
        quantize(other, "int8")
    if type(model.config).model_type == "iiet":
        other.set_num_iterations(0)
        assert model.config.iterations == [0, 2, 1]


def test_a_copy_leaves_the_model_its_biases(tokens):
    model = make_iiet(num_iterations=1, attention_bias=True, mlp_bias=True)
    wanted = model(tokens).logits
    quantized_copy(model, "int8", torch.bfloat16)
    assert torch.equal(model(tokens).logits, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_quantized_layers_compute_in_their_dtype(model, kind, tokens):
    wide, narrow = quantized_copy(model, kind), quantized_copy(model, kind, torch.bfloat16)
    with torch.no_grad():
        exact = wide(tokens, use_cache=False).logits
        for other in (wide, narrow):
            with torch.autocast("cpu", torch.bfloat16):
                logits = other(tokens, use_cache=False).logits
            assert 0 < (logits - exact).norm() / exact.norm() < 0.2


def test_layers_that_int4_does_not_fit_become_int8():
    model = make_iiet(num_iterations=1)  # an MLP of width 56: no multiple of 32 in, none of 16 out
    assert quantize(model, "int4") == 3 * 4  # the projections of the attention
    kinds = {name: type(weight.data).__name__ for name, weight in block_weights(model).items()}
    assert kinds["model.layers.0.mlp.up_proj"] == kinds["model.layers.0.mlp.down_proj"] == "Int8Tensor"
    assert kinds["model.layers.0.self_attn.o_proj"] != "Int8Tensor"


@pytest.mark.parametrize(
    ("kinds", "device", "dtype", "words"),
    [
        (["int2"], "cpu", "float32", "quantize: expected int8 or int4, got 'int2'"),
        (["int8"], "mps", "float32", "quantize: expected cpu or cuda, got int8 on mps"),
        (["int4"], "cuda:1", "float32", "quantize: expected --dtype bfloat16 for int4 on cuda, got float32"),
    ],
)
def test_what_cannot_be_quantized_is_said(kinds, device, dtype, words):
    with refused(words):
        check_kinds(kinds, device, dtype)


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with refused("quantize: expected torchao (pip install 'iiad[quantize]'), got "):
        quantize(make_iiet(num_iterations=1), "int8")
    assert check_kinds([], "cpu", "float32") == []


def test_remarks_of_loading_are_hidden_and_others_are_not(caplog):
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    filters = [list(logger.filters) for logger in loggers]
    try:
        hide_load_remarks()
        loggers[0].warning("Failed to load /somewhere/_C.so: no CUDA")
        loggers[1].warning("<enum 'Kind'> is an Enum subclass and is now natively supported")
        loggers[0].warning("something else")
    finally:
        for logger, known in zip(loggers, filters, strict=True):
            logger.filters[:] = known
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_the_quality_that_it_costs_is_a_row_of_the_evaluation(folders, iiad, tmp_path):
    arguments = (
        folders.teacher,
        folders.student,
        "--data",
        folders.text,
        "--plan",
        folders.plan,
        "--device",
        "cpu",
    )
    kinds = [word for kind in KINDS for word in ("--quantize", kind)]
    output = tmp_path / "evaluation.json"
    code, shown, errors = iiad("evaluate", *arguments, *kinds, "--block-size", 32, "--output", output)
    assert code == 0, errors
    assert "teacher, int8" in shown
    rows = Evaluation.load(output).results
    labels = ["teacher", "teacher, truncated", "teacher, int8", "teacher, int4", "student"]
    assert [row.label for row in rows] == labels
    full, truncated, eight, four, _ = rows
    assert eight.evaluations_per_token == four.evaluations_per_token == full.evaluations_per_token
    assert truncated.evaluations_per_token < full.evaluations_per_token
    assert 0 < abs(eight.nll - full.nll) < abs(four.nll - full.nll) < 0.5


def test_transformers_own_way_loads_saves_and_reloads_our_models_quantized(folders, tokens, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    theirs = AutoModelForCausalLM.from_pretrained(folders.teacher, quantization_config=config).eval()
    ours = AutoModelForCausalLM.from_pretrained(folders.teacher).eval()
    quantize(ours, "int8")
    with torch.no_grad():
        wanted = ours(tokens, use_cache=False).logits
        torch.testing.assert_close(theirs(tokens, use_cache=False).logits, wanted)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    theirs.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)
    assert type(again.model.layers[0].mlp.up_proj.weight.data).__name__ == "Int8Tensor"
    mask = torch.ones_like(tokens)
    assert torch.equal(*(decode(again, tokens, mask, use_cache) for use_cache in (True, False)))
