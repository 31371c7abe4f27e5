"""Everything that transformers' generate() offers gives the text of the model itself, whatever it is cached in."""

import copy

import pytest
import torch
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

from iiad.models.compatibility import CACHE
from tests.helpers import greedy, make_iiet, make_pcformer

NEW = 6
OPTIONS = {"max_new_tokens": NEW, "min_new_tokens": NEW, "eos_token_id": -1, "pad_token_id": 0}
MODELS = {
    "exact": lambda: make_iiet(num_layers=2, num_iterations=[0, 2]),
    "shared": lambda: make_iiet(num_layers=2, num_iterations=[0, 2], cache_policy="shared"),
    "plain": lambda: make_iiet(num_layers=2, num_iterations=[1, 0], history=False),
    "pcformer": lambda: make_pcformer(num_layers=2),
}
PROMPT = torch.randint(3, 97, (1, 9), generator=torch.Generator().manual_seed(11))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def wanted(model):
    """The prompt and the model's own text."""
    return greedy(model, PROMPT, NEW)


def generate(model, prompt=PROMPT, **options):
    options = {**OPTIONS, "do_sample": False, **options}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


def generate_compiled(model, **settings):
    torch.compiler.reset()
    settings = CompileConfig(fullgraph=True, mode=None, **settings)
    settings._compile_all_devices = True  # else on GPUs only
    found = generate(model, cache_implementation="static", compile_config=settings)
    assert hasattr(model, "_compiled_call")
    return found


def test_beams_are_those_of_the_uncached_model(model):
    options = {"num_beams": 4, "num_return_sequences": 3}
    cached = generate(model, **options)
    assert cached.shape[0] == 3
    assert torch.equal(cached, generate(model, use_cache=False, **options))


def test_samples_are_those_of_the_uncached_model(model):
    def sample(**options):
        torch.manual_seed(7)
        return generate(model, do_sample=True, temperature=1.3, num_return_sequences=3, **options)

    cached = sample()
    assert torch.equal(cached, sample(use_cache=False))
    assert len({tuple(row.tolist()) for row in cached}) == 3


def test_assisted_generation_says_what_the_model_says(model, wanted):
    fewer_iterations = copy.deepcopy(model)
    fewer_iterations.set_num_iterations(0)
    for assistant in (fewer_iterations, make_iiet(num_layers=1, num_iterations=0)):
        assert torch.equal(generate(model, assistant_model=assistant), wanted)


def test_prompt_lookup_says_what_the_model_says(model):
    repeated = torch.cat([PROMPT, PROMPT], 1)
    found = generate(model, repeated, prompt_lookup_num_tokens=3)
    assert torch.equal(found, greedy(model, repeated, NEW))


def test_streaming_hands_out_every_token_in_turn(model, wanted):
    class Collected(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collected()
    found = generate(model, streamer=streamer)
    assert streamer.ended
    assert streamer.tokens == found[0].tolist() == wanted[0].tolist()


def test_a_cache_that_the_caller_built_is_used(model, wanted):
    cache = StaticCache(config=model.config, max_cache_len=32)
    assert torch.equal(generate(model, **{CACHE: cache}, disable_compile=True), wanted)
    assert len(cache.layers) == model.config.num_hidden_layers
    assert cache.get_seq_length() == PROMPT.shape[1] + NEW - 1


def test_a_cache_carries_over_from_one_call_to_the_next(model, wanted):
    half = {"max_new_tokens": NEW // 2, "min_new_tokens": NEW // 2}
    first = generate(model, return_dict_in_generate=True, **half)
    found = generate(model, first.sequences, **{CACHE: first[CACHE]}, **half)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "name", ["shared", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "shared")]
)
def test_generate_compiles_decoding_as_one_graph(name):
    model = MODELS[name]()
    assert torch.equal(generate_compiled(model, backend="aot_eager"), greedy(model, PROMPT, NEW))


@pytest.mark.slow  # a C++ compiler at work
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, in inductor
def test_generate_compiles_decoding_with_inductor(model, wanted):
    assert torch.equal(generate_compiled(copy.deepcopy(model)), wanted)


@pytest.mark.parametrize(
    "name", ["exact", "shared", *(pytest.param(n, marks=pytest.mark.slow) for n in ("plain", "pcformer"))]
)
def test_continuous_batching_gives_each_request_its_own_text(name):
    model = MODELS[name]()
    outputs = model.generate_batch(
        inputs=[list(range(5, 5 + n)) for n in (4, 11, 7)],
        generation_config=GenerationConfig(
            max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        progress_bar=False,
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
    )
    assert len(outputs) == 3
    for output in outputs.values():
        text = greedy(model, torch.tensor([output.prompt_ids]), NEW)[0].tolist()
        assert [*output.prompt_ids, *output.generated_tokens] == text


@pytest.mark.parametrize(
    "attention",
    ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)],  # flex is compiled
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, in inductor
@pytest.mark.filterwarnings(
    "ignore:_compile flag on create_block_mask:DeprecationWarning"
)  # transformers sets it
def test_attention_implementations_agree(attention, model, wanted):
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention)
    assert torch.equal(generate(model), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "sdpa"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_attention_implementations_agree_on_a_gpu(attention, make):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model, prompt = make().to("cuda", torch.bfloat16), PROMPT.cuda()
    wanted = model(prompt, use_cache=False).logits.float()
    model.set_attn_implementation(attention)
    found = model(prompt, use_cache=False).logits.float()
    assert (found - wanted).abs().max() < 0.05 * wanted.std()
    assert torch.equal(generate(model, prompt), generate(model, prompt, use_cache=False))
