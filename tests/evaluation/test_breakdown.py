"""Seconds by part: spans of a profiled call are counted, their times added by hand."""

from collections import Counter

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from iiad.evaluation import breakdown
from iiad.evaluation.bench_artefact import PARTS, Breakdown
from iiad.evaluation.breakdown import can_be_profiled, median_breakdown, profile_run, seconds_by_part
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


@pytest.mark.parametrize("name", MODELS)
def test_every_run_of_a_part_is_a_span_in_the_profile(name, monkeypatch, tokens):
    make, evaluations, slots = MODELS[name]
    counts, whole = [], []

    def count(spans, seconds):
        counts.append(Counter(part for part, _, _ in spans))
        whole.append(seconds)
        return seconds_by_part(spans, seconds)

    monkeypatch.setattr(breakdown, "seconds_by_part", count)
    found = profile_run(make(), tokens, 2)
    wanted = {
        "attention": evaluations,
        "cache": slots,
        "projections": 2 * evaluations + 2 * slots,
        "mlp": evaluations,
        "norms": 2 * evaluations + slots * ("shared" in name),  # those norm the layer's input once more
        "solver": 3,  # layers
        "embedding": 1,
        "head": 2,  # with the final norm
    }
    assert counts == [wanted, {part: 2 * number for part, number in wanted.items()}]
    assert all(seconds > 0 for phase in found.values() for seconds in phase.seconds.values())
    assert found["prefill"].total == pytest.approx(whole[0])
    assert found["decode"].total == pytest.approx(whole[1] / 2)
    assert found["decode"].host_share is None  # on the CPU


@pytest.mark.gpu
def test_on_a_gpu_the_parts_make_up_the_call_and_the_host_has_its_share():
    model, tokens = make_iiet(num_iterations=2).to("cuda"), torch.randint(3, 97, (2, 17), device="cuda")
    for phase in profile_run(model, tokens, 4).values():
        assert all(seconds > 0 for seconds in phase.seconds.values())
        assert 0 < phase.host_share <= 1


def test_a_span_is_counted_without_the_spans_inside_it():
    spans = [
        ("embedding", 1.0, 2.0),
        ("solver", 2.0, 12.0),
        ("norms", 2.0, 3.0),
        ("attention", 4.0, 9.0),
        ("projections", 4.0, 5.0),
        ("cache", 6.0, 6.5),
        ("projections", 8.0, 9.0),
        ("mlp", 9.0, 11.0),
        ("head", 13.0, 14.0),
    ]
    wanted = {"attention": 2.5, "cache": 0.5, "projections": 2, "mlp": 2, "norms": 1, "solver": 2}
    wanted |= {"embedding": 1, "head": 1, "rest": 3}
    for order in (spans, spans[::-1]):
        assert seconds_by_part(order, 15.0) == wanted
    assert seconds_by_part(spans, 11.999)["rest"] == 0  # clocks of a GPU and its host differ


@pytest.mark.parametrize("policy", ["exact", "shared"])
def test_profiling_changes_no_token_and_leaves_no_hook_also_after_an_error(tokens, policy):
    model = make_iiet(num_iterations=2, cache_policy=policy)
    before = time_model(model, tokens, 3)
    state = [dict(module.__dict__) for module in model.modules()]
    profile_run(model, tokens, 3)
    with pytest.raises(IndexError):
        profile_run(model, tokens + 97, 1)
    for module, known in zip(model.modules(), state, strict=True):
        assert module.__dict__.keys() == known.keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(time_model(model, tokens, 3).tokens, before.tokens)


def test_a_model_with_other_names_is_not_profiled():
    assert can_be_profiled(make_llama())
    assert not can_be_profiled(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11)))


def make_breakdown(**seconds):
    return Breakdown(seconds={part: seconds.get(part, 0.0) for part in PARTS})


def test_amdahl_and_the_excess_of_all_parts_by_hand():
    teacher = make_breakdown(attention=3.0, mlp=5.0, head=1.0, rest=1.0)
    assert teacher.expected_speedup(4) == pytest.approx(10 / (2 + 8 / 4))
    assert teacher.expected_speedup(1) == 1
    student = make_breakdown(attention=1.25, mlp=1.0, head=1.0, rest=0.75)
    excess = student.excess(teacher, 4)
    assert excess["attention"] == pytest.approx((1.25 - 0.75) / 4)
    assert excess["mlp"] == pytest.approx((1.0 - 1.25) / 4)
    assert sum(excess.values()) == pytest.approx(1 - (10 / 4) / 4)


def test_a_breakdown_has_all_parts_and_medians_over_runs():
    with pytest.raises(ValueError, match=r"seconds: expected attention, cache, .*, got attention"):
        Breakdown(seconds={"attention": 1.0})
    runs = [Breakdown(seconds=dict.fromkeys(PARTS, value)) for value in (1.0, 9.0, 2.0)]
    assert median_breakdown(runs).seconds == dict.fromkeys(PARTS, 2.0)
