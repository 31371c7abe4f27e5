"""Cuts that need no training: each layer extrapolates its last steps where it stops, and nothing else."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers import PAIR_VARIANTS, UNEVEN, make_iiet, make_seq2seq

OWN = [[], [0.3, 0.1], [-0.2, 0.3], [0.1], []]
TABLE = [[[0.2], [0.3, 0.1, -0.1]], [[1.5, 0.2]], [[0.5], [0.4]]]


@pytest.mark.parametrize("fields", [{}, {"history": False}, {"cache_policy": "shared"}])
def test_coefficients_of_0_change_no_bit(fields, tokens):
    plain, zero = (
        make_iiet(num_iterations=[2, 1, 0], **fields, extrapolation=table)
        for table in (None, [[[0.0, 0.0]]] * 3)
    )
    assert torch.equal(plain(tokens).logits, zero(tokens).logits)


def test_the_full_plan_is_the_teacher_whatever_its_coefficients(tokens):
    teacher, model = make_iiet(num_iterations=3), make_iiet(num_iterations=3, extrapolation=TABLE)
    assert torch.equal(model(tokens).logits, teacher(tokens).logits)


def test_a_plan_finds_the_coefficients_of_its_stops():
    config = make_iiet(num_iterations=3, extrapolation=TABLE).config
    found = {}
    for plan in ([2, 1, 1], [1, 2, 0], [3, 3, 3]):
        config.num_iterations = plan
        found[tuple(plan)] = config.stop_extrapolation
    assert found[2, 1, 1] == [[0.3, 0.1, -0.1], [1.5, 0.2], [0.5]]
    assert (found[1, 2, 0], found[3, 3, 3]) == ([[0.2], [], []], [[], [], []])


def test_coefficients_set_with_a_plan_replace_those_of_its_stops_alone():
    model = make_iiet(num_iterations=3, extrapolation=TABLE)
    model.set_num_iterations([2, 1, 3], [[0.7, 0.1], [0.0], []])
    changed = [[[0.2], [0.7, 0.1]], [], [[0.5], [0.4]]]
    assert model.config.extrapolation == changed
    for wrong in (
        [[1.0]],
        [[], [], [1.0]],
        [[math.nan], [], []],
        [[], [1, 1, 1], []],
    ):  # of too few layers, of a layer in full
        with pytest.raises(ValueError, match="extrapolation: expected"):
            model.set_num_iterations([2, 1, 3], wrong)
    assert model.config.extrapolation == changed
    model.reconfigure(extrapolation=None)
    model.set_num_iterations([2, 1, 3], [[0.0], [], []])
    assert model.config.extrapolation is None


def test_coefficients_of_an_encoder_decoder_are_one_list_as_its_plan_is():
    model = make_seq2seq(**UNEVEN)
    model.set_num_iterations(model.config.iterations, OWN)
    assert model.config.stop_extrapolation == OWN
    assert model.config.extrapolation == [[], [[], [0.3, 0.1]], [[-0.2, 0.3]], [[], [0.1]], []]
    assert model.config.num_iterations == UNEVEN["num_iterations"]
    assert PAIR_VARIANTS["extrapolated"]().config.stop_extrapolation == OWN
    with pytest.raises(ValueError, match="extrapolation: expected none for a layer without iter"):
        model.set_num_iterations(model.config.iterations, [[0.5], [], [], [], []])


def test_a_token_changes_nothing_before_it(tokens):
    model = make_iiet(num_iterations=[2, 1, 0], max_num_iterations=3, extrapolation=TABLE).double()
    others = tokens.clone()
    others[:, 5] = (others[:, 5] + 1) % 90
    before, after = model(tokens).logits, model(others).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_saved_coefficients_are_loaded_and_others_can_be_given(tokens, tmp_path):
    model = make_iiet(num_iterations=[2, 1, 1], max_num_iterations=3, extrapolation=TABLE)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.extrapolation == TABLE
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, extrapolation=None)
    assert not torch.equal(plain(tokens).logits, model(tokens).logits)


def test_it_costs_no_evaluation(tokens):
    model = make_iiet(num_iterations=[2, 1, 1], max_num_iterations=3, extrapolation=TABLE)
    evaluations = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: evaluations.append(1))
    model(tokens)
    assert len(evaluations) == model.config.num_evaluations == 7
