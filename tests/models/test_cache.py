"""Decoding with a cache equals the full forward, for every kind of model and plan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from tests.helpers import greedy, make_iiet

ATOL = 1e-5
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def stepwise_logits(model, tokens, cache, mask=None):
    outputs = []
    for t in range(tokens.shape[1]):
        step_mask = None if mask is None else mask[:, : t + 1]
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, t : t + 1]
        out = model(
            tokens[:, t : t + 1],
            attention_mask=step_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        outputs.append(out.logits[:, -1])
    return torch.stack(outputs, 1)


@pytest.mark.usefixtures("norms_in_float64")
def test_one_token_at_a_time_equals_the_full_forward_in_float64(variant, tokens):
    tokens = tokens[:, :8]
    model = type(variant)(variant.config).double().eval()
    model.load_state_dict(variant.state_dict())
    wanted = model(tokens).logits
    dynamic, static = DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)
    for cache in (dynamic, static):
        torch.testing.assert_close(stepwise_logits(model, tokens, cache), wanted, rtol=0, atol=1e-12)
    assert len(dynamic.layers) == len(static.layers) == model.config.num_hidden_layers
    assert all(layer.keys.shape[2] == tokens.shape[1] for layer in dynamic.layers)


def test_chunked_prefill_equals_the_full_forward(variant, tokens):
    cache = DynamicCache(config=variant.config)
    parts = [variant(part, past_key_values=cache, use_cache=True).logits for part in tokens.split(5, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), variant(tokens).logits, rtol=0, atol=ATOL)


def test_forward_takes_the_cache_by_either_name_but_not_by_both(variant, tokens):
    for model in (variant, variant.model):
        for name in ("cache", "past_key_values"):
            cache = DynamicCache(config=variant.config)
            parts = [model(part, **{name: cache}, use_cache=True)[0] for part in tokens.split(9, dim=1)]
            torch.testing.assert_close(torch.cat(parts, 1), model(tokens)[0], rtol=0, atol=ATOL)
        with pytest.raises(ValueError, match="cache: expected this or past_key_values, got both"):
            model(tokens, cache=cache, past_key_values=cache)


def test_left_padding_changes_no_logit(variant, tokens):
    tokens, padding = tokens[:, :5], torch.zeros(2, 3, dtype=torch.long)
    padded = torch.cat([padding, tokens], 1)
    mask = torch.cat([padding, torch.ones_like(tokens)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    wanted = variant(tokens).logits
    full = variant(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(full, wanted, rtol=0, atol=ATOL)
    stepped = stepwise_logits(variant, padded, DynamicCache(config=variant.config), mask)[:, 3:]
    torch.testing.assert_close(stepped, wanted, rtol=0, atol=ATOL)


def test_generate_gives_the_tokens_of_the_uncached_model_in_either_cache(variant, tokens):
    wanted = greedy(variant, tokens, 6)
    options = {"max_new_tokens": 6, "do_sample": False, "disable_compile": True, "eos_token_id": -1}
    for cache in (None, "static"):
        mask = torch.ones_like(tokens)
        found = variant.generate(tokens, attention_mask=mask, cache_implementation=cache, **options)
        assert torch.equal(found, wanted)


def test_a_left_padded_batch_generates_what_each_row_does_alone(variant, tokens):
    short, long = tokens[0, :7], tokens[1, :12]
    padded = torch.stack([torch.cat([torch.zeros(5, dtype=torch.long), short]), long])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    batch = variant.generate(padded, attention_mask=(padded != 0).long(), **options)
    assert torch.equal(batch[0, 5:], greedy(variant, short[None], 5)[0])
    assert torch.equal(batch[1], greedy(variant, long[None], 5)[0])


@settings(max_examples=15)
@given(
    plan=st.lists(st.integers(0, 3), min_size=3, max_size=3), history=st.booleans(), split=st.integers(1, 16)
)
def test_any_plan_decodes_exactly(plan, history, split):
    model = make_iiet(num_iterations=plan, history=history, max_num_iterations=3)
    tokens = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(split))
    cache = DynamicCache(config=model.config)
    parts = [
        model(part, past_key_values=cache, use_cache=True).logits
        for part in (tokens[:, :split], tokens[:, split:])
    ]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens).logits, rtol=0, atol=ATOL)
    assert len(cache.layers) == sum(1 + r for r in plan)


def test_eager_and_sdpa_attention_agree(variant, tokens):
    wanted = variant(tokens).logits
    before = variant.config._attn_implementation
    variant.set_attn_implementation("eager")
    try:
        torch.testing.assert_close(variant(tokens).logits, wanted, rtol=0, atol=ATOL)
    finally:
        variant.set_attn_implementation(before)
