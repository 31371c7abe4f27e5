"""Training goes on from a model that is there: an upcycled Llama, or a teacher of ours."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from iiad.checkpoints import load_model, save_checkpoint
from iiad.conversion.released import convert
from iiad.data import load_tokenizer
from iiad.training import RunRecord, TrainRecipe, train
from iiad.training.run_status import read_run
from tests.helpers import make_llama, refused


@pytest.fixture(scope="module")
def llama_folder(teacher_folder, tmp_path_factory):
    """An untrained Llama with the teacher's tokenizer, stored in bfloat16."""
    tokenizer = load_tokenizer(teacher_folder)
    model = make_llama(vocab_size=len(tokenizer), num_hidden_layers=2, pad_token_id=None)
    folder = tmp_path_factory.mktemp("llama") / "model"
    save_checkpoint(model.to(torch.bfloat16), folder, tokenizer=tokenizer)
    return folder


@pytest.fixture
def trained_on(quick, tmp_path):
    """Train on from a model for a step; the folder of the run."""

    def run(folder, model=None, **training):
        fields = quick(tokenizer={"path": str(folder)}, max_steps=1, **training)
        # The first phase is given up here: a model that is there runs its iterations from the start.
        if "iterations_start" not in training:
            del fields["training"]["iterations_start"]
        fields["model"] = {"path": str(folder), **(model or {})}
        train(TrainRecipe.model_validate(fields), tmp_path / "run")
        return tmp_path / "run"

    return run


def test_an_upcycled_llama_trains_on_as_an_iiet_whose_relaxation_leaves_zero(
    llama_folder, trained_on, tmp_path
):
    convert(llama_folder, tmp_path / "upcycled", 3)
    run = trained_on(tmp_path / "upcycled")
    trained = AutoModelForCausalLM.from_pretrained(run)
    assert trained.config.num_iterations == [3, 3]
    assert trained.dtype == torch.float32
    assert all(layer.corrector.relaxation.abs().min() > 0 for layer in trained.model.layers)
    assert set(RunRecord.load(run / "run.json").inputs) == {"tokenizer", "data", "validation", "model"}
    assert read_run(run).command == "train"


STILL = {"learning_rate": 1e-12, "weight_decay": 0.0}


def test_training_on_begins_with_the_weights_that_are_there(llama_folder, trained_on):
    before, after = load_model(llama_folder), load_model(trained_on(llama_folder, **STILL))
    assert_same(before, after)


def test_a_teacher_of_ours_trains_on_under_another_plan_with_what_its_iterations_learnt(
    teacher_folder, trained_on
):
    before, after = (
        load_model(teacher_folder),
        load_model(trained_on(teacher_folder, {"num_iterations": [1, 2]}, **STILL)),
    )
    assert after.config.num_iterations == [1, 2]
    assert_same(before, after)


def assert_same(before, after):
    found = after.state_dict()
    for name, value in before.state_dict().items():
        torch.testing.assert_close(found[name], value.float(), rtol=0, atol=1e-9)


def test_a_model_trains_on_under_the_other_cache_policy_and_keeps_it(teacher_folder, trained_on, tmp_path):
    run = trained_on(teacher_folder, {"cache_policy": "shared"})
    trained = AutoModelForCausalLM.from_pretrained(run)
    assert trained.config.cache_policy == "shared"
    assert trained.config.num_hidden_layers == 2
    with refused("cache_policy: expected exact for a form in the released code, got shared"):
        convert(run, tmp_path / "released")


@pytest.mark.parametrize(
    ("source", "model", "training", "message"),
    [
        ("llama_folder", {"cache_policy": "shared"}, {}, "model.cache_policy: expected none for "),
        ("teacher_folder", {}, {"iterations_start": 0.5}, "training.iterations_start: expected 0"),
        ("teacher_folder", {"num_iterations": 9}, {}, "from 0 to 2"),
        ("teacher_folder", {"num_iterations": [1]}, {}, "num_iterations"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused_before_anything_is_written(
    source, model, training, message, trained_on, tmp_path, request
):
    with refused(message):
        trained_on(request.getfixturevalue(source), model, **training)
    assert not (tmp_path / "run").exists()


def test_a_path_and_a_shape_are_refused_together(teacher_folder, trained_on):
    with pytest.raises(ValueError, match=r"(?s)hidden_size.*none beside model\.path.*solver"):
        trained_on(teacher_folder, {"hidden_size": 32, "solver": "iiet"})
