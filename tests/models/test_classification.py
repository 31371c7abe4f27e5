"""Labels for texts and for tokens: transformers' generic heads on our models."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from iiad import InputError
from iiad.checkpoints import load_model
from iiad.models import IIETConfig, PCformerConfig
from tests.helpers import SHAPE, VARIANTS, make_model

HEADS = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
PLANS = {
    "history": lambda **fields: IIETConfig(**SHAPE, num_iterations=[0, 2, 1], **fields),
    "shared": lambda **fields: IIETConfig(**SHAPE, num_iterations=1, cache_policy="shared", **fields),
    "plain": lambda **fields: IIETConfig(**SHAPE, num_iterations=1, history=False, **fields),
    "pcformer": lambda **fields: PCformerConfig(**SHAPE, **fields),
}


def classifier(head, name, **fields):
    """A small model with stirred weights and three labels."""
    return make_model(HEADS[head].from_config, PLANS[name](num_labels=3, **fields))


@pytest.fixture(params=PLANS)
def name(request):
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_padding_on_either_side_changes_no_label(head, name, tokens):
    model, tokens = classifier(head, name), tokens[:, :6]
    wanted = model(tokens).logits
    padding = torch.zeros(2, 3, dtype=torch.long)
    for order in ((padding, tokens), (tokens, padding)):
        padded = torch.cat(order, 1)
        mask = (padded != 0).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found = model(padded, attention_mask=mask, position_ids=positions).logits
        found = found[mask.bool()].view(wanted.shape) if head == "token" else found
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recompute", ["none", "layer", pytest.param("evaluation", marks=pytest.mark.slow)])
@pytest.mark.parametrize("head", HEADS)
def test_a_model_learns_labels_and_all_its_parameters_get_gradients(head, recompute, name):
    model = classifier(head, name).train()
    model.set_recompute(recompute)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 97, (16, 5), generator=generator)
    labels = tokens % 3 if head == "token" else tokens[:, -1] % 3
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        losses.append(model(tokens, labels=labels).loss)
        losses[-1].backward()
        optimizer.step()
        if len(losses) == 1:
            idle = {key for key, value in model.named_parameters() if value.grad is None}
            assert all("update_" in key and "layers.0" in key for key in idle)  # by the plan, r_1 = 0
        optimizer.zero_grad()
    assert losses[-1] < 0.6 * losses[0]


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_is_saved_loaded_and_follows_another_plan(head, name, tokens, tmp_path):
    model = classifier(head, name)
    model.save_pretrained(tmp_path)
    loaded = HEADS[head].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    truncated = HEADS[head].from_pretrained(tmp_path, num_iterations=0)
    model.set_num_iterations(0)
    assert torch.equal(truncated(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels"),
    [
        ("regression", 1, torch.tensor([0.5, -1.0])),
        ("single_label_classification", 3, torch.tensor([0, 2])),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
    ],
)
def test_each_problem_type_has_its_loss(problem, num_labels, labels, tokens):
    config = IIETConfig(**SHAPE, num_iterations=1, num_labels=num_labels, problem_type=problem)
    out = make_model(AutoModelForSequenceClassification.from_config, config)(tokens, labels=labels)
    functions = {1: torch.nn.functional.mse_loss, 3: torch.nn.functional.cross_entropy}
    loss = functions[num_labels] if labels.ndim == 1 else torch.nn.functional.binary_cross_entropy_with_logits
    assert out.loss.item() == pytest.approx(loss(out.logits.squeeze(), labels).item())


@torch.no_grad()
def test_a_language_models_folder_becomes_a_classifier_and_stages_refuse_that(tokens, tmp_path):
    language = VARIANTS["history"]()
    language.save_pretrained(tmp_path / "language")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "language", num_labels=3)
    assert torch.equal(model.model(tokens)[0], language.model(tokens)[0])
    model.save_pretrained(tmp_path / "classifier")
    message = r"architectures: expected a causal language model, got \['IIETForSequenceClassification'\]"
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "classifier")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "language").config.num_labels == 2
