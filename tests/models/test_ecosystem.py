"""Models inside what others build around them: offloading, engines with caches of their own, DDP, quantizers."""

import ast
import copy
import inspect
import re
import textwrap

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from iiad.models.layers import EvaluationSlot, SlottedAttention
from tests.helpers import PAIR_VARIANTS, UNEVEN, VARIANTS, make_iiet, make_pcformer, make_seq2seq

KINDS = ["history", "relaxed", "plain", "shared", "pcformer-rk2"]


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_model_equals_the_one_in_memory(name, where, tokens, tmp_path):
    model = VARIANTS[name]()
    wanted = model(tokens).logits
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        model.save_pretrained(tmp_path / "model")
        parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "model.predictor", "lm_head")
        places = dict.fromkeys(parts, "cpu") | {"model.layers": "disk", "model.predictor": "disk"}
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
        )
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    torch.testing.assert_close(model(tokens).logits, wanted, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["history", "pcformer-rk2"])
def test_an_offloaded_encoder_decoder_equals_the_one_in_memory(name, tokens):
    model, inputs = PAIR_VARIANTS[name](), {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}
    wanted = model(**inputs).logits
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.model.decoder.layers[1].cross_attn.k_proj.weight.is_meta
    torch.testing.assert_close(model(**inputs).logits, wanted, rtol=0, atol=0)


@pytest.fixture
def one_process(tmp_path):
    """A group of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    "make",
    [
        lambda: make_iiet(num_iterations=[0, 1, 0], max_num_iterations=2),
        lambda: make_iiet(num_iterations=[0, 2, 0], history=False, relaxation=True),
        lambda: make_pcformer(num_iterations=[0, 1, 0], max_num_iterations=1, predictor_stages=1),
        lambda: make_seq2seq(**UNEVEN),
    ],
    ids=["history", "relaxed", "pcformer", "encoder-decoder"],
)
def test_stock_ddp_trains_a_model_whose_plan_leaves_parameters_without_use(make, tokens):
    model = make().train()
    alone = copy.deepcopy(model)
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # the second would say that parameters of the first got no gradient
        for each in (parallel, alone):
            each(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    unused = [name for name, parameter in alone.named_parameters() if parameter.grad is None]
    assert any("update_weights" in name or "relaxation" in name for name in unused) or "pcformer" in str(make)
    for name, parameter in model.named_parameters():
        wanted = dict(alone.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if wanted is None else wanted)


# What an engine like vLLM reads of a model: which module calls the attention function, by its source, and the number
# of its cache in the module's name.


def test_one_module_calls_the_registered_attention_function_once_with_its_scaling():
    callers = []
    for kind in (EvaluationSlot, SlottedAttention):
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = [node for node in calls if getattr(node.func, "id", None) == "attend"]
        if called or "ALL_ATTENTION_FUNCTIONS" in ast.dump(tree):
            callers.append(kind)
            scaling = [word.value for word in called[0].keywords if word.arg == "scaling"]
            assert [ast.unparse(value) for value in scaling] == ["self.scaling"]
            assert len(called) == 1
    assert callers == [EvaluationSlot]


@pytest.mark.parametrize("name", ["history", "shared", "pcformer-rk2"])
def test_slots_are_registered_once_under_a_name_with_their_number_alone(name):
    model = VARIANTS[name]()
    for plan in (model.config.num_iterations, [1, 0, 1]):
        model.set_num_iterations(plan)
        for each in (model, copy.deepcopy(model)):
            modules = each.named_modules()
            slots = {name: module for name, module in modules if isinstance(module, EvaluationSlot)}
            numbers = [[int(number) for number in re.findall(r"\d+", key)] for key in slots]
            assert numbers == [[slot.layer_idx] for slot in slots.values()]
            assert numbers == [[n] for n in range(model.config.num_hidden_layers)]
            held = [slot for layer in each.model.layers for slot in layer.slots]
            assert all(own is slot for own, slot in zip(held, slots.values(), strict=True))
    assert not any("slots" in key for key in model.state_dict())
    assert model.train().model.slots[0].training
    assert not model.eval().model.slots[0].training


@torch.no_grad()
@pytest.mark.parametrize("name", ["history", "relaxed", "shared", "pcformer-rk2"])
def test_an_engine_that_keeps_keys_and_values_by_slot_decodes_what_generate_does(name, tokens):
    model, prompt, new = VARIANTS[name](), tokens[:1], 4
    wanted = model.generate(prompt, max_new_tokens=new, do_sample=False, eos_token_id=None)
    kept = {}

    def engine(module, query, key, value, mask, scaling=None, **kwargs):
        """As vLLM's: finds its cache by the module, ignores the mask and returns (T, N * E)."""
        assert (mask, len(query)) == (None, 1)
        old = kept.get(module)
        if old is not None:
            key, value = (torch.cat(pair, 2) for pair in zip(old, (key, value), strict=True))
        kept[module] = key, value
        late = torch.ones(query.shape[2], key.shape[2]).tril(key.shape[2] - query.shape[2]).bool()
        mixed = scaled_dot_product_attention(
            query, key, value, late, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1), None

    ALL_ATTENTION_FUNCTIONS.register("engine", engine)
    model.config._attn_implementation = "engine"
    given, found = prompt, prompt
    for _ in range(new):
        positions = torch.arange(found.shape[1] - given.shape[1], found.shape[1])[None]
        states = model.model(given, position_ids=positions, use_cache=False, return_dict=False)[0]
        given = model.lm_head(states[:, -1:]).argmax(-1)
        found = torch.cat([found, given], 1)
    assert found.tolist() == wanted.tolist()
    assert len(kept) == model.config.num_hidden_layers


@torch.no_grad()
def test_a_compiled_forward_takes_any_number_of_tokens_in_one_graph():
    model = make_iiet(num_layers=1, num_iterations=1)
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=True)
    for length in (9, 2):
        ids = torch.randint(3, 90, (1, length))
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    assert len(graphs) == 1


class Quantized(nn.Module):
    """A projection as quantizers have it: packed weights or none, and results in the configuration's type."""

    def __init__(self, linear, packed):
        super().__init__()
        self.hidden = [linear]
        if packed is not None:
            self.weight = nn.Parameter(torch.zeros(1).to(packed), requires_grad=False)

    def forward(self, x):
        return self.hidden[0](x)


@torch.no_grad()
@pytest.mark.parametrize("packed", [torch.uint8, torch.float8_e4m3fn, None], ids=["packed", "float8", "none"])
def test_flash_attention_is_given_the_configurations_type_where_projections_are_quantized(packed, tokens):
    seen = set()

    def flash(module, query, key, value, mask, **kwargs):
        seen.update((query.dtype, key.dtype, value.dtype))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("flash_stand_in", flash)
    model = make_iiet(num_iterations=1).bfloat16()
    model.config._attn_implementation = "flash_stand_in"
    model(tokens)
    assert seen == {torch.bfloat16}  # the weights' own, which the configuration does not know
    model.config.dtype = torch.bfloat16
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(layer.self_attn, name, Quantized(getattr(layer.self_attn, name), packed))
    seen.clear()
    model(tokens)
    assert seen == {torch.bfloat16}
