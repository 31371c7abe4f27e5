"""Least squares of stopped layers, against numpy, and scores of extrapolated stops, against whole models."""

import json

import numpy as np
import pytest
import torch

from iiad.checkpoints import identify_model
from iiad.evaluation.plan_trials import measure_truncations
from iiad.influence import METRICS, Profile, ProfileSettings, profile_batch
from iiad.influence.convergence import StepProducts
from iiad.influence.passes import FullPass
from tests.helpers import make_iiet, make_pcformer, make_profile, make_seq2seq, refused
from tests.influence.test_pairs import make_batch
from tests.influence.test_profiler import DATA, SETTINGS

KINDS = {
    "history": lambda: make_iiet(num_iterations=[3, 0, 2]),
    "plain": lambda: make_iiet(num_iterations=[3, 1, 2], history=False, relaxation=True),
    "pcformer": lambda: make_pcformer(num_iterations=[2, 1, 3]),
    "pairs": lambda: make_seq2seq(num_encoder_iterations=[0, 3, 1], num_iterations=[2, 3]),
}


def given(kind, tokens):
    """A batch with padding, of text with labels that are not asked for."""
    if kind == "pairs":
        return make_batch()
    labels = tokens.clone()
    labels[:, :6] = -100
    return {"input_ids": tokens, "labels": labels}


def asked(kind, model, batch, layer):
    """The positions that a layer's sums are of."""
    if kind != "pairs":
        return torch.cat([batch["labels"][:, 1:], batch["labels"][:, :1]], 1) >= 0
    encoder = layer < model.config.num_encoder_layers
    return batch["attention_mask"].bool() if encoder else batch["labels"] >= 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_coefficients_and_what_they_remove_are_numpys_least_squares(kind, tokens):
    model, batch = KINDS[kind]().double(), given(kind, tokens[:, :9])
    record = profile_batch(model, batch, ["cosine"])
    for layer, solved in FullPass(model, batch).run():
        mask = asked(kind, model, batch, layer)
        if kind != "pairs":
            mask[:, -1] = False
        z = [state[mask].numpy().ravel() for state in (solved.input, *solved.iterates)]  # from z(-1)
        found, r = record.extrapolation[layer], model.config.iterations[layer]
        assert len(found.coefficients) == max(r - 1, 0)
        for i in range(1, r):
            steps = np.stack([z[k + 1] - z[k] for k in range(i, i - 3, -1) if k >= 0], 1)
            gap = z[-1] - z[i + 1]
            b, (error,), *_ = np.linalg.lstsq(steps, gap, rcond=None)
            assert found.coefficients[i - 1] == pytest.approx(b.tolist(), rel=1e-6)
            assert found.removed[i - 1] == pytest.approx(1 - error / (gap @ gap), rel=1e-6)


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_of_extrapolated_stops_are_those_of_the_whole_model_extrapolated_there(kind, tokens):
    model, batch = KINDS[kind]().double(), given(kind, tokens[:, :9])
    own = model.config.iterations
    plain, found = (profile_batch(model, batch, extrapolate=on, memory=10**9) for on in (False, True))
    one_by_one = profile_batch(model, batch, extrapolate=True, memory=0)
    stops = [(layer, i) for layer, r in enumerate(own) for i in range(r)]
    plans = [[i if t == layer else r for t, r in enumerate(own)] for layer, i in stops]
    coefficients = [
        [found.extrapolation[t].coefficients[i - 1] if t == layer and i else [] for t in range(len(own))]
        for layer, i in stops
    ]
    _, wanted = measure_truncations(model, [batch], plans, extrapolations=coefficients)
    for (layer, i), harm in zip(stops, wanted, strict=True):
        for metric in ("kl", "loss"):
            scores = found.scores[metric][layer]
            assert sum(scores[i:]) == pytest.approx(harm[metric], rel=1e-8, abs=1e-11)
            assert one_by_one.scores[metric][layer] == pytest.approx(scores, rel=1e-8, abs=1e-11)
    layer = max(range(len(own)), key=own.__getitem__)
    for metric in METRICS:
        assert found.scores[metric][layer][1] != plain.scores[metric][layer][1]
    assert found.fixed_point == plain.fixed_point
    assert found.extrapolation == plain.extrapolation


def test_extrapolated_scores_cost_no_more_evaluations(tokens):
    model, counts = make_iiet(num_iterations=[3, 0, 2]), []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: counts.append(1))
    totals = []
    for on in (False, True):
        profile_batch(model, tokens, extrapolate=on)
        totals.append(len(counts))
    assert totals[1] == 2 * totals[0]


def test_coefficients_of_several_batches_are_those_of_all_their_tokens(tokens):
    model = make_iiet(num_iterations=[3, 0, 2]).double()
    batches = [tokens[:, :9], tokens[:, 3:17]]
    records = [profile_batch(model, batch, ["cosine"]) for batch in batches]
    profile = Profile.of(records, identify_model(model, "model"), [DATA], SETTINGS)
    parts = [
        next([solved.input, *solved.iterates] for _, solved in FullPass(model, {"input_ids": batch}).run())
        for batch in batches
    ]
    last, first, gap = (
        torch.cat([(z[b] - z[a]).detach().flatten() for z in parts]).numpy()
        for a, b in ((1, 2), (0, 1), (2, 4))
    )
    b, *_ = np.linalg.lstsq(np.stack([last, first], 1), gap, rcond=None)
    assert profile.coefficients([1, 0, 2]) == [pytest.approx(b.tolist(), rel=1e-6), [], []]


def test_steps_of_one_direction_share_their_coefficient_instead_of_cancelling():
    products = [np.array([1.0, 0.5, 0.25])[[j, k]].prod() for j in range(3) for k in range(j + 1)]
    found = StepProducts(products=products)  # each half as long as the one before
    assert found.removed == [pytest.approx(1)]
    assert found.coefficients == [pytest.approx([0.25 / 0.5 / 2, 0.25 / 2])]


def test_numbers_of_any_size_give_finite_coefficients():
    found = StepProducts(products=[1e100, -1e100, 1e-100, 1e100, 0, 1e100])
    assert np.isfinite([*found.coefficients[0], *found.removed]).all()


def test_a_layer_that_does_not_move_has_no_coefficient():
    model = make_iiet(num_iterations=3, history=False, relaxation=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.corrector.relaxation.zero_()
    record = profile_batch(model, torch.arange(3, 12)[None], extrapolate=True)
    assert [layer.coefficients for layer in record.extrapolation] == [[[], []]] * 3
    assert [layer.removed for layer in record.extrapolation] == [[0, 0]] * 3
    assert record.scores["kl"] == [pytest.approx([0, 0, 0], abs=1e-12)] * 3


def test_older_profiles_keep_their_hash_and_have_no_coefficients():
    profile = make_profile()
    written = json.loads(profile.model_dump_json())
    assert "extrapolation" not in written
    assert "extrapolation" not in written["batches"][0]
    assert "extrapolate" not in written["settings"]
    with refused("profile: expected one that holds `extrapolation`, got an older one; measure again"):
        profile.coefficients([1, 0, 1])


def test_a_profile_of_a_model_that_is_extrapolated_keeps_its_coefficients_of_layers_in_full(tokens):
    model = make_iiet(num_iterations=[2, 0, 2], max_num_iterations=3, extrapolation=[[[], [0.4]], [], []])
    record = profile_batch(model, tokens, ["cosine"])
    identity = identify_model(model, "model")
    assert identity.extrapolation == [[0.4], [], []]
    profile = Profile.of([record], identity, [DATA], ProfileSettings(**SETTINGS.model_dump()))
    assert profile.coefficients([2, 0, 1]) == [[0.4], [], record.extrapolation[2].coefficients[0]]
