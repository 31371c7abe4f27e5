"""Our models against outputs of the method's released code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iiad.conversion import convert, from_released, to_released
from iiad.models import IIETConfig, IIETForCausalLM

REFERENCE = Path(__file__).parents[1] / "data"
KINDS = ["iiet-r3", "iiet-r1", "pcformer-rk2", "transformer"]


def load(kind, folder):
    from transformers import AutoModelForCausalLM

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
def test_logits_loss_and_hidden_states_match_the_released_code(kind, tmp_path):
    model, _, outputs = load(kind, tmp_path)
    ids = torch.tensor(outputs["input_ids"])
    with torch.no_grad():
        ours = model(ids, labels=ids, output_hidden_states=True)
    np.testing.assert_allclose(ours.logits.numpy(), outputs["logits"], atol=2e-6, rtol=0)
    assert ours.loss.item() == pytest.approx(outputs["loss"].item(), abs=2e-6)
    assert len(ours.hidden_states) == model.config.num_layers + 1
    for k, hidden in enumerate(ours.hidden_states):
        np.testing.assert_allclose(hidden.numpy(), outputs[f"hidden_{k}"], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_norms_match_the_released_code(kind, tmp_path):
    model, facts, outputs = load(kind, tmp_path)
    ids = torch.tensor(outputs["input_ids"])
    model(ids, labels=ids).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    untouched = [name for name in to_released(gradients, 4) if name not in facts["grad_norms"]]
    assert not untouched
    released = to_released(gradients, 4)
    for name, norm in facts["grad_norms"].items():
        ours = released[name]
        if name.startswith("model.history.weight"):
            ours = torch.tril(ours)[1:]  # the entries that an equation uses
        assert ours.norm().item() == pytest.approx(norm, rel=1e-4), name


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
