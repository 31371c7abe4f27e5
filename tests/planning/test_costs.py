"""The cost model, against counts made another way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiad.planning import cost_of
from iiad.planning.costs import compare_costs
from tests.helpers import BLOCK_SHAPE, make_profile, make_table, refused

TEACHER = make_profile(num_iterations=(2, 0, 3)).model
PLANS = st.tuples(st.integers(0, 2), st.just(0), st.integers(0, 3)).map(list)
PLAIN = BLOCK_SHAPE.model_copy(update={"history": False, "relaxation": True})


def teacher_with(shape):
    return TEACHER.model_copy(update={"shape": shape})


def head(batch_size=1):
    return batch_size * 2 * BLOCK_SHAPE.hidden_size * BLOCK_SHAPE.vocab_size


@given(PLANS, st.integers(1, 40), st.integers(1, 3))
def test_a_prefill_is_all_the_steps_that_would_decode_it_less_their_heads(plan, context, batch_size):
    prefill = cost_of(TEACHER, plan, context, batch_size).prefill_flops
    # The first token attends to itself alone: what no step after a context of 1 or more does.
    later = [cost_of(TEACHER, plan, seen, batch_size).decode_flops for seen in range(1, context)]
    first = cost_of(TEACHER, plan, 1, batch_size).prefill_flops
    assert prefill == first + sum(later) - len(later) * head(batch_size)


def test_one_evaluation_is_counted_as_its_matrices_are():
    shape = PLAIN.model_copy(update={"relaxation": False})
    d, f, n, k, e = 32, 56, 4, 2, 8
    block = 2 * (d * n * e + 2 * d * k * e + n * e * d + 3 * d * f)
    attention = 2 * 2 * n * e  # for each token attended to
    cost = cost_of(teacher_with(shape), [1, 0, 0], 100)  # 4 evaluations
    assert cost.decode_flops == 4 * (block + 101 * attention) + head()
    assert cost.prefill_flops == 4 * (100 * block + 5050 * attention) + head()


def test_the_history_adds_each_sum_once_a_layer():
    plain = cost_of(teacher_with(PLAIN), [2, 0, 1], 100).decode_flops
    # Output, then prefix and own state of each iteration where there are any.
    terms = (2 + 1 + 2) + 3 + (4 + 3 + 1)
    assert cost_of(TEACHER, [2, 0, 1], 100).decode_flops - plain == 2 * 32 * terms


def test_evaluations_and_cache_follow_the_plan():
    plan, context, batch_size = [1, 0, 2], 40, 3
    cost = cost_of(TEACHER, plan, context, batch_size)
    assert cost.num_iterations == sum(plan)
    assert cost.num_evaluations == sum(plan) + 3
    assert cost.cache_bytes_per_token == 100 * cost.num_evaluations
    assert cost.cache_bytes == cost.cache_bytes_per_token * context * batch_size


@pytest.mark.parametrize(
    ("shape", "plan", "unused"),
    [
        (BLOCK_SHAPE, [2, 0, 3], 0),
        (BLOCK_SHAPE, [1, 0, 1], 0),
        # Layer 1: a LayerNorm of 32 weights and 32 biases, and w of H_0 and its own.
        (BLOCK_SHAPE, [0, 0, 1], 64 + 2),
        (BLOCK_SHAPE, [0, 0, 0], 64 + 2 + 64 + 4),  # layer 2 had none to lose
        (PLAIN, [1, 0, 1], 3),
        (PLAIN.model_copy(update={"relaxation": False}), [0, 0, 0], 0),
        (None, [0, 0, 0], None),
    ],
)
def test_parameters_that_a_plan_leaves_without_use(shape, plan, unused):
    assert cost_of(teacher_with(shape), plan).unused_parameters == unused


def test_seconds_and_settings_come_from_the_table():
    table = make_table(TEACHER)
    cost = cost_of(TEACHER, [1, 0, 1], latency=table)
    assert cost.seconds == pytest.approx({"prefill": 0.051, "decode": 0.006})
    assert (cost.context, cost.batch_size) == (256, 2)
    without = cost_of(teacher_with(None), [1, 0, 1])  # no table, and no shape to count with
    assert without.seconds == {}
    assert (without.prefill_flops, without.decode_flops) == (None, None)
    assert (without.context, without.batch_size, without.cache_bytes_per_token) == (1024, 1, 500)


@pytest.mark.parametrize("name", ["context", "batch_size"])
def test_no_tokens_and_no_sequences_are_refused(name):
    with refused(f"{name}: expected a whole number from 1, got 0"):
        cost_of(TEACHER, [1, 0, 1], **{name: 0})


@pytest.mark.parametrize(
    ("change", "cuts"),
    [
        ({"num_iterations": [1, 0, 1]}, (0.6, 0.375)),
        ({"num_iterations": [0, 0]}, (None, 0.75)),
        ({"num_iterations": [2, 0, 1], "num_start_evaluations": 2}, (None, -0.125)),
        ({"shape": BLOCK_SHAPE.model_copy(update={"hidden_size": 64})}, (None, None)),
        ({"shape": BLOCK_SHAPE.model_copy(update={"vocab_size": 5, "history": False})}, (0, 0)),
        ({"shape": None}, (None, None)),
        ({"shape": None, "fingerprint": "a" * 64, "num_iterations": [2, 0, 2]}, (0.2, 0.125)),
    ],
)
def test_cuts_between_models_are_none_where_they_would_mislead(change, cuts):
    change = {"fingerprint": "b" * 64, "num_layers": len(change.get("num_iterations", "123")), **change}
    assert compare_costs(TEACHER.model_copy(update=change), TEACHER) == cuts
    plain = TEACHER.model_copy(update={"num_iterations": [0, 0, 0], "fingerprint": "b" * 64})
    assert compare_costs(TEACHER, plain) == (None, (3 - 8) / 3)
