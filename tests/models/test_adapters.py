"""Adapters of peft's on our models: they start as the model, learn, decode from the cache, are saved and merged."""

import copy

import pytest
import torch

from iiad.models import IIETConfig, IIETForSequenceClassification
from tests.helpers import SHAPE, VARIANTS, greedy, make_model

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)  # peft's

KINDS = ["history", "relaxed", "plain", "shared", "pcformer-rk2"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=PROJECTIONS, task_type="CAUSAL_LM"),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=PROJECTIONS, use_dora=True, task_type="CAUSAL_LM"),
    "all-linear": lambda: peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "saved": lambda: peft.LoraConfig(
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["corrector", "input_layernorm"],
        task_type="CAUSAL_LM",
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    ),
}


def train(model, tokens, labels=None, num_steps=3):
    """The losses of a few steps. labels: default, the tokens."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(num_steps):
        loss = model.train()(input_ids=tokens, labels=tokens if labels is None else labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_starts_as_the_model_learns_decodes_and_merges(adapter, name, tokens, tmp_path):
    base = VARIANTS[name]()
    frozen = copy.deepcopy(base.state_dict())
    with torch.no_grad():
        wanted = base(tokens).logits
    model = peft.get_peft_model(base, ADAPTERS[adapter]()).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, wanted, rtol=0, atol=1e-5)
    losses = train(model, tokens)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        found = model(input_ids=tokens).logits
        assert not torch.allclose(found, wanted, atol=1e-3)
        new = model.generate(input_ids=tokens, max_new_tokens=4, do_sample=False, eos_token_id=-1)
        assert torch.equal(new, greedy(model, tokens, 4))
    model.save_pretrained(tmp_path)
    again = VARIANTS[name]()
    again.load_state_dict(frozen)
    loaded = peft.PeftModel.from_pretrained(again, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=tokens).logits, found, rtol=0, atol=1e-5)
        merged = loaded.merge_and_unload()
        assert type(merged) is type(base)
        torch.testing.assert_close(merged(tokens).logits, found, rtol=0, atol=1e-4)
        assert {*merged.state_dict()} == {*frozen}


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_learns_the_same_where_evaluations_are_computed_again(name, tokens):
    losses = []
    for recompute in ("none", "layer", "evaluation"):
        torch.manual_seed(0)
        model = peft.get_peft_model(VARIANTS[name](), ADAPTERS["saved"]())
        model.set_recompute(recompute)
        losses.append(train(model, tokens))
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_a_classifier_learns_by_an_adapter_and_keeps_its_head_with_it(tokens, tmp_path):
    config = IIETConfig(**SHAPE, num_iterations=1, num_labels=3)
    base = make_model(IIETForSequenceClassification, config)
    wanted = peft.LoraConfig(r=4, target_modules=PROJECTIONS, task_type="SEQ_CLS")
    model = peft.get_peft_model(copy.deepcopy(base), wanted)
    losses = train(model, tokens, labels=torch.tensor([0, 2]))
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)
