"""Influence on labelled rows: the positions that are asked for, and no others, by the whole model run again."""

import math

import pytest
import torch

from iiad.influence import profile_batch
from iiad.influence.metrics import asked_positions
from tests.helpers import make_iiet, make_pcformer, refused
from tests.influence.naive import TruncatedRuns, log_probabilities, naive_cosine, naive_kl, naive_relative_l2

MODELS = {
    "history": lambda: make_iiet(num_iterations=[2, 0, 3]),
    "pcformer-rk2": lambda: make_pcformer(),
}
LENGTHS = (9, 4, 6)


@pytest.fixture
def batch():
    """Rows of three lengths, padded, that ask for every second token and for the last."""
    generator = torch.Generator().manual_seed(5)
    input_ids = torch.randint(3, 97, (3, max(LENGTHS)), generator=generator)
    labels = torch.full_like(input_ids, -100)
    for row, length in enumerate(LENGTHS):
        labels[row, 2:length:2] = torch.randint(3, 97, (len(range(2, length, 2)),), generator=generator)
        labels[row, length - 1] = 7
        input_ids[row, length:] = 0
    return input_ids, labels


def naive_nll_of(rows, wanted):
    terms = [-log_probabilities(row)[token] for row, token in zip(rows, wanted, strict=True)]
    return math.fsum(terms) / len(terms)


def naive(model, input_ids, labels):
    """Scores of each row run alone and unpadded, at the positions before what it asks for."""
    parts = []
    for row, length in enumerate(LENGTHS):
        places = [place - 1 for place in range(1, length) if labels[row, place] >= 0]
        wanted = [int(labels[row, place + 1]) for place in places]
        runs = TruncatedRuns(model, input_ids[row : row + 1, :length])
        of_row = {name: [] for name in ("kl", "loss", "cosine", "relative_l2")}
        for t, stops in enumerate(runs.stops()):
            logits = [run[0][:, places] for run in stops]
            outputs = [run[1][t][:, places] for run in stops]
            kl = [naive_kl(logits[-1], stopped) for stopped in logits]
            nll = [
                math.fsum(
                    -log_probabilities(one)[token]
                    for one, token in zip(stopped[0].tolist(), wanted, strict=True)
                )
                / len(wanted)
                for stopped in logits
            ]
            steps = range(1, len(stops))
            of_row["kl"].append([kl[i - 1] - kl[i] for i in steps])
            of_row["loss"].append([nll[i - 1] - nll[i] for i in steps])
            of_row["cosine"].append([naive_cosine(outputs[i - 1], outputs[i]) for i in steps])
            of_row["relative_l2"].append([naive_relative_l2(outputs[i - 1], outputs[i]) for i in steps])
        parts.append((len(places), of_row))
    total = sum(weight for weight, _ in parts)
    return total, {
        name: [
            [sum(weight * of[name][t][i] for weight, of in parts) / total for i in range(r)]
            for t, r in enumerate(model.config.iterations)
        ]
        for name in ("kl", "loss", "cosine", "relative_l2")
    }


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_each_row_alone_where_it_asks(kind, batch):
    model = MODELS[kind]().double()
    with torch.no_grad():
        total, wanted = naive(model, *batch)
    input_ids, labels = batch
    found = profile_batch(model, {"input_ids": input_ids, "labels": labels})
    assert found.num_tokens == total == int((labels[:, 1:] >= 0).sum())
    for metric, layers in wanted.items():
        for layer, scores in zip(found.scores[metric], layers, strict=True):
            assert layer == pytest.approx(scores, rel=1e-8, abs=1e-12), metric


@pytest.mark.usefixtures("norms_in_float64")
def test_no_score_depends_on_what_stands_in_the_padding(batch):
    model, (input_ids, labels) = make_iiet().double(), batch
    found = profile_batch(model, {"input_ids": input_ids, "labels": labels})
    for row, length in enumerate(LENGTHS):
        input_ids[row, length:] = 50
    other = profile_batch(model, {"input_ids": input_ids, "labels": labels})
    assert other.model_dump() == found.model_dump()


def test_asked_is_what_has_a_next_label_and_of_text_everything(batch):
    _, labels = batch
    assert asked_positions({"labels": labels})[:, :-1].tolist() == (labels[:, 1:] >= 0).tolist()
    assert not asked_positions({"labels": labels})[:, -1].any()
    assert asked_positions({"labels": torch.tensor([[3, 4]])}).all()


def test_labels_outside_the_vocabulary_are_refused(batch):
    input_ids, labels = batch
    labels[0, 3] = 97
    with refused("the batch: labels: expected token ids from 0 to 96, got 97"):
        profile_batch(make_iiet(), {"input_ids": input_ids, "labels": labels})
