"""Training goes on from a model that is there: an upcycled Llama, or a teacher of ours."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from iiad import InputError
from iiad.checkpoints import load_model, save_checkpoint
from iiad.conversion.released import convert
from iiad.data import load_tokenizer
from iiad.training import RunRecord, TrainRecipe, train


@pytest.fixture(scope="module")
def llama_folder(teacher_folder, tmp_path_factory):
    """An untrained Llama with the teacher's tokenizer, stored in bfloat16."""
    tokenizer = load_tokenizer(teacher_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=None,
    )
    folder = tmp_path_factory.mktemp("llama") / "model"
    save_checkpoint(LlamaForCausalLM(config).to(torch.bfloat16), folder, tokenizer=tokenizer)
    return folder


def recipe_from(recipe_fields, folder, model=None, **training):
    # The first phase is given up here: a model that is there runs its iterations from the start.
    kept = {name: value for name, value in recipe_fields["training"].items() if name != "iterations_start"}
    return TrainRecipe.model_validate(
        {
            "model": {"path": str(folder), **(model or {})},
            "tokenizer": {"path": str(folder)},
            "data": {**recipe_fields["data"], "train": recipe_fields["data"]["validation"]},
            "training": {**kept, "max_steps": 6, **training},
        }
    )


def test_an_upcycled_llama_trains_on_as_an_iiet_whose_relaxation_leaves_zero(
    recipe_fields, llama_folder, tmp_path
):
    convert(llama_folder, tmp_path / "upcycled", 3)
    train(recipe_from(recipe_fields, tmp_path / "upcycled", learning_rate=0.01), tmp_path / "run")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert trained.config.num_iterations == [3, 3]
    assert trained.dtype == torch.float32
    assert all(layer.corrector.relaxation.abs().min() > 0 for layer in trained.model.layers)
    assert set(RunRecord.load(tmp_path / "run" / "run.json").inputs) == {
        "tokenizer",
        "data",
        "validation",
        "model",
    }


def test_training_on_begins_with_the_weights_that_are_there(recipe_fields, llama_folder, tmp_path):
    train(recipe_from(recipe_fields, llama_folder, learning_rate=1e-12, weight_decay=0.0), tmp_path / "run")
    before, after = load_model(llama_folder).state_dict(), load_model(tmp_path / "run").state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value.float(), rtol=0, atol=1e-9)


def test_a_teacher_of_ours_trains_on_under_another_plan_with_what_its_iterations_learnt(
    recipe_fields, teacher_folder, tmp_path
):
    recipe = recipe_from(
        recipe_fields, teacher_folder, {"num_iterations": [1, 2]}, learning_rate=1e-12, weight_decay=0.0
    )
    train(recipe, tmp_path / "run")
    before, after = load_model(teacher_folder), load_model(tmp_path / "run")
    assert after.config.num_iterations == [1, 2]
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, rtol=0, atol=1e-9)


def test_a_model_trains_on_under_the_other_cache_policy_and_keeps_it(recipe_fields, teacher_folder, tmp_path):
    train(recipe_from(recipe_fields, teacher_folder, {"cache_policy": "shared"}), tmp_path / "run")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert trained.config.cache_policy == "shared"
    assert trained.config.num_hidden_layers == 2
    with pytest.raises(
        InputError, match="cache_policy: expected exact for a form in the released code, got shared"
    ):
        convert(tmp_path / "run", tmp_path / "released")


def test_a_llama_has_no_cache_policy_to_train_on_under(recipe_fields, llama_folder, tmp_path):
    with pytest.raises(InputError, match=r"model\.cache_policy: expected none for .*, a llama without"):
        train(recipe_from(recipe_fields, llama_folder, {"cache_policy": "shared"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_trained_from_scratch_with_a_shared_cache(recipe_fields, tmp_path):
    fields = {**recipe_fields, "model": {**recipe_fields["model"], "cache_policy": "shared"}}
    fields["training"] = {**recipe_fields["training"], "max_steps": 4}
    train(TrainRecipe.model_validate(fields), tmp_path / "run")
    assert load_model(tmp_path / "run").config.cache_policy == "shared"


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({}, {"iterations_start": 0.5}, "training.iterations_start: expected 0"),
        ({"num_iterations": 9}, {}, "from 0 to 2"),
        ({"num_iterations": [1]}, {}, "num_iterations"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_written(
    model, training, message, recipe_fields, teacher_folder, tmp_path
):
    with pytest.raises(InputError, match=message):
        train(recipe_from(recipe_fields, teacher_folder, model, **training), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_path_and_a_shape_are_refused_together(recipe_fields, teacher_folder):
    with pytest.raises(ValueError, match=r"(?s)hidden_size.*none beside model\.path.*solver"):
        recipe_from(recipe_fields, teacher_folder, {"hidden_size": 32, "solver": "iiet"})
