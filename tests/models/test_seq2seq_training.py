"""Encoder-decoders train by transformers' own Trainer, recompute exactly, and load at another plan."""

import copy

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from iiad.data.tokenizers import train_tokenizer
from iiad.models import PCformerForConditionalGeneration
from tests.helpers import PAIR_VARIANTS, UNEVEN, make_pcformer_seq2seq, make_seq2seq

SOURCE = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(2))


def gradients(model, autocast):
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(SOURCE, labels=TARGET, use_cache=False).loss
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", PAIR_VARIANTS)
def test_recomputation_changes_no_gradient_dropout_included(kind):
    model = PAIR_VARIANTS[kind]().train()
    model.config.attention_dropout = 0.3
    for autocast in (False, True):
        model.set_recompute("none")
        wanted = gradients(model, autocast)
        for recompute in ("layer", "evaluation"):
            model.set_recompute(recompute)
            halves = [stack.recompute for stack in model.base_model.stacks]
            assert {model.recompute, *halves} == {recompute}
            found = gradients(model, autocast)
            assert wanted.keys() == found.keys()
            assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_the_seq2seq_trainer_takes_the_step_of_its_loss_and_generates(tmp_path):
    tokenizer = train_tokenizer(["a few words to learn from"], 300)
    model = make_seq2seq(**UNEVEN, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=0)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [9, 10]}, {"input_ids": [11, 12], "labels": [13, 14, 15]}]
    alone = copy.deepcopy(model).train()
    source, mask = torch.tensor([[5, 6, 7, 8], [11, 12, 0, 0]]), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    labels = torch.tensor([[9, 10, -100], [13, 14, 15]])
    loss = alone(source, mask, labels=labels).loss
    loss.backward()
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=2,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0,
            use_cpu=True,
            report_to=[],
            predict_with_generate=True,
            generation_max_length=5,
            disable_tqdm=True,
        ),
        DataCollatorForSeq2Seq(tokenizer, model),
        rows,
        rows,
    )
    assert trainer.train().training_loss == pytest.approx(loss.item(), abs=1e-5)
    for (name, after), before in zip(model.named_parameters(), alone.parameters(), strict=True):
        step = 0 if before.grad is None else 0.1 * before.grad
        torch.testing.assert_close(after, before - step, rtol=0, atol=1e-5, msg=name)
    assert trainer.predict(rows).predictions.shape[0] == 2


def test_a_saved_model_loads_with_auto_classes_also_at_smaller_plans(tmp_path):
    for kind, make in PAIR_VARIANTS.items():
        model = make()
        model.save_pretrained(tmp_path / kind)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / kind)
        assert type(loaded) is type(model)
        inputs = {"input_ids": SOURCE, "decoder_input_ids": TARGET}
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        base = AutoModel.from_pretrained(tmp_path / kind)
        assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)
    fields = {"num_encoder_iterations": [0, 1, 0], "num_iterations": 1}
    smaller = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "history", **fields)
    model = PAIR_VARIANTS["history"]()
    model.set_num_iterations([0, 1, 0, 1, 1])
    assert torch.equal(smaller(**inputs).logits, model(**inputs).logits)
    with pytest.raises(ValueError, match=r"num_encoder_iterations\[2\]: expected from 0 to 3"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "history", num_encoder_iterations=[0, 0, 4])


def test_a_pcformer_runs_fewer_stages_in_both_halves():
    model = make_pcformer_seq2seq(predictor_order=4)
    assert isinstance(model, PCformerForConditionalGeneration)
    assert (model.config.num_evaluations, model.config.num_hidden_layers) == (25, 10)
    model.set_predictor_stages(2)
    assert (model.config.num_evaluations, model.config.num_hidden_layers) == (15, 6)
    assert model(SOURCE, labels=TARGET).loss.isfinite()


def test_embeddings_are_resized_together_or_not_at_all():
    model = make_seq2seq(**UNEVEN)
    model.resize_token_embeddings(101)
    assert model(SOURCE, decoder_input_ids=TARGET).logits.shape == (2, 7, 101)
    assert model.model.encoder.embed_tokens.weight is model.lm_head.weight
    with pytest.raises(ValueError, match="shared_embeddings: expected true to replace"):
        make_seq2seq(shared_embeddings=False).resize_token_embeddings(101)
