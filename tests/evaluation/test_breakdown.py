"""Where time goes is measured, so no time is asserted: sums by a clock made for it are, and Amdahl's by hand."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from iiad.evaluation import breakdown, timing
from iiad.evaluation.bench_artefact import PARTS, Breakdown
from iiad.evaluation.breakdown import can_be_watched, summarise_calls, watch_run
from iiad.evaluation.timing import time_model
from tests.helpers import make_iiet, make_llama, make_pcformer

# How to make each, its evaluations, and how often it projects keys and values.
MODELS = {
    "iiet": (lambda: make_iiet(num_iterations=[3, 0, 2]), 8, 8),
    "plain": (lambda: make_iiet(num_iterations=[1, 2, 0], history=False), 6, 6),
    "shared": (lambda: make_iiet(num_iterations=[3, 0, 2], cache_policy="shared"), 8, 3),
    "pcformer": (make_pcformer, 9, 9),
    "pcformer-shared": (lambda: make_pcformer(cache_policy="shared"), 9, 3),
    "llama": (make_llama, 3, 3),
}


def slowed(monkeypatch, owner, name, clock, seconds):
    """The method takes that long by the clock, before it does what it does."""
    whole = getattr(owner, name)

    def method(*arguments, **options):
        clock[0] += seconds
        return whole(*arguments, **options)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_exact_where_a_clock_says_what_each_takes(name, monkeypatch, tokens):
    make, evaluations, slots = MODELS[name]
    model, clock = make(), [0.0]
    layer, base = type(model.model.layers[0]), model.model
    for room in (timing, breakdown):
        monkeypatch.setattr(room, "now", lambda device: clock[0])
    monkeypatch.setattr(breakdown.time, "perf_counter", lambda: clock[0])
    slowed(monkeypatch, type(base.layers[0].mlp), "forward", clock, 3)
    slowed(monkeypatch, type(base.layers[0].self_attn), "forward", clock, 5)
    slowed(monkeypatch, DynamicCache, "update", clock, 7)
    slowed(monkeypatch, type(base.embed_tokens), "forward", clock, 11)
    slowed(monkeypatch, type(model.lm_head), "forward", clock, 0.25)  # also q, k, v and o, gate, up and down
    slowed(monkeypatch, type(base.rotary_emb), "forward", clock, 17)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend_slowly(*arguments, **options):
        clock[0] += 13
        return attend(*arguments, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", attend_slowly)
    slowed(monkeypatch, layer, "forward", clock, 19)
    for each in base.layers:
        slowed(monkeypatch, each.input_layernorm, "forward", clock, 23)
    norms = 23 * (evaluations + (3 if "shared" in name else 0))  # those norm the layer's input once more
    calls = watch_run(model, tokens, 3)
    # What a layer of ours does beside its evaluations is the solver's; of a Llama it is the block's.
    beside = {"norms": norms, "solver": 19 * 3}
    if name == "llama":
        beside = {"norms": norms + 19 * 3, "solver": 0}
    for call in calls.values():
        assert call.host_share is None
        assert call.seconds == {
            "attention": 13 * evaluations,
            "cache": 7 * slots,
            "projections": (5 + 2 * 0.25) * evaluations + 2 * 0.25 * slots,
            "mlp": (3 + 3 * 0.25) * evaluations,
            **beside,
            "embedding": 11,
            "head": 0.25,
            "rest": 17,
        }


@pytest.mark.parametrize("policy", ["exact", "shared"])
def test_watching_changes_nothing_and_leaves_nothing(tokens, policy):
    model, wanted = make_iiet(num_iterations=2, cache_policy=policy), ALL_ATTENTION_FUNCTIONS["sdpa"]
    before = time_model(model, tokens, 3)
    state = [dict(module.__dict__) for module in model.modules()]
    watch_run(model, tokens, 3)
    for module, known in zip(model.modules(), state, strict=True):
        assert module.__dict__.keys() == known.keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is wanted
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    assert torch.equal(time_model(model, tokens, 3).tokens, before.tokens)


def test_hooks_are_gone_where_a_call_fails(tokens):
    model = make_iiet(num_iterations=1)
    with pytest.raises(IndexError):
        watch_run(model, tokens + 97, 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "evaluate" not in vars(model.model.layers[0])


def test_a_model_with_other_names_is_not_watched():
    assert can_be_watched(make_llama())
    assert not can_be_watched(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11)))


def make_breakdown(**seconds):
    return Breakdown(seconds={part: seconds.get(part, 0.0) for part in PARTS})


def test_amdahl_by_hand():
    teacher = make_breakdown(attention=3.0, mlp=5.0, head=1.0, rest=1.0)
    assert teacher.expected_speedup(4) == pytest.approx(10 / (2 + 8 / 4))
    assert teacher.expected_speedup(1) == 1


def test_what_the_parts_take_too_much_adds_up_to_what_is_missing():
    teacher = make_breakdown(attention=3.0, mlp=5.0, head=1.0, rest=1.0)
    student = make_breakdown(attention=1.25, mlp=1.0, head=1.0, rest=0.75)
    excess = student.excess(teacher, 4)
    assert excess["attention"] == pytest.approx((1.25 - 0.75) / 4)
    assert excess["mlp"] == pytest.approx((1.0 - 1.25) / 4)
    assert sum(excess.values()) == pytest.approx(1 - (10 / 4) / 4)


def test_a_breakdown_has_all_parts_and_medians_over_runs():
    with pytest.raises(ValueError, match=r"seconds has attention; accepted: attention, cache, "):
        Breakdown(seconds={"attention": 1.0})
    calls = [breakdown.WatchedCall(dict.fromkeys(PARTS, value), None) for value in (1.0, 9.0, 2.0)]
    assert summarise_calls(calls).seconds == dict.fromkeys(PARTS, 2.0)
