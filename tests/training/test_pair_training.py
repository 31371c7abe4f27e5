"""Training encoder-decoders on pairs: a tiny corpus, the same loop, resume, and what does not fit."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from iiad.errors import Unfinished
from iiad.generation import capture_beams
from iiad.training import RunRecord, TrainRecipe, load_recipe, train
from iiad.training.phases import TwoPhases
from iiad.training.teacher import build_model
from tests.helpers import log_of, refused

from .conftest import ROWS, Words


@pytest.fixture(scope="session")
def finished(pair_fields, tmp_path_factory):
    """The folder of an unbroken run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(TrainRecipe.model_validate(pair_fields(label_smoothing=0.1)), folder)
    return folder


def test_a_run_on_pairs_ends_with_an_encoder_decoder_that_transformers_loads(finished):
    model = AutoModelForSeq2SeqLM.from_pretrained(finished)
    tokenizer = AutoTokenizer.from_pretrained(finished)
    config = model.config
    assert (config.iterations, config.num_encoder_layers, config.num_layers) == ([1, 2, 2], 2, 1)
    assert config.decoder_start_token_id == config.pad_token_id == tokenizer.pad_token_id == 1
    assert config.eos_token_id == tokenizer.eos_token_id == 0
    losses = [entry["loss"] for entry in log_of(finished)]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.3
    card = (finished / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card
    assert "layers: 2 + 1" in card
    assert "iterations per layer (the plan): [1, 2, 2]" in card


@torch.no_grad()
def test_validation_is_the_mean_over_all_targets_of_the_loss_without_smoothing(finished):
    model, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained(finished),
        AutoTokenizer.from_pretrained(finished),
    )
    total, count = 0.0, 0
    for row in ROWS:
        source, target = ([*tokenizer(row[side])["input_ids"], 0] for side in ("source", "target"))
        loss = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).loss
        total, count = total + float(loss) * len(target), count + len(target)
    results = RunRecord.load(finished / "run.json").results
    assert results["validation_nll"] == pytest.approx(total / count, rel=1e-5)
    assert results["tokens"] > 6 * 100


def test_a_resumed_run_ends_as_the_unbroken_one_bit_for_bit(finished, pair_fields, tmp_path):
    recipe = TrainRecipe.model_validate(pair_fields(label_smoothing=0.1))
    run = tmp_path / "run"
    with pytest.raises(Unfinished):
        train(recipe, run, max_minutes=1e-6)
    train(recipe, run, resume=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (finished, run))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_recipe_that_a_run_keeps_makes_the_same_model_again(finished, tmp_path):
    train(load_recipe(TrainRecipe, finished / "recipe.yaml"), tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_encoder_decoder_is_trained_on_from_its_folder_under_another_plan(finished, pair_fields, tmp_path):
    model = {"path": str(finished), "num_iterations": [0, 1, 2]}
    fields = {
        **pair_fields(max_steps=2, iterations_start=0),
        "model": model,
        "tokenizer": {"path": str(finished)},
    }
    train(TrainRecipe.model_validate(fields), tmp_path / "run")
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run").config.iterations == [0, 1, 2]
    assert log_of(tmp_path / "run")[0]["loss"] < log_of(finished)[0]["loss"] - 0.3


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        ({"solver": "transformer"}, [0, 0, 0]),
        ({"solver": "pcformer"}, [1, 1, 1]),
        ({"history": False, "relaxation": True, "shared_embeddings": False}, [1, 2, 2]),
    ],
)
def test_other_solvers_learn_from_pairs_too(model, plan, pair_fields, tmp_path):
    fields = pair_fields(model=model, max_steps=2)
    for name in ("num_iterations", "num_encoder_iterations") if "solver" in model else ():
        fields["model"].pop(name)
    train(TrainRecipe.model_validate(fields), tmp_path / "run")
    config = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run").config
    assert config.iterations == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"block_size": 8}}, "data.block_size: expected none for pairs"),
        (
            {"per_device_train_batch_size": 4},
            "training.per_device_train_batch_size: expected none for pairs, which have data.max_batch_tokens",
        ),
        (
            {"model": {"max_position_embeddings": 4}},
            "max_source_tokens: expected a limit of at most 4, the longest source that is taken, got a source of",
        ),
        ({"data": {"max_batch_tokens": 5}}, "max_batch_tokens: expected at least"),
        ({"gradient_accumulation_steps": 90}, "data.train: expected enough pairs for one step"),
        ({"data": {"train": "stdlib:validation"}}, "data.train: expected pairs of source and target"),
    ],
)
def test_what_does_not_fit_pairs_is_refused_before_anything_is_written(
    changes, message, pair_fields, tmp_path
):
    with refused(message):
        train(TrainRecipe.model_validate(pair_fields(**changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_causal_model_takes_no_pairs(pair_fields, tmp_path):
    fields = pair_fields()
    for name in ("num_encoder_layers", "num_encoder_iterations"):
        del fields["model"][name]
    with refused("data.train: expected text or labelled rows, for a causal model (iiet), got pairs"):
        train(TrainRecipe.model_validate(fields), tmp_path / "run")


def test_training_goes_on_from_a_foreign_encoder_decoder(pair_fields, pair_folders, tmp_path):
    config = BartConfig(
        vocab_size=320, d_model=8, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    fields = {**pair_fields(max_steps=1), "model": {"path": str(tmp_path / "bart")}}
    fields["tokenizer"] = {"path": str(pair_folders.teacher)}
    del fields["training"]["iterations_start"]
    train(TrainRecipe.model_validate(fields), tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "layers: 1 + 2, width 8" in card
    assert "block evaluations per token: 3" in card


def test_a_model_that_names_no_positions_is_refused(pair_fields, pair_folders, tmp_path):
    config = T5Config(vocab_size=320, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, eos_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    fields = {**pair_fields(), "model": {"path": str(tmp_path / "t5")}}
    fields["tokenizer"] = {"path": str(pair_folders.teacher)}
    del fields["training"]["iterations_start"]
    message = "t5: config.json: max_position_embeddings: expected a number from 1, got None"
    with refused(message):
        train(TrainRecipe.model_validate(fields), tmp_path / "run")
    with refused(message):
        capture_beams(tmp_path / "t5", [str(pair_folders.pairs)], tmp_path / "beams", num_beams=2)


def test_limits_leave_out_pairs_and_make_another_run(finished, pair_fields, tmp_path, capsys):
    data = {"max_source_tokens": 9, "max_target_tokens": 9, "long_sources": "cut"}
    train(TrainRecipe.model_validate(pair_fields(data=data, max_steps=1)), tmp_path / "run")
    assert "sources cut" in capsys.readouterr().err
    inputs = [RunRecord.load(folder / "run.json").inputs["data"] for folder in (finished, tmp_path / "run")]
    assert inputs[0] != inputs[1]


@torch.no_grad()
def test_a_smooth_start_of_the_iterations_changes_no_output_of_an_encoder_decoder(pair_fields):
    section = TrainRecipe.model_validate(pair_fields()).model
    model = build_model(section, Words(50)).eval()
    batch = {"input_ids": torch.randint(50, (2, 7)), "decoder_input_ids": torch.randint(50, (2, 5))}
    phases = TwoPhases(model.config.iterations, 0.5, 10)
    phases.enter(4, model)
    before = model(**batch).logits
    phases.enter(5, model)
    assert model.config.iterations == [1, 2, 2]
    torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=1e-5)
    phases.smooth = False
    model = build_model(section, Words(50)).eval()
    assert (model(**batch).logits - before).abs().max() > 1e-3


@pytest.mark.slow
def test_the_shipped_recipe_for_docstrings_trains_from_a_name_alone(tmp_path):
    settings = ["training.max_steps=1", f"data.cache_dir={tmp_path / 'cache'}"]
    results = train(load_recipe(TrainRecipe, "docstrings", settings), tmp_path / "run")
    assert 7 < results["validation_nll"] < 9  # ln 4096 is 8.3
