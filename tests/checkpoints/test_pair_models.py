"""Folders of encoder-decoders: loaded, identified, summarized, planned, refused where the other kind is due."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from iiad.checkpoints import (
    identify_model,
    load_identified,
    load_model,
    model_fingerprint,
    read_limits,
    save_checkpoint,
)
from iiad.checkpoints.summary import summarize_model
from iiad.identities import ModelIdentity
from iiad.planning import Plan
from iiad.planning.plan import check_plan
from iiad.reporting.folder_tables import describe_model
from tests.helpers import UNEVEN, make_iiet, make_profile, make_seq2seq, refused

SOURCE = torch.randint(3, 97, (1, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": SOURCE, "decoder_input_ids": SOURCE[:, :4]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "model"
    save_checkpoint(make_seq2seq(**UNEVEN), folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(original, tmp_path / "model")


def test_a_pair_folder_loads_is_identified_and_takes_a_flat_plan(original):
    model, identity = load_identified(original, "cpu", "float32", cast=True, kind="pair")
    assert torch.equal(model(**INPUTS).logits, make_seq2seq(**UNEVEN)(**INPUTS).logits)
    assert (identity.num_layers, identity.num_encoder_layers) == (5, 3)
    assert identity.num_iterations == [0, 2, 1, 2, 0]
    names = [identity.layer_name(layer) for layer in range(5)]
    assert names == ["encoder 1", "encoder 2", "encoder 3", "decoder 1", "decoder 2"]
    assert identity.cache_bytes_per_token == 4 * identity.cache_bytes_per_slot  # 1 + 2 + 1 of the decoder
    assert read_limits(original) == (128, 97)
    plan = Plan.explicit([0, 1, 0, 2, 0], identity)
    check_plan(plan, identity)
    with refused("expected 5 layers, as the teacher has, got 2"):
        Plan.explicit([1, 0], identity)
    planned = load_model(original, num_iterations=plan.num_iterations, kind="pair")
    assert planned.config.num_encoder_iterations == [0, 1, 0]
    assert model_fingerprint(planned) == model_fingerprint(model) == identity.fingerprint
    with refused(
        r"num_iterations: expected an int or a list of num_encoder_layers + num_layers (5), got [1, 0]"
    ):
        load_model(original, num_iterations=[1, 0], kind="pair")
    with refused("num_encoder_iterations[0]: expected from 0 to 3 (max_num_iterations), got 4"):
        load_model(original, num_iterations=4, kind="pair")


def test_the_other_kind_is_refused_in_one_line(original, tmp_path):
    save_checkpoint(make_iiet(num_iterations=1), tmp_path / "causal")
    with refused("expected a causal language model, got an encoder-decoder (iiet_seq2seq)"):
        load_model(original)
    with refused("expected an encoder-decoder, got a causal language model (iiet)"):
        load_model(tmp_path / "causal", kind="pair")
    assert load_model(original, kind=None).config.is_encoder_decoder


def test_only_a_pair_models_identity_is_written_with_its_encoder(original):
    causal = make_profile().model
    assert "num_encoder_layers" not in causal.model_dump_json()
    assert ModelIdentity.model_validate_json(causal.model_dump_json()) == causal
    assert causal.layer_name(2) == "layer 3"
    pair = identify_model(make_seq2seq(), "pair")
    assert json.loads(pair.model_dump_json())["num_encoder_layers"] == 3
    assert ModelIdentity.model_validate_json(pair.model_dump_json()) == pair
    with pytest.raises(ValueError, match="num_encoder_layers: expected below num_layers"):
        ModelIdentity.model_validate({**pair.model_dump(), "num_encoder_layers": 5})


def test_a_t5_is_identified_with_the_layers_of_both_halves():
    fields = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**fields, num_layers=2, num_decoder_layers=3))
    identity = identify_model(model, "t5")
    assert (identity.num_layers, identity.num_encoder_layers, identity.num_iterations) == (5, 2, [0] * 5)


def test_a_summary_shows_both_halves(original):
    summary = summarize_model(original)
    assert (summary.num_layers, summary.num_encoder_layers, summary.num_evaluations) == (5, 3, 10)
    text = describe_model(summary)
    assert "plan         0 2 1 | 2 0 iterations, 10 block evaluations" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_encoder_layers": 10**9}, "num_encoder_layers: expected at most 4096"),
        (
            {"num_encoder_layers": 4},
            "num_encoder_iterations: expected an int or a list of num_encoder_layers (4)",
        ),
        ({"num_encoder_iterations": [0, 2, 9]}, "num_encoder_iterations[2]: expected from 0 to 3"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder: expected true, got False"),
        ({"shared_embeddings": "x"}, "shared_embeddings: expected true or false, got 'x'"),
        ({"shared_embeddings": False}, "tensor model.encoder.embed_tokens.weight is missing"),
        (
            {"decoder_start_token_id": 97},
            "decoder_start_token_id: expected a token below vocab_size (97), got 97",
        ),
        ({"plan_fields": {}}, "config.json"),
    ],
    ids=str,
)
def test_a_pair_configuration_is_refused_by_the_field_at_fault(fields, words, folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with refused(words):
        load_model(folder, kind="pair")


def test_a_tensor_that_is_missing_or_left_over_is_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")
    weights["extra"] = weights.pop("model.decoder.layers.0.cross_attn.q_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with refused("tensor model.decoder.layers.0.cross_attn.q_proj.weight is missing from the weights"):
        load_model(folder, kind="pair")
