"""Costs and plans of an encoder-decoder: what a sentence takes, and where a target on it cuts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from iiad.checkpoints import identify_model
from iiad.planning import Bounds, Plan, Targets, cost_of, plan_by_target
from iiad.planning.latency import LatencyTable, PhaseLatency, check_latency
from iiad.reporting.plan_tables import PlanReport
from tests.helpers import LATENCY_SETTINGS, make_profile, make_seq2seq, printed, refused

PLAN = [2, 2, 2, 2, 2]  # three layers of an encoder, two of a decoder
MODEL = make_profile(num_iterations=PLAN).model.model_copy(
    update={"model_type": "iiet_seq2seq", "num_encoder_layers": 3}
)
EQUAL = make_profile({"kl": [[0.1, 0.1]] * 5}, PLAN, model=MODEL)


def make_pair_table(source, target, seconds=0.001):
    """A table by which an evaluation takes as long for each token, read or made."""

    def phase(encoder, decoder):
        rows = [[(1 + r) * each for r in range(3)] for each in (*[encoder] * 3, *[decoder] * 2)]
        return PhaseLatency.of(seconds, rows, [(PLAN, seconds + sum(row[2] for row in rows))])

    sizes = {"context": source, "target_tokens": target}
    return LatencyTable(
        model=MODEL,
        settings=LATENCY_SETTINGS.model_copy(update=sizes),
        prefill=phase(source * seconds, seconds),
        decode=phase(0.0, seconds),
    )


@pytest.mark.parametrize(("policy", "plan"), [("exact", [1, 0, 2, 0, 1]), ("shared", [2, 2, 0, 1, 0])])
def test_flops_of_a_sentence_are_those_of_the_models_matrices(policy, plan):
    model = make_seq2seq(num_iterations=2, num_encoder_iterations=2, history=False, cache_policy=policy)
    model.set_attn_implementation("eager")  # whose products the counter sees
    identity, (source, target) = identify_model(model, "m"), (7, 5)
    model.set_num_iterations(plan)
    cost = cost_of(identity, plan, source, 1, target_tokens=target)

    def count(**inputs):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = model(**inputs, use_cache=True)
        return counter.get_total_flops(), output

    token = torch.full((1, 1), 5)
    found, output = count(input_ids=torch.full((1, source), 5), decoder_input_ids=token)
    angles = 2 * 4 * (source + 1)  # products of positions and frequencies in both halves
    assert cost.prefill_flops == pytest.approx(found, abs=angles)
    total = found
    for seen in range(1, target):
        encoded = (output.encoder_last_hidden_state,)
        found, after = count(
            encoder_outputs=encoded, decoder_input_ids=token, past_key_values=output.past_key_values
        )
        total += found
        if seen == target // 2:
            assert cost.decode_flops == pytest.approx(found, abs=angles)
        assert after.past_key_values is output.past_key_values
    assert cost.sentence_flops == pytest.approx(total, abs=angles * target)
    slots = [len(layer.slots) for layer in model.base_model.decoder.layers]
    assert cost.cache_bytes_per_token == sum(slots) * identity.cache_bytes_per_slot
    assert cost.cache_bytes == (sum(slots) * target + 2 * source) * identity.cache_bytes_per_slot
    assert cost.phase_evaluations == (3 + sum(plan[:3]), 2 + sum(plan[3:]))


def test_unused_parameters_are_counted_by_each_halfs_own_history():
    # Encoder 2 and decoder 1 no longer iterate: a LayerNorm each, and weights of H_0, H_1, H_2 and of H_0, H_1.
    assert cost_of(MODEL, [1, 0, 1, 0, 1]).unused_parameters == 2 * 64 + 3 + 2
    model = make_seq2seq(num_iterations=2, num_encoder_iterations=2)
    identity = identify_model(model, "m")
    model.set_num_iterations([1, 0, 1, 0, 1])
    tokens = torch.full((1, 3), 5)
    model(input_ids=tokens, decoder_input_ids=tokens).logits.sum().backward()
    unused = sum(p.numel() for p in model.parameters() if p.grad is None)
    assert cost_of(identity, [1, 0, 1, 0, 1]).unused_parameters == unused


@pytest.mark.parametrize(("source", "target", "cut"), [(4, 64, "decoder"), (64, 2, "encoder")])
def test_a_latency_target_of_a_sentence_cuts_the_half_where_it_pays(source, target, cut):
    plan = plan_by_target(
        EQUAL, Targets(speedup=1.15, phase="sentence"), latency=make_pair_table(source, target)
    )
    dropped = [2 - r for r in plan.num_iterations]
    halves = {"encoder": sum(dropped[:3]), "decoder": sum(dropped[3:])}
    assert halves.pop(cut) > 0
    assert list(halves.values()) == [0]
    whole, cost = plan.costs(latency=make_pair_table(source, target))
    assert whole.seconds["sentence"] / cost.seconds["sentence"] >= 1.15
    assert (cost.context, cost.target_tokens) == (source, target)
    assert "sentence, predicted" in printed(
        PlanReport(plan, (whole, cost), latency=make_pair_table(source, target))
    )


def test_a_sentence_is_a_prefill_and_the_steps_that_are_left():
    table = make_pair_table(8, 5)
    plan = [2, 0, 1, 1, 0]
    assert table.phase("sentence").seconds(plan) == pytest.approx(
        table.prefill.seconds(plan) + 4 * table.decode.seconds(plan)
    )
    assert LatencyTable.model_validate_json(table.model_dump_json()) == table
    check_latency(table, MODEL, context=8, target_tokens=5)
    with refused("latency: expected a table with target_tokens 6, got 5"):
        check_latency(table, MODEL, target_tokens=6)
    causal = table.model_copy(update={"settings": LATENCY_SETTINGS})
    assert "target_tokens" not in causal.model_dump_json()
    with refused("phase: expected prefill or decode, as the table has, got sentence"):
        causal.phase("sentence")


def test_a_limit_on_the_cache_cuts_the_decoder_alone():
    most = cost_of(MODEL, [2, 2, 2, 1, 0]).cache_bytes_per_token
    assert plan_by_target(EQUAL, Targets(max_cache_bytes=most)).num_iterations[:3] == [2, 2, 2]
    both = plan_by_target(EQUAL, Targets(max_cache_bytes=most, overhead_cut=0.5)).num_iterations
    assert (sum(both), sum(both[3:]) <= 1) == (5, True)
    with refused("max_cache_bytes: expected at least", "within the bounds"):
        plan_by_target(EQUAL, Targets(max_cache_bytes=most), bounds=Bounds(pins={4: 2, 5: 2}))


def test_costs_are_shown_by_half_and_sizes_of_a_sentence_need_one():
    plan = Plan.explicit([2, 1, 2, 1, 0], MODEL)
    shown = printed(PlanReport(plan, plan.costs(10, 2, target_tokens=7)))
    for words in ("encoder 3", "decoder 2", "a source token", "a target token", "sentence FLOPs"):
        assert words in shown
    assert "Counted for 2 sentences of 10 source and 7 target tokens" in shown
    with refused("target_tokens: expected an encoder-decoder with it, got a iiet"):
        cost_of(make_profile().model, [1, 0, 1], target_tokens=5)
    with refused("expected 0 to 2 for decoder 1, the teacher's, got 3"):
        Plan.explicit([0, 0, 0, 3, 0], MODEL)
    with refused("expected 5 layers, as the teacher has, got 3"):
        Plan.explicit([0, 0, 0], MODEL)


def test_a_sentence_of_millions_of_tokens_is_counted_at_once():
    few, more, many = (
        cost_of(MODEL, PLAN, 8, target_tokens=count).sentence_flops for count in (2**23, 2**23 + 1, 2**24)
    )
    assert few < more < many


def test_a_table_whose_phases_or_halves_do_not_fit_is_refused():
    table = make_pair_table(8, 4)
    others = table.model_dump()
    others["decode"]["checks"] *= 2
    with pytest.raises(ValueError, match=r"decode\.checks: expected the plans of prefill"):
        LatencyTable.model_validate(others)
    with refused("latency: expected a table with num_encoder_layers 2, got 3"):
        check_latency(table, MODEL.model_copy(update={"num_encoder_layers": 2}))
    with refused("latency: expected a table with num_layers 4, got 5"):
        check_latency(table, MODEL.model_copy(update={"num_layers": 4, "num_iterations": [2] * 4}))
