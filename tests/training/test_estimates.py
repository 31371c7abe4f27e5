"""Estimates are those of the real models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from iiad.models import IIETConfig, IIETForCausalLM, PCformerConfig, PCformerForCausalLM
from iiad.training import TrainRecipe, load_recipe
from iiad.training.estimates import (
    StageWork,
    count_parameters,
    evaluations_per_layer,
    forward_flops,
    teacher_work,
    training_bytes,
    training_flops,
)
from iiad.training.recipe_summary import measure_cpu
from iiad.training.recipes import BatchShape
from iiad.training.sections import ModelSection, TrainingSection
from iiad.training.teacher import build_model

from .conftest import Words

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}


TRAINING = TrainingSection(max_steps=100, warmup_steps=0, per_device_train_batch_size=2)


@pytest.mark.parametrize(
    ("fields", "model", "config"),
    [
        ({"solver": "transformer"}, LlamaForCausalLM, LlamaConfig),
        ({"solver": "transformer", "head_dim": 6}, LlamaForCausalLM, LlamaConfig),
        ({}, IIETForCausalLM, IIETConfig),
        ({"num_iterations": [0, 2, 1], "tie_word_embeddings": False}, IIETForCausalLM, IIETConfig),
        ({"num_iterations": 2, "history": False}, IIETForCausalLM, IIETConfig),
        ({"num_iterations": [0, 2, 1], "history": False, "relaxation": True}, IIETForCausalLM, IIETConfig),
        ({"solver": "pcformer"}, PCformerForCausalLM, PCformerConfig),
        ({"solver": "pcformer", "predictor_order": 4, "coefficients": "fixed"}, PCformerForCausalLM, PCformerConfig),
    ],
)  # fmt: skip
def test_parameters_and_evaluations_are_those_of_the_model(fields, model, config):
    section = ModelSection(**SHAPE, num_layers=3, **fields)
    given = {name: value for name, value in fields.items() if name != "solver"}
    depth = "num_hidden_layers" if model is LlamaForCausalLM else "num_layers"
    given |= {"tie_word_embeddings": section.tie_word_embeddings, depth: 3}
    with torch.device("meta"):
        built = model(config(**SHAPE, vocab_size=97, **given))
    assert count_parameters(section, 97) == sum(parameter.numel() for parameter in built.parameters())
    assert sum(evaluations_per_layer(section)) == built.config.num_hidden_layers


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"solver": "transformer", "shared_embeddings": False},
        {"solver": "pcformer", "predictor_order": 4, "tie_word_embeddings": False},
        {"num_encoder_iterations": [3, 0], "num_iterations": 1, "history": False, "relaxation": True},
        {"shared_embeddings": False, "tie_word_embeddings": False, "head_dim": 6},
    ],
)
def test_parameters_and_evaluations_of_encoder_decoders_are_those_of_the_model(fields):
    section = ModelSection(**SHAPE, num_layers=3, num_encoder_layers=2, **fields)
    with torch.device("meta"):
        built = build_model(section, Words(97))
    assert count_parameters(section, 97) == sum(parameter.numel() for parameter in built.parameters())
    assert sum(evaluations_per_layer(section)) == built.config.num_evaluations


def test_operations_of_encoder_decoders_are_those_of_their_products():
    section = ModelSection(
        **SHAPE, num_layers=3, num_encoder_layers=2, num_iterations=0, num_encoder_iterations=0
    )
    model = build_model(section, Words(97))
    model.set_attn_implementation("eager")
    source, target = torch.zeros(1, 7, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=source, decoder_input_ids=target, use_cache=False)
    found = 12 * sum(forward_flops(section, 97, [7, 5], [2, 3]))
    # Products are counted with the masked half of the causal attention.
    masked = 3 * 4 * 16 * (5 * 5 - 5 * 6 // 2)
    rotations = counter.get_total_flops() - found - masked
    assert 0 <= rotations <= 2 * (7 + 5) * 4  # of the rotary angles


def test_more_iterations_cost_more_and_recomputation_trades_memory_for_operations():
    def cost(iterations=3, **fields):
        section = ModelSection(**SHAPE, num_layers=6, num_iterations=iterations)
        training = TRAINING.model_copy(update=fields)
        batch = BatchShape((8,), 16)
        return training_flops(section, training, 97, batch), training_bytes(section, training, 97, batch)

    assert cost(3) > cost(2) > cost(0)
    assert cost(iterations_start=0.0)[0] > cost(iterations_start=0.75)[0] > cost(iterations_start=1.0)[0]
    plain, layer, evaluation = (cost(gradient_checkpointing=how) for how in (False, "layer", "evaluation"))
    assert layer == cost(gradient_checkpointing=True)
    assert plain[0] < layer[0] == evaluation[0]
    assert evaluation[1] != layer[1] < plain[1] > evaluation[1]


def test_a_shared_cache_saves_the_projections_of_all_but_each_layers_first_evaluation():
    exact, shared = (
        ModelSection(**SHAPE, num_layers=6, num_iterations=3, cache_policy=policy)
        for policy in ("exact", "shared")
    )
    (before, head), (after, same) = (forward_flops(section, 97, [8], [24]) for section in (exact, shared))
    assert head == same
    assert before - after == (24 - 6) * 2 * (
        2 * 16 * 2 * 4
    )  # keys and values, D x K x E, a multiply-add as 2


def test_saved_activations_are_as_counted():
    """At most 64 bytes a feature for each token and evaluation, under autocast to bf16, and not much less."""

    def saved(iterations):
        model = IIETForCausalLM(
            IIETConfig(
                vocab_size=16, hidden_size=64, intermediate_size=176, num_layers=2, num_attention_heads=1,
                num_iterations=iterations, max_num_iterations=3, attn_implementation="sdpa",
            )
        ).train()  # fmt: skip
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = tensor  # the tensor too: so that no other takes its place
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            model.model(input_ids=torch.zeros(1, 256, dtype=torch.long), use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    per_evaluation = (saved(3) - saved(1)) / (2 * 2 * 256 * 64)
    assert 0.8 * 64 < per_evaluation < 1.01 * 64


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_the_work_of_some_steps_is_the_sum_over_them(switch, start, end):
    work = StageWork(switch, 2.0, 5.0)
    assert work.between(start, end) == sum(2.0 if step < switch else 5.0 for step in range(start, end))


def test_the_work_of_a_training_follows_its_phases():
    recipe = load_recipe(TrainRecipe, "demo")
    work = teacher_work(recipe)
    assert work.switch == 100
    assert work.after - work.before == pytest.approx(12)  # iterations
    assert 0 < work.before - 4 < 4  # the head
    for changes in (
        ["model.solver=transformer"],
        ["model.num_iterations=0"],
        ["training.iterations_start=0"],
    ):
        found = teacher_work(load_recipe(TrainRecipe, "demo", changes))
        assert found.before == found.after or found.switch == 0
    pairs = teacher_work(load_recipe(TrainRecipe, "docstrings"))
    assert pairs.after == pytest.approx(
        4 * pairs.before, rel=0.3
    )  # each layer's evaluation, three times more


def test_the_speed_of_this_machine_is_a_number_of_operations():
    assert 1e8 < measure_cpu() < 1e15
