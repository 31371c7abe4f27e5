"""Scores against a double loop over positions, and what they must not depend on."""

import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from iiad.data import Window
from iiad.evaluation.quality_artefact import bits_per_byte, perplexity
from iiad.training.scoring import evaluate_model
from tests.helpers import VARIANTS, make_iiet, make_llama, make_model, refused


def make_gpt2():
    return make_model(
        GPT2LMHeadModel, GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    )


MODELS = {
    **{name: VARIANTS[name] for name in ("history", "relaxed", "untied", "pcformer-rk2")},
    "llama": make_llama,
    "gpt2": make_gpt2,
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return MODELS[request.param]()


def stream(num_tokens=62, seed=3):
    return torch.randint(3, 97, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def windows_of(tokens, block_size, batch_size):
    """Overlapping by one token, the short last one alone."""
    full = [
        tokens[start : start + block_size + 1] for start in range(0, len(tokens) - block_size, block_size)
    ]
    batches = [torch.stack(full[i : i + batch_size]) for i in range(0, len(full), batch_size)]
    rest = (len(tokens) - 1) % block_size
    return map(Window.of, [*batches, tokens[-rest - 1 :][None]] if rest else batches)


@torch.no_grad()
def naive_scores(model, tokens, block_size):
    """One position at a time, in Python floats, each from its own forward call."""
    total, right = 0.0, 0
    for position in range(1, len(tokens)):
        start = (position - 1) // block_size * block_size
        logits = model(tokens[None, start:position]).logits[0, -1].double().tolist()
        highest = max(logits)
        log_sum = highest + math.log(sum(math.exp(value - highest) for value in logits))
        total += log_sum - logits[tokens[position]]
        right += logits.index(highest) == tokens[position]
    return total / (len(tokens) - 1), right / (len(tokens) - 1)


def test_scores_equal_a_naive_double_loop(model):
    tokens = stream(30)
    nll, accuracy = naive_scores(model, tokens, 8)
    score = evaluate_model(model, windows_of(tokens, 8, 2))
    assert score.tokens == len(tokens) - 1
    assert score.nll == pytest.approx(nll, rel=1e-5)
    assert score.accuracy == accuracy


def test_accuracy_counts_what_the_model_itself_would_say(model):
    tokens = stream(9)[None]
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    score = evaluate_model(model, [Window.of(tokens)])
    assert score.accuracy >= 12 / 20


@pytest.mark.parametrize(("batch_size", "chunk_tokens"), [(1, 1), (2, 7), (5, 1000)])
def test_scores_depend_on_neither_batch_nor_chunk_size(model, batch_size, chunk_tokens):
    wanted = evaluate_model(model, windows_of(stream(), 12, 3))
    found = evaluate_model(model, windows_of(stream(), 12, batch_size), chunk_tokens=chunk_tokens)
    assert (found.tokens, found.accuracy) == (wanted.tokens, wanted.accuracy)
    assert found.nll == pytest.approx(wanted.nll, rel=1e-5)


@pytest.mark.usefixtures("norms_in_float64")
def test_in_float64_batch_and_chunk_size_change_the_last_digits_alone():
    model = make_iiet(num_iterations=2).double()
    found = [
        evaluate_model(model, windows_of(stream(), 12, size), chunk_tokens=chunk).nll
        for size, chunk in ((1, 5), (4, 100))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-13)


def test_the_head_of_a_model_type_not_known_to_be_plain_is_left_to_its_forward():
    model = make_llama()
    wanted = evaluate_model(model, [Window.of(stream()[None])])
    model.config.model_type = "granite"  # a type that scales its logits
    forward = model.forward

    def scaled(**kwargs):
        outputs = forward(**kwargs)
        outputs.logits = outputs.logits * 0
        return outputs

    model.forward = scaled
    found = evaluate_model(model, [Window.of(stream()[None])])
    assert found.nll == pytest.approx(math.log(97), rel=1e-6)
    assert found.nll != pytest.approx(wanted.nll, rel=1e-3)


def test_bfloat16_is_near_float32_and_leaves_the_weights_alone():
    model = make_llama()
    exact = evaluate_model(model, [Window.of(stream()[None])])
    rough = evaluate_model(model, [Window.of(stream()[None])], dtype="bfloat16")
    assert model.dtype == torch.float32
    assert rough.nll != exact.nll
    assert rough.nll == pytest.approx(exact.nll, rel=2e-2)


def test_training_mode_is_put_back_and_dropout_is_off():
    model = make_iiet(num_iterations=1, attention_dropout=0.5)
    wanted = evaluate_model(model, [Window.of(stream()[None])])
    model.train()
    assert evaluate_model(model, [Window.of(stream()[None])]) == wanted
    assert model.training


def test_no_gradient_is_kept_and_progress_adds_up():
    model, seen = make_iiet(num_iterations=1), []
    evaluate_model(model, windows_of(stream(), 16, 2), advance=seen.append)
    assert sum(seen) == len(stream()) - 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_uniform_model_has_the_known_bits_per_byte_and_perplexity_stays_a_number():
    model = make_iiet(num_iterations=1, tie_word_embeddings=False)
    nn.init.zeros_(model.lm_head.weight)
    score = evaluate_model(model, [Window.of(stream()[None])])
    assert score.nll == pytest.approx(math.log(97), rel=1e-6)
    assert perplexity(score.nll) == pytest.approx(97, rel=1e-5)
    assert bits_per_byte(score.nll, 0.25) == pytest.approx(math.log2(97) / 4, rel=1e-6)
    assert math.isfinite(perplexity(1e6))


def test_a_loss_that_is_no_number_names_model_and_first_bad_batch():
    model = make_iiet(num_iterations=1, tie_word_embeddings=False)  # the token's logit elsewhere is sound
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    tokens = torch.full((3, 9), 7)
    bad = tokens.clone()
    bad[1, 4] = 50
    with refused("student: loss: expected finite numbers, got nan in batch 2 "):
        evaluate_model(model, map(Window.of, [tokens, tokens, bad, bad]), name="student")


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        (
            [torch.full((1, 4), 5), torch.full((1, 4), 97)],
            "expected tokens below its vocabulary of 97, got 97 in batch 1",
        ),
        ([], "windows: expected at least 1 token"),
        ([torch.zeros(1, 1, dtype=torch.long)], "windows: expected at least 1 token"),
    ],
)
def test_tokens_that_cannot_be_scored_are_refused(windows, words):
    with refused(words):
        evaluate_model(make_iiet(num_iterations=0), map(Window.of, windows))


def test_logits_of_a_whole_batch_never_exist_at_once():
    model, widest = make_iiet(num_iterations=1), []
    model.lm_head.register_forward_pre_hook(lambda _, given: widest.append(given[0].shape[0]))
    evaluate_model(model, windows_of(stream(), 16, 3), chunk_tokens=5)
    assert max(widest) == 5
