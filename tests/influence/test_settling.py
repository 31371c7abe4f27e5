"""Shares of tokens that would have stopped by themselves, against a loop and against the model that does."""

import pytest
import torch

from iiad.influence import profile_batch
from iiad.influence.convergence import TOLERANCES
from iiad.influence.metrics import settling
from iiad.models import count_evaluations
from tests.helpers import make_iiet, make_pcformer


@pytest.mark.parametrize("make", [make_iiet, make_pcformer])
@torch.no_grad()
def test_the_first_layer_stops_as_the_profile_expects_at_every_tolerance(make, tokens):
    model = make(num_iterations=3, cache_policy="shared")
    record = profile_batch(model, tokens, ["cosine"])
    start, first = model.config.num_start_evaluations, record.settling[0]
    for tolerance in TOLERANCES[16:]:
        model.reconfigure(tolerance=tolerance)
        with count_evaluations(model) as counts:
            model(tokens)
        expected = start + 1 + sum(1 - first.stopped(i, tolerance) for i in (1, 2))
        assert counts.by_layer[0] == pytest.approx(expected, abs=1e-6)


def test_shares_are_of_the_least_change_so_far():
    iterates = [
        torch.tensor([[length, 0.0] for length in row]) for row in [(1, 1), (1.5, 1.01), (1.8, 2), (9, 9)]
    ]
    found = settling(iterates)
    assert len(found.shares) == 2 * len(TOLERANCES)
    at = [(1, 0.007), (1, 0.02), (1, 0.4), (1, 0.51), (2, 0.007), (2, 0.02), (2, 0.17), (2, 0.3)]
    near = [(i, min(each for each in TOLERANCES if each >= tolerance)) for i, tolerance in at]
    assert [found.stopped(i, tolerance) for i, tolerance in near] == [0, 0.5, 0.5, 1, 0, 0.5, 0.5, 1]
    assert found.quantile(1, 0.5) == pytest.approx(min(each for each in TOLERANCES if each >= 0.01))
    assert settling([torch.zeros(2, 3)] * 3).shares == [1.0] * len(
        TOLERANCES
    )  # what is 0 and stays so has stopped


def test_a_profile_of_an_exact_cache_has_none(tokens):
    assert profile_batch(make_iiet(num_iterations=2), tokens, ["cosine"]).settling == []
    one = profile_batch(make_iiet(num_iterations=1, cache_policy="shared"), tokens, ["cosine"])
    assert [layer.shares for layer in one.settling] == [[]] * 3
