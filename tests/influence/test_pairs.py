"""Influence in encoder-decoders: both halves by the whole model run again for every stop, whatever the padding."""

import pytest
import torch

from iiad.checkpoints import identify_model
from iiad.data import model_inputs
from iiad.evaluation.activation_memory import peak_bytes
from iiad.influence import METRICS, num_profile_evaluations, profile_batch
from tests.helpers import PAIR_VARIANTS, make_iiet, make_seq2seq, refused
from tests.influence.naive import TruncatedRuns, naive_gradients, naive_nll_of, naive_scores

QUICK = ("history", "plain", "pcformer-rk2")
SOURCES, TARGETS = (7, 3, 5), (2, 5, 4)
AMPLE = 10**9
"""Memory for all sequences at once; with 0 they are run one by one."""


def make_batch(sources=SOURCES, targets=TARGETS, padding=0):
    """Pairs of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    S, T = max(sources), max(targets)
    # Drawn in full, so that a pair's tokens do not depend on which are padding.
    source, target = (torch.randint(3, 97, (len(sources), 32), generator=generator) for _ in range(2))
    batch = {
        "input_ids": source[:, :S].clone(),
        "attention_mask": torch.ones(len(sources), S, dtype=torch.int64),
        "decoder_input_ids": torch.cat([torch.zeros_like(target[:, :1]), target[:, : T - 1]], 1),
        "labels": target[:, :T].clone(),
    }
    for row, (s, t) in enumerate(zip(sources, targets, strict=True)):
        batch["input_ids"][row, s:] = padding
        batch["attention_mask"][row, s:] = 0
        batch["decoder_input_ids"][row, t:] = padding
        batch["labels"][row, t:] = -100
    return batch


def row_of(batch, row):
    """One pair, without padding."""
    lengths = {"input_ids": SOURCES, "attention_mask": SOURCES}
    return {name: value[row : row + 1, : lengths.get(name, TARGETS)[row]] for name, value in batch.items()}


def flat(record):
    layers = [layer for scores in (record.scores, record.stages) for of in scores.values() for layer in of]
    return [score for layer in layers for score in layer]


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in PAIR_VARIANTS],
)
def test_scores_of_both_halves_equal_those_of_the_whole_model_run_again_for_every_stop(kind):
    model, batch = PAIR_VARIANTS[kind]().double(), make_batch()
    num_stages = model.config.num_start_evaluations
    gradients = naive_gradients(model, batch)
    with torch.no_grad():
        runs = TruncatedRuns(model, batch)
        wanted = naive_scores(runs.stops(), gradients, batch)
        stages = naive_scores(runs.stages(), gradients, batch) if num_stages > 1 else {}
        asked = batch["labels"] >= 0
        loss = naive_nll_of(model(**model_inputs(batch)).logits[asked], batch["labels"][asked])
    found = profile_batch(model, batch, memory=AMPLE)
    assert found.num_tokens == sum(TARGETS)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert [len(layer) for layer in found.scores["kl"]] == model.config.iterations
    for scores, naive in ((found.scores, wanted), (found.stages, stages)):
        assert list(scores) == list(naive)
        for metric, layers in naive.items():
            for layer, values in zip(scores[metric], layers, strict=True):
                assert layer == pytest.approx(values, rel=1e-8, abs=1e-12), metric
    for memory in (0, None):  # one pair after the other
        assert flat(profile_batch(model, batch, memory=memory)) == pytest.approx(
            flat(found), rel=1e-10, abs=1e-13
        )


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize(("attention", "rel"), [("sdpa", 1e-9), ("eager", 1e-5)])  # softmax in float32
def test_scores_are_those_of_each_pair_alone_whatever_stands_in_the_padding(attention, rel):
    model, batch = PAIR_VARIANTS["history"]().double(), make_batch()
    model.set_attn_implementation(attention)
    found = profile_batch(model, batch)
    parts = [profile_batch(model, row_of(batch, row)) for row in range(3)]
    for metric in ("kl", "loss", "taylor"):  # the others' means are over the tokens of each half
        alone = [
            [
                sum(n * part.scores[metric][t][i] for n, part in zip(TARGETS, parts, strict=True))
                for i in range(r)
            ]
            for t, r in enumerate(model.config.iterations)
        ]
        for layer, sums in zip(found.scores[metric], alone, strict=True):
            assert [sum(TARGETS) * score for score in layer] == pytest.approx(sums, rel=rel, abs=1e-12)
    other = profile_batch(model, make_batch(padding=50))
    assert flat(other) == pytest.approx(flat(found), rel=rel, abs=1e-15)
    assert [layer.residuals for layer in other.fixed_point] == [
        pytest.approx(layer.residuals, rel=rel) for layer in found.fixed_point
    ]


def test_the_cost_of_both_halves_is_what_is_counted_beforehand():
    batch = make_batch((4, 4), (4, 4))  # of one length, so that evaluations of both halves count alike
    for kind in ("history", "pcformer-rk2"):
        model, counts = PAIR_VARIANTS[kind](), []
        for layer in model.base_model.layers:
            layer.mlp.register_forward_hook(lambda _, inputs, __, to=counts: to.append(len(inputs[0])))
        for metrics in (list(METRICS), ["kl"], ["taylor"], ["cosine"]):
            counts.clear()
            profile_batch(model, batch, metrics, memory=0)
            wanted = num_profile_evaluations(identify_model(model, "m"), metrics)
            assert sum(counts) / 2 == wanted


def test_the_shares_of_the_work_are_the_whole_and_the_model_stays_as_it_was():
    model, batch, shares = PAIR_VARIANTS["history"](), make_batch(), []
    plan = list(model.config.iterations)
    assert profile_batch(model, batch, advance=shares.append) == profile_batch(model, batch)
    assert sum(shares) == pytest.approx(1)
    assert model.config.iterations == plan
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_profile_of_pairs_takes_the_memory_that_it_is_given_and_no_more():
    model = make_seq2seq(
        hidden_size=64, intermediate_size=176, vocab_size=512, num_iterations=3, num_encoder_iterations=3
    )
    batch, peaks = make_batch((32, 20, 32, 32), (24, 24, 7, 24)), []
    for memory in (2 * 10**6, AMPLE):
        peaks.append(peak_bytes(lambda memory=memory: profile_batch(model, batch, memory=memory)))
        assert peaks[-1] <= memory
    assert peaks[0] < peaks[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_input_ids": None}, "the batch: expected input_ids and decoder_input_ids, got input_ids"),
        ({"labels": None}, "the batch: labels: expected token ids, got none"),
        ({"labels": torch.full((3, 5), 97)}, "the batch: labels: expected token ids from 0 to 96, got 97"),
        ({"labels": torch.full((3, 5), -100)}, "the batch: labels: expected at least one that is asked for"),
        (
            {"labels": torch.full((3, 4), 5)},
            "labels: expected shape (3, 5), of decoder_input_ids, got (3, 4)",
        ),
        ({"attention_mask": torch.zeros(3, 7)}, "attention_mask: expected shape (3, 7) and a token in each"),
        ({"input_ids": torch.full((2, 7), 5)}, "decoder_input_ids: expected 2 sequences, got 3"),
    ],
)
def test_batches_that_an_encoder_decoder_cannot_read_are_refused(change, message):
    batch = {name: value for name, value in (make_batch() | change).items() if value is not None}
    with refused(message):
        profile_batch(make_seq2seq(num_iterations=1), batch)


def test_pairs_are_refused_by_a_causal_model():
    with refused("the batch: expected input_ids, got input_ids, decoder_input_ids"):
        profile_batch(make_iiet(num_iterations=1), make_batch())
