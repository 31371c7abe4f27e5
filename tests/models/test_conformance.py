"""Our models against outputs of the method's released code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from iiad import InputError
from iiad.conversion.released import convert, from_released, to_released
from iiad.models import IIETConfig, IIETForCausalLM

REFERENCE = Path(__file__).parents[1] / "reference"
KINDS = ["iiet-r3", "iiet-r1", "pcformer-rk2", "transformer"]


def load(kind, folder):
    facts = json.loads((REFERENCE / kind / "facts.json").read_text())
    if kind == "transformer":  # plain, without iterations: our model as a Llama
        config = json.loads((REFERENCE / kind / "config.json").read_text())
        known = {
            k: v for k, v in config.items() if k in IIETConfig.__dataclass_fields__ and k != "architectures"
        }
        model = IIETForCausalLM(IIETConfig(**known, num_layers=4, num_iterations=0, history=False))
        model.load_state_dict(load_file(REFERENCE / kind / "model.safetensors"), strict=False)
    else:
        convert(REFERENCE / kind, folder / kind, facts["num_iterations"])
        model = AutoModelForCausalLM.from_pretrained(folder / kind)
    return model, facts, np.load(REFERENCE / kind / "outputs.npz")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_hidden_states_and_gradient_norms_match_the_released_code(kind, tmp_path):
    model, facts, outputs = load(kind, tmp_path)
    ids = torch.tensor(outputs["input_ids"])
    ours = model(ids, labels=ids, output_hidden_states=True)
    np.testing.assert_allclose(ours.logits.detach().numpy(), outputs["logits"], atol=2e-6, rtol=0)
    assert ours.loss.item() == pytest.approx(outputs["loss"].item(), abs=2e-6)
    assert len(ours.hidden_states) == model.config.num_layers + 1
    for k, hidden in enumerate(ours.hidden_states):
        np.testing.assert_allclose(hidden.detach().numpy(), outputs[f"hidden_{k}"], atol=5e-6, rtol=1e-5)
    ours.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = to_released(gradients, 4)
    assert found.keys() <= facts["grad_norms"].keys()
    for name, norm in facts["grad_norms"].items():
        # of the history's weights, the entries that an equation uses
        used = torch.tril(found[name])[1:] if name.startswith("model.history.weight") else found[name]
        assert used.norm().item() == pytest.approx(norm, rel=1e-4), name


@pytest.mark.parametrize("kind", ["iiet-r3", "pcformer-rk2"])
def test_conversion_there_and_back_keeps_every_entry_that_an_equation_uses(kind, tmp_path):
    convert(REFERENCE / kind, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    before = load_file(REFERENCE / kind / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.startswith("model.history.weight"):
            tensor, after[name] = torch.tril(tensor)[1:], torch.tril(after[name])[1:]
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, msg=name)
    convert(tmp_path / "back", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "ours" / "model.safetensors"
    ).read_bytes()


def test_released_names_round_trip_through_ours():
    weights = load_file(REFERENCE / "pcformer-rk2" / "model.safetensors")
    ours = from_released(weights, 4)
    assert ours["model.layers.2.corrector.update_weights"].shape == (4,)
    assert to_released(ours, 4).keys() == weights.keys()


def released(tmp_path, config_changes=(), weight_changes=()):
    folder = tmp_path / "released"
    shutil.copytree(REFERENCE / "iiet-r3", folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(config_changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    weights = {**load_file(folder / "model.safetensors"), **dict(weight_changes)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size: expected a multiple of num_attention_heads"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_hidden_layers": 3}, "model.history.weight: expected shape (4, 4), got (5, 5)"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"intermediate_size": 111}, "expected shape"),
        ({"hidden_act": "sillu"}, "sillu"),
    ],
)
def test_a_released_checkpoint_whose_config_is_wrong_is_refused_in_one_line(config, message, tmp_path):
    with pytest.raises(InputError) as error:
        convert(released(tmp_path, config), tmp_path / "ours")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_nan_and_a_head_of_its_own_in_a_tied_checkpoint_are_refused(tmp_path):
    weights = load_file(REFERENCE / "iiet-r3" / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    other_head = released(tmp_path / "a", weight_changes={"lm_head.weight": embeddings + 1})
    with pytest.raises(InputError, match=r"lm_head\.weight differs"):
        convert(other_head, tmp_path / "ours")
    poisoned = released(tmp_path / "b", weight_changes={"model.norm.weight": torch.full((48,), float("nan"))})
    with pytest.raises(InputError, match=r"model\.norm\.weight holds NaN"):
        convert(poisoned, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_config_that_does_not_say_whether_the_head_is_tied_goes_by_the_weights(tmp_path):
    weights = load_file(REFERENCE / "iiet-r3" / "model.safetensors")
    head = {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    convert(released(tmp_path, {"tie_word_embeddings": None}, head), tmp_path / "ours")
    assert torch.equal(
        load_file(tmp_path / "ours" / "model.safetensors")["lm_head.weight"], head["lm_head.weight"]
    )


def test_a_plan_that_differs_between_layers_has_no_released_form(tmp_path):
    convert(REFERENCE / "iiet-r3", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps({**config, "num_iterations": [3, 0, 1, 3]}))
    with pytest.raises(InputError, match="one number for all layers"):
        convert(tmp_path / "ours", tmp_path / "back")
