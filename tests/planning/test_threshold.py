"""The threshold rule: what it keeps, what shares and bounds change, what it refuses."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.planning import Bounds, normalize_scores, pareto_front, plan_by_threshold, threshold_curve
from tests.helpers import make_profile, profile_of, refused

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 0.25, 0.5, -0.5, 5e-324, 1e-300]))
SCORES = st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=5).filter(any)
NORMALIZE = st.sampled_from(["none", "layer", "model"])


def budget(scores, threshold, normalize="none"):
    return plan_by_threshold(profile_of(scores), threshold, normalize=normalize).num_iterations


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [
        (0, [3, 2, 0, 3]),
        (0.01, [3, 2, 0, 3]),  # reaching it is enough
        (0.011, [2, 2, 0, 3]),
        (0.1, [2, 1, 0, 3]),  # layer 4: the first two stay below the third
        (0.5, [1, 0, 0, 3]),
        (0.9, [0, 0, 0, 3]),
        (0.91, [0, 0, 0, 0]),
    ],
)
def test_the_last_iteration_that_reaches_the_threshold_and_all_before_it_stay(threshold, wanted):
    scores = [[0.5, 0.2, 0.01], [0.4, 0.05], [], [0.02, -0.1, 0.9]]
    assert budget(scores, threshold) == wanted


def test_threshold_zero_keeps_even_iterations_that_harm():
    assert budget([[0.5, -0.1], [-0.2]], 0.0) == [2, 1]
    assert budget([[0.5, -0.1], [-0.2]], 5e-324) == [1, 0]
    assert plan_by_threshold(profile_of([[0.1]]), -0.0).model_dump_json().count("-0.0") == 0


@settings(max_examples=50)
@given(SCORES, st.floats(0, 2e6), st.floats(0, 2e6), NORMALIZE)
def test_a_higher_threshold_never_adds_an_iteration(scores, one, other, normalize):
    low, high = sorted([one, other])
    fewer, more = (budget(scores, threshold, normalize) for threshold in (high, low))
    assert all(a >= b for a, b in zip(more, fewer, strict=True))
    assert budget(scores, 0, normalize) == [len(layer) for layer in scores]


@settings(max_examples=50)
@given(SCORES, NORMALIZE)
def test_normalized_scores_are_shares_of_the_largest_in_the_same_order(scores, normalize):
    shares = normalize_scores(scores, normalize)
    for layer, own in zip(shares, scores, strict=True):
        for i, j in pairwise(range(len(own))):
            assert (layer[i] - layer[j]) * (1 if own[i] >= own[j] else -1) >= 0
        assert all(
            (share >= 0) == (score >= 0) or share == 0 for share, score in zip(layer, own, strict=True)
        )
    groups = {
        "none": [],
        "layer": list(zip(shares, scores, strict=True)),
        "model": [tuple([x for layer in layers for x in layer] for layers in (shares, scores))],
    }
    for group, own in groups[normalize]:
        if any(own):
            assert max(map(abs, group)) == 1
        else:
            assert not any(group)


def test_a_normalized_threshold_is_a_share():
    scores = [[8.0, 2.0, 0.1], [0.08, 0.02, 0.04], [0.0, 0.0, 0.0]]
    assert budget(scores, 0.25, "layer") == [2, 3, 0]
    assert budget(scores, 0.25, "model") == [2, 0, 0]
    assert budget(scores, 0.25, "none") == [2, 0, 0]
    assert budget(scores, 1.0, "layer") == [1, 1, 0]
    assert budget(scores, 0.005, "model") == [3, 3, 0]
    with refused("normalize: expected one of none, layer, model, got 'all'"):
        budget(scores, 0.25, "all")


@settings(max_examples=50)
@given(SCORES, st.floats(0, 2e6), st.data())
def test_bounds_clip_what_the_rule_gives(scores, threshold, data):
    most = max(map(len, scores))
    least = data.draw(st.integers(0, most))
    highest = data.draw(st.integers(least, most))
    pinned = data.draw(st.integers(1, len(scores)))
    pins = {pinned: data.draw(st.integers(0, len(scores[pinned - 1])))}
    plan = plan_by_threshold(profile_of(scores), threshold, bounds=Bounds(least, highest, pins))
    free = budget(scores, threshold)
    wanted = [min(max(r, min(least, len(layer))), highest) for r, layer in zip(free, scores, strict=True)]
    assert plan.num_iterations == [pins.get(t, r) for t, r in enumerate(wanted, 1)]


def test_a_threshold_plan_says_how_it_came_about():
    profile = make_profile()
    plan = plan_by_threshold(profile, 0.1, "cosine", "layer", Bounds(max_iterations=2, pins={1: 1}))
    assert (plan.normalize, plan.metric, plan.bounds) == ("layer", "cosine", Bounds(None, 2, {1: 1}))
    assert plan.explanation == (
        "each layer keeps its iterations up to the last one whose influence by cosine reaches 0.1 of the largest of "
        "its layer, clipped to at most 2 iterations a layer, layer 1 at 1"
    )
    dropped = profile.scores["cosine"][0][1:] + profile.scores["cosine"][2][2:]
    assert plan.predicted_loss == pytest.approx(sum(dropped))
    # The batches lie 10 % to both sides: standard deviation / sqrt(8), with 7 degrees of freedom.
    assert plan.predicted_loss_error == pytest.approx(plan.predicted_loss * 0.1 / 7**0.5)
    assert plan_by_threshold(make_profile(errors=False), 0.1).predicted_loss_error is None
    assert plan_by_threshold(profile, 0).explanation == "threshold 0 keeps every iteration"


@pytest.mark.parametrize("threshold", [-1e-9, -1, float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_is_no_number_from_zero_is_refused(threshold):
    with refused("threshold: expected a number from 0, got"):
        plan_by_threshold(profile_of([[0.1]]), threshold)


@pytest.mark.parametrize(
    "plan", [lambda *by: plan_by_threshold(by[0], 0.1, by[1]), threshold_curve, pareto_front]
)
def test_a_metric_that_the_profile_lacks_is_refused_with_those_it_has(plan):
    with refused("metric: expected one that the profile holds, kl, got 'cosine'"):
        plan(profile_of([[0.1]]), "cosine")
