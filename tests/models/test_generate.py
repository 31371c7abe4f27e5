"""Everything that transformers' generate() offers gives the text of the model itself, whatever it is cached in."""

import copy

import pytest
import torch
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

from tests.helpers import make_iiet, make_pcformer

NEW = 10
OPTIONS = {"max_new_tokens": NEW, "min_new_tokens": NEW, "eos_token_id": -1, "pad_token_id": 0}
SMALL = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
MODELS = {
    "exact": lambda: make_iiet(num_iterations=[0, 2, 1]),
    "shared": lambda: make_iiet(num_iterations=[0, 2, 1], cache_policy="shared"),
    "plain": lambda: make_iiet(num_iterations=[1, 0, 2], history=False),
    "pcformer": lambda: make_pcformer(),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def prompt():
    return torch.randint(3, 97, (1, 9), generator=torch.Generator().manual_seed(11))


def generate(model, prompt, **options):
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **{**OPTIONS, **options})


@torch.no_grad()
def greedy(model, prompt):
    for _ in range(NEW):
        logits = model(prompt, use_cache=False).logits
        prompt = torch.cat([prompt, logits[:, -1:].argmax(-1)], 1)
    return prompt


def test_beams_are_those_of_the_uncached_model(model, prompt):
    options = {"num_beams": 4, "num_return_sequences": 3, "do_sample": False}
    cached = generate(model, prompt, **options)
    assert cached.shape[0] == 3
    assert torch.equal(cached, generate(model, prompt, use_cache=False, **options))


def test_samples_are_those_of_the_uncached_model(model, prompt):
    def sample(**options):
        torch.manual_seed(7)
        return generate(model, prompt, do_sample=True, temperature=1.3, num_return_sequences=3, **options)

    cached = sample()
    assert torch.equal(cached, sample(use_cache=False))
    assert len({tuple(row.tolist()) for row in cached}) == 3


@pytest.mark.parametrize("assistant", ["fewer-iterations", "another"])
def test_assisted_generation_says_what_the_model_says(assistant, model, prompt):
    if assistant == "another":
        helper = make_iiet(num_iterations=0)
    else:
        helper = copy.deepcopy(model)
        helper.set_num_iterations(0)
    found = generate(model, prompt, assistant_model=helper, do_sample=False)
    assert torch.equal(found, greedy(model, prompt))


def test_prompt_lookup_says_what_the_model_says(model, prompt):
    repeated = torch.cat([prompt, prompt], 1)
    found = generate(model, repeated, prompt_lookup_num_tokens=3, do_sample=False)
    assert torch.equal(found, greedy(model, repeated))


def test_streaming_hands_out_every_token_in_turn(model, prompt):
    class Collected(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collected()
    found = generate(model, prompt, streamer=streamer, do_sample=False)
    assert streamer.ended
    assert streamer.tokens == found[0].tolist() == greedy(model, prompt)[0].tolist()


def test_a_cache_that_the_caller_built_is_used(model, prompt):
    cache = StaticCache(config=model.config, max_cache_len=32)
    found = generate(model, prompt, past_key_values=cache, do_sample=False, disable_compile=True)
    assert torch.equal(found, greedy(model, prompt))
    assert len(cache.layers) == model.config.num_hidden_layers
    assert cache.get_seq_length() == prompt.shape[1] + NEW - 1


def test_a_cache_carries_over_from_one_call_to_the_next(model, prompt):
    whole = greedy(model, prompt)
    first = generate(
        model, prompt, do_sample=False, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True
    )
    rest = NEW - 4
    found = generate(
        model,
        first.sequences,
        past_key_values=first.past_key_values,
        do_sample=False,
        max_new_tokens=rest,
        min_new_tokens=rest,
    )
    assert torch.equal(found, whole)


@pytest.mark.parametrize(
    "name", ["shared", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "shared")]
)
def test_generate_compiles_decoding_as_one_graph(name, prompt):
    model = MODELS[name]()
    torch.compiler.reset()
    settings = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    settings._compile_all_devices = True  # else on GPUs only
    found = generate(model, prompt, cache_implementation="static", compile_config=settings, do_sample=False)
    assert hasattr(model, "_compiled_call")
    assert torch.equal(found, greedy(model, prompt))


@pytest.mark.slow  # a C++ compiler at work
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, in inductor
def test_generate_compiles_decoding_with_inductor(prompt):
    torch.compiler.reset()
    for make in MODELS.values():
        model = make()
        settings = CompileConfig(fullgraph=True, mode=None)
        settings._compile_all_devices = True
        found = generate(
            model, prompt, cache_implementation="static", compile_config=settings, do_sample=False
        )
        assert torch.equal(found, greedy(model, prompt))


def test_continuous_batching_gives_each_request_its_own_text(model):
    prompts = [list(range(5, 5 + n)) for n in (4, 11, 7)]
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(
        inputs=prompts, generation_config=settings, progress_bar=False, continuous_batching_config=SMALL
    )
    assert len(outputs) == 3
    for output in outputs.values():
        wanted = greedy(model, torch.tensor([output.prompt_ids]))[0, len(output.prompt_ids) :]
        assert list(output.generated_tokens) == wanted.tolist()


@pytest.mark.parametrize(
    "attention",
    ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)],  # flex is compiled
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, in inductor
@pytest.mark.filterwarnings(
    "ignore:_compile flag on create_block_mask:DeprecationWarning"
)  # transformers sets it
def test_attention_implementations_agree(attention, model, prompt):
    wanted = greedy(model, prompt)
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        assert torch.equal(generate(model, prompt, do_sample=False), wanted)
    finally:
        model.set_attn_implementation(before)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "sdpa"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_attention_implementations_agree_on_a_gpu(attention, make, prompt):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = make().to("cuda", torch.bfloat16)
    prompt = prompt.cuda()
    wanted = model(prompt, use_cache=False).logits.float()
    model.set_attn_implementation(attention)
    found = model(prompt, use_cache=False).logits.float()
    assert (found - wanted).abs().max() < 0.05 * wanted.std()
    cached = generate(model, prompt, do_sample=False)
    assert torch.equal(cached, generate(model, prompt, do_sample=False, use_cache=False))
