"""Decoding with a cache equals the full forward, for every kind of model and plan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from tests.helpers import make_iiet

ATOL = 1e-5


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


@torch.no_grad()
def test_one_token_at_a_time_equals_the_full_forward(variant, tokens):
    cache = DynamicCache(config=variant.config)
    torch.testing.assert_close(
        stepwise_logits(variant, tokens, cache), variant(tokens).logits, rtol=0, atol=ATOL
    )
    assert len(cache.layers) == variant.config.num_hidden_layers
    assert all(layer.keys.shape[2] == tokens.shape[1] for layer in cache.layers)


@torch.no_grad()
@pytest.mark.usefixtures("norms_in_float64")
def test_decoding_is_exact_to_rounding_in_float64(variant, tokens):
    model = type(variant)(variant.config).double().eval()
    model.load_state_dict(variant.state_dict())
    stepped = stepwise_logits(model, tokens, DynamicCache(config=model.config))
    torch.testing.assert_close(stepped, model(tokens).logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_static_cache_equals_the_full_forward(variant, tokens):
    cache = StaticCache(config=variant.config, max_cache_len=32)
    torch.testing.assert_close(
        stepwise_logits(variant, tokens, cache), variant(tokens).logits, rtol=0, atol=ATOL
    )


@torch.no_grad()
def test_chunked_prefill_equals_the_full_forward(variant, tokens):
    cache = DynamicCache(config=variant.config)
    parts = [variant(part, past_key_values=cache, use_cache=True).logits for part in tokens.split(5, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), variant(tokens).logits, rtol=0, atol=ATOL)


@torch.no_grad()
def test_left_padding_changes_no_logit(variant, tokens):
    pad = 6
    padded = torch.cat([torch.zeros(2, pad, dtype=torch.long), tokens], 1)
    mask = torch.cat([torch.zeros(2, pad, dtype=torch.long), torch.ones_like(tokens)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    wanted = variant(tokens).logits
    full = variant(padded, attention_mask=mask, position_ids=positions).logits[:, pad:]
    torch.testing.assert_close(full, wanted, rtol=0, atol=ATOL)
    stepped = stepwise_logits(variant, padded, DynamicCache(config=variant.config), mask)[:, pad:]
    torch.testing.assert_close(stepped, wanted, rtol=0, atol=ATOL)


def greedy_without_cache(model, tokens, num_new):
    for _ in range(num_new):
        tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_stock_generate_gives_the_tokens_of_the_uncached_model(variant, tokens, cache_implementation):
    wanted = greedy_without_cache(variant, tokens, 12)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "disable_compile": True}
    found = variant.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        cache_implementation=cache_implementation,
        **options,
        eos_token_id=-1,
    )
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_a_left_padded_batch_generates_what_each_row_does_alone(variant, tokens):
    short, long = tokens[0, :7], tokens[1, :12]
    padded = torch.stack([torch.cat([torch.zeros(5, dtype=torch.long), short]), long])
    mask = (padded != 0).long()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    batch = variant.generate(padded, attention_mask=mask, **options)
    for row, alone in ((batch[0, 12:], short), (batch[1, 12:], long)):
        single = variant.generate(alone[None], attention_mask=torch.ones_like(alone[None]), **options)
        assert torch.equal(row, single[0, alone.numel() :])


@settings(max_examples=15, deadline=None)
@given(
    plan=st.lists(st.integers(0, 3), min_size=3, max_size=3), history=st.booleans(), split=st.integers(1, 16)
)
def test_any_plan_decodes_exactly(plan, history, split):
    model = make_iiet(num_iterations=plan, history=history, max_num_iterations=3)
    tokens = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(split))
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        first = model(tokens[:, :split], past_key_values=cache, use_cache=True).logits
        second = model(tokens[:, split:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(torch.cat([first, second], 1), model(tokens).logits, rtol=0, atol=ATOL)
        assert len(cache.layers) == sum(1 + r for r in plan)


@torch.no_grad()
def test_eager_and_sdpa_attention_agree(variant, tokens):
    wanted = variant(tokens).logits
    before = variant.config._attn_implementation
    variant.set_attn_implementation("eager")
    try:
        torch.testing.assert_close(variant(tokens).logits, wanted, rtol=0, atol=ATOL)
    finally:
        variant.set_attn_implementation(before)
