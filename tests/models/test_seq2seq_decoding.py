"""Encoder-decoders decode what the model itself says, whatever the cache, the padding and generate()'s options."""

import copy

import pytest
import torch
from transformers import CompileConfig, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from iiad.models.compatibility import CACHE
from tests.helpers import PAIR_VARIANTS, UNEVEN, make_seq2seq

NEW = 6
OPTIONS = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "disable_compile": True}
SOURCE = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=PAIR_VARIANTS)
def model(request):
    """Each kind of encoder-decoder in turn."""
    return PAIR_VARIANTS[request.param]()


@torch.no_grad()
def greedy_target(model, source, mask=None):
    """NEW tokens after the start token, each by the whole model without a cache."""
    target = torch.full_like(source[:, :1], model.config.decoder_start_token_id)
    for _ in range(NEW):
        logits = model(source, mask, target, use_cache=False).logits[:, -1]
        logits[:, 2] = -torch.inf  # min_new_tokens: no end of text
        target = torch.cat([target, logits.argmax(-1, keepdim=True)], 1)
    return target


def make_caches(config):
    """Empty caches by name; static ones are longer than what they hold."""
    static = [StaticCache(config=config, max_cache_len=length) for length in (16, 12)]
    dynamic = [DynamicCache(config=config) for _ in range(2)]
    return {"static": EncoderDecoderCache(*static), "dynamic": EncoderDecoderCache(*dynamic)}


@torch.no_grad()
@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_one_token_at_a_time_equals_the_full_forward_in_float64(kind, model):
    model = copy.deepcopy(model).double()
    wanted = model(SOURCE, decoder_input_ids=TARGET).logits
    cache, encoded = make_caches(model.config)[kind], model.get_encoder()(SOURCE)
    outputs = [
        model(encoder_outputs=encoded, decoder_input_ids=part, past_key_values=cache, use_cache=True)
        for part in TARGET.split([3, 1, 1, 2], dim=1)
    ]
    logits = torch.cat([each.logits for each in outputs], 1)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-12)
    assert len(cache.self_attention_cache.layers) == model.config.num_hidden_layers


@torch.no_grad()
def test_a_layer_projects_the_source_once_and_has_one_cross_slot_whatever_its_iterations():
    model = make_seq2seq(num_iterations=3, num_encoder_iterations=0)
    projected = []
    for layer in model.model.decoder.layers:
        layer.cross_attn.k_proj.register_forward_hook(lambda *_: projected.append(1))
    cache = make_caches(model.config)["dynamic"]
    for part in TARGET.split(1, dim=1):
        model(SOURCE, decoder_input_ids=part, past_key_values=cache)
    assert len(projected) == model.config.num_layers == 2
    used = [layer.is_initialized for layer in cache.cross_attention_cache.layers]
    assert used == [True] * 2 + [False] * 6
    assert all(layer.is_initialized for layer in cache.self_attention_cache.layers)


def test_generate_gives_the_tokens_of_the_uncached_model_in_either_cache(model):
    wanted = greedy_target(model, SOURCE)
    for implementation in (None, "static"):
        assert torch.equal(model.generate(SOURCE, cache_implementation=implementation, **OPTIONS), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_generates_what_each_row_does_alone(side, model):
    padding = torch.zeros(1, 4, dtype=torch.long)
    short = SOURCE[:1, :5]
    padded = torch.cat([padding, short] if side == "left" else [short, padding], 1)
    batch = torch.cat([padded, SOURCE[1:]])
    mask = (batch != 0).long()
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 3}):
        found = model.generate(batch, attention_mask=mask, **options, **OPTIONS)
        for row, alone in zip(found, (short, SOURCE[1:]), strict=True):
            assert torch.equal(row, model.generate(alone, **options, **OPTIONS)[0])
    found = model.generate(batch, attention_mask=mask, **OPTIONS)
    assert torch.equal(found, greedy_target(model, batch, mask))
    assert torch.equal(found[:1], greedy_target(model, short))


@torch.no_grad()
def test_left_padding_of_the_decoder_changes_no_logit(model):
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), TARGET], 1)
    mask = (padded != 0).long()
    found = model(SOURCE, decoder_input_ids=padded, decoder_attention_mask=mask).logits[:, 3:]
    wanted = model(SOURCE, decoder_input_ids=TARGET).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_beams_are_those_of_the_uncached_model(model):
    options = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.7}
    cached = model.generate(SOURCE, **options, **OPTIONS)
    assert cached.shape == (4, NEW + 1)
    assert torch.equal(cached, model.generate(SOURCE, use_cache=False, **options, **OPTIONS))


def test_samples_are_those_of_the_uncached_model(model):
    def sample(**options):
        torch.manual_seed(7)
        sampled = {"do_sample": True, "temperature": 1.3, "num_return_sequences": 3}
        return model.generate(SOURCE, **{**OPTIONS, **sampled, **options})

    assert torch.equal(sample(), sample(use_cache=False))


def test_assisted_generation_says_what_the_model_says():
    model = PAIR_VARIANTS["history"]()
    assistant = copy.deepcopy(model)
    assistant.set_num_iterations(0)
    found = model.generate(SOURCE[:1], assistant_model=assistant, **OPTIONS)
    assert torch.equal(found, greedy_target(model, SOURCE[:1]))


@pytest.mark.parametrize(
    "name", ["history", *(pytest.param(n, marks=pytest.mark.slow) for n in PAIR_VARIANTS if n != "history")]
)
def test_generate_compiles_decoding_as_one_graph(name):
    model = PAIR_VARIANTS[name]()
    torch.compiler.reset()
    settings = CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
    settings._compile_all_devices = True  # else on GPUs only
    options = {**OPTIONS, "disable_compile": False, "compile_config": settings}
    found = model.generate(SOURCE, cache_implementation="static", **options)
    assert hasattr(model, "_compiled_call")
    assert torch.equal(found, greedy_target(model, SOURCE))


@torch.no_grad()
def test_eager_and_sdpa_attention_agree_where_the_source_is_padded(model):
    mask = torch.ones_like(SOURCE)
    mask[0, 5:] = 0
    wanted = model(SOURCE, mask, TARGET).logits
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(SOURCE, mask, TARGET).logits, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_flash_attention_is_never_given_a_source_padded_unlike_its_queries(model):
    """Its stand-in does what transformers does with padding: it takes it for that of queries and keys alike."""

    def flash(module, query, key, value, mask, **kwargs):
        assert query.shape[2] == key.shape[2]
        allowed = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool)
        allowed = allowed.tril() if module.is_causal else allowed
        allowed = allowed if mask is None else allowed & mask[:, None, None].bool()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, allowed, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("flash_stand_in", flash)
    ALL_MASK_ATTENTION_FUNCTIONS.register("flash_stand_in", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    mask = torch.ones_like(SOURCE)
    mask[0, 5:] = 0
    model = copy.deepcopy(model)
    wanted = model(SOURCE, mask, TARGET).logits
    model.config._attn_implementation = "flash_stand_in"
    torch.testing.assert_close(model(SOURCE, mask, TARGET).logits, wanted, rtol=0, atol=1e-5)
    target = torch.cat([TARGET, TARGET[:, :2]], 1)  # as long as the source
    found = model(SOURCE, mask, target).logits[:, :7]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow  # flex is compiled
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, in inductor
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_flex_attention_agrees(model):
    mask = torch.ones_like(SOURCE)
    mask[0, 5:] = 0
    wanted = model.generate(SOURCE, attention_mask=mask, **OPTIONS)
    model = copy.deepcopy(model)
    model.set_attn_implementation("flex_attention")
    assert torch.equal(model.generate(SOURCE, attention_mask=mask, **OPTIONS), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "sdpa"])
def test_attention_implementations_agree_on_a_gpu(attention, model):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = copy.deepcopy(model).to("cuda", torch.bfloat16)
    mask = torch.ones_like(SOURCE)
    mask[0, 5:] = 0
    inputs = SOURCE.cuda(), mask.cuda(), TARGET.cuda()
    wanted = model(*inputs).logits.float()
    model.set_attn_implementation(attention)
    assert (model(*inputs).logits.float() - wanted).abs().max() < 0.05 * wanted.std()


def test_what_cannot_be_computed_is_refused_in_one_line():
    model = make_seq2seq(**UNEVEN)
    with pytest.raises(ValueError, match=f"{CACHE}: expected an EncoderDecoderCache, got a DynamicCache"):
        model(SOURCE, decoder_input_ids=TARGET, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="encoder_hidden_states: expected the encoder's output, got none"):
        model.model.decoder(TARGET)
    with pytest.raises(ValueError, match="input_ids: expected either these or inputs_embeds"):
        model(SOURCE)
