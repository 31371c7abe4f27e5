"""The shared cache policy: a layer's evaluations attend to the keys and values of its first one."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from iiad.checkpoints import identify_model
from iiad.identities import ModelIdentity
from iiad.models import IIETConfig
from iiad.planning import Plan
from iiad.planning.costs import cost_of
from iiad.reporting.plan_tables import PlanReport
from tests.helpers import make_iiet, make_pcformer, printed

PLAN = [2, 0, 1]


def pair(make=make_iiet, **fields):
    """The same weights under either policy."""
    exact, shared = (make(**fields, cache_policy=policy) for policy in ("exact", "shared"))
    shared.load_state_dict(exact.state_dict())
    return exact, shared


def attended(model, tokens):
    """For each evaluation the keys and values that its attention was given."""
    given = []

    def attend(module, query, key, value, mask, **_):
        given.append((module.layer_idx, key, value))
        return query.transpose(1, 2), None

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("recorded", attend)
    model.config._attn_implementation = "recorded"
    with torch.no_grad():
        model(tokens, use_cache=False)
    return given


@pytest.mark.parametrize("make", [make_iiet, make_pcformer])
def test_all_evaluations_of_a_layer_attend_to_what_its_first_one_made(make, tokens):
    fields = {"num_iterations": PLAN} if make is make_iiet else {}
    exact, shared = pair(make, **fields)
    own, first = attended(exact, tokens), attended(shared, tokens)
    counts = [exact.config.num_start_evaluations + r for r in exact.config.iterations]
    assert len(own) == len(first) == sum(counts)
    torch.testing.assert_close(first[0][1], own[0][1], rtol=0, atol=0)  # layer 1 begins alike
    start = 0
    for layer, count in enumerate(counts):
        slots, keys, values = zip(*first[start : start + count], strict=True)
        assert set(slots) == {layer}
        assert all(key is keys[0] for key in keys)
        assert all(value is values[0] for value in values)
        assert len({id(key) for _, key, _ in own[start : start + count]}) == count
        start += count


def test_without_iterations_both_policies_are_one_model(tokens):
    exact, shared = pair(num_iterations=0, max_num_iterations=2)
    assert torch.equal(exact(tokens).logits, shared(tokens).logits)
    exact.set_num_iterations(1), shared.set_num_iterations(1)
    assert not torch.allclose(exact(tokens).logits, shared(tokens).logits, atol=1e-3)


def test_a_shared_cache_has_a_slot_a_layer_and_the_projections_of_one_evaluation(tokens):
    model = make_iiet(num_iterations=3, cache_policy="shared")
    calls = []
    for layer in model.model.layers:
        layer.self_attn.k_proj.register_forward_hook(lambda *_: calls.append("k"))
        layer.self_attn.q_proj.register_forward_hook(lambda *_: calls.append("q"))
    cache = DynamicCache(config=model.config)
    model(tokens, past_key_values=cache, use_cache=True)
    assert len(cache.layers) == model.config.num_hidden_layers == 3
    assert StaticCache(config=model.config, max_cache_len=8).layers.__len__() == 3
    assert model.config.num_evaluations == 12
    assert (calls.count("k"), calls.count("q")) == (3, 12)


def test_the_policy_is_saved_and_another_is_refused(tmp_path, tokens):
    model = make_iiet(num_iterations=PLAN, cache_policy="shared")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.cache_policy == "shared"
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    with pytest.raises(ValueError, match="cache_policy: expected 'shared', which the weights are for"):
        AutoModelForCausalLM.from_pretrained(tmp_path, cache_policy="exact")
    loaded.set_cache_policy("exact")
    assert loaded.config.num_hidden_layers == 6
    with pytest.raises(ValueError, match="cache_policy: expected 'exact' or 'shared', got 'last'"):
        loaded.set_cache_policy("last")
    with pytest.raises(ValueError, match="cache_policy: expected 'exact' or 'shared', got 'last'"):
        IIETConfig(cache_policy="last")


def test_costs_follow_the_policy():
    exact, shared = (identify_model(model, "model") for model in pair(num_iterations=2))
    assert exact.fingerprint != shared.fingerprint
    assert exact.cache_bytes_per_token == 3 * shared.cache_bytes_per_token
    costs = [cost_of(identity, [2, 1, 0], context=16) for identity in (exact, shared)]
    assert [cost.num_evaluations for cost in costs] == [6, 6]
    assert costs[0].cache_bytes == 2 * costs[1].cache_bytes
    width, kv_width = 32, 2 * 8
    saved = (6 - 3) * 2 * (2 * width * kv_width)  # keys and values of three evaluations, a multiply-add as 2
    assert costs[0].decode_flops - costs[1].decode_flops == saved
    assert costs[0].prefill_flops - costs[1].prefill_flops == 16 * saved


def test_a_plan_for_a_shared_cache_is_reported_to_save_nothing_of_it():
    exact, shared = (identify_model(model, "model") for model in pair(num_iterations=2))
    plans = [Plan.explicit([2, 1, 0], identity) for identity in (exact, shared)]
    reports = [printed(PlanReport(plan, plan.costs()), 100) for plan in plans]
    cuts = [next(line for line in report.splitlines() if "of the cache" in line) for report in reports]
    assert "33.3% of the cache" in cuts[0]
    assert " 0.0% of the cache" in cuts[1]


def test_an_identity_written_before_there_were_policies_is_exact():
    fields = identify_model(make_iiet(num_iterations=1), "model").model_dump()
    del fields["cache_policy"]
    assert ModelIdentity.model_validate(fields).cache_policy == "exact"
