"""The bootstrap over batches against direct loops; one batch or equal scores give None."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from iiad.influence.profile import Profile
from iiad.planning.stability import _resample, keep_frequency, measure_stability
from iiad.planning.threshold import normalize_scores, plan_by_threshold, threshold_budget
from tests.helpers import make_profile, refused


def noisy_profile(seed=0, num_iterations=(2, 0, 3), num_batches=12, num_sets=1, noise=0.5):
    """A profile by kl whose batches differ in scores and in size."""
    rng = random.Random(seed)
    base = make_profile(num_iterations=num_iterations, num_sets=num_sets)

    def make_batch(number):
        scores = [[score + noise * rng.gauss(0, 0.1) for score in layer] for layer in base.scores["kl"]]
        tokens = rng.choice([512, 512, 512, 100])
        changes = {"data": number % num_sets, "num_tokens": tokens, "scores": {"kl": scores}}
        return base.batches[0].model_copy(update=changes)

    return Profile.of([make_batch(n) for n in range(num_batches)], base.model, base.data, base.settings)


def with_scores(profile, scores_of):
    """The profile of the same batches with these scores by kl: scores_of(batch)."""
    batches = [b.model_copy(update={"scores": {"kl": scores_of(b)}}) for b in profile.batches]
    return Profile.of(batches, profile.model, profile.data, profile.settings)


def flat(scores):
    return [score for layer in scores for score in layer]


def bootstrap_by_hand(profile, metric, num_samples, seed):
    """Each resample as a list of batches, drawn one by one, and averaged by a loop."""
    rng = random.Random(seed)
    sets = [[b for b in profile.batches if b.data == number] for number in range(len(profile.data))]
    for _ in range(num_samples):
        drawn = [rng.choice(batches) for batches in sets for _ in batches]
        total = sum(batch.num_tokens for batch in drawn)
        yield [
            [
                sum(batch.num_tokens * batch.scores[metric][t][i] for batch in drawn) / total
                for i in range(len(layer))
            ]
            for t, layer in enumerate(profile.scores[metric])
        ]


@pytest.mark.parametrize(("normalize", "num_sets"), [("none", 1), ("layer", 3), ("model", 1)])
def test_keep_frequency_is_what_a_direct_loop_counts(normalize, num_sets):
    profile = noisy_profile(num_sets=num_sets)
    threshold = 0.05 if normalize == "none" else 0.2
    found = keep_frequency(profile, "kl", threshold, normalize, num_samples=4000)
    budgets = [
        threshold_budget(normalize_scores(scores, normalize), threshold)
        for scores in bootstrap_by_hand(profile, "kl", 4000, seed=1)
    ]
    for t, layer in enumerate(found):
        wanted = [np.mean([budget[t] > i for budget in budgets]) for i in range(len(layer))]
        # Both are random; their difference has a standard deviation of at most sqrt(2 / 4 / 4000) = 0.011.
        assert layer == pytest.approx(wanted, abs=0.045)
    assert any(0.02 < share < 0.98 for layer in found for share in layer)  # else nothing was shown


@pytest.mark.parametrize("num_sets", [1, 2])
def test_resamples_scatter_as_the_bootstrap_does_and_draw_within_data_sets(num_sets):
    profile = noisy_profile(num_batches=10, num_sets=num_sets)
    means = _resample(profile, "kl", 4000, seed=0)
    by_hand = np.array([flat(scores) for scores in bootstrap_by_hand(profile, "kl", 4000, seed=1)])
    assert np.allclose(means.mean(0), by_hand.mean(0), atol=4 * by_hand.std(0).max() * math.sqrt(2 / 4000))
    assert np.allclose(means.std(0), by_hand.std(0), rtol=0.06)


def test_data_sets_that_differ_widen_neither_the_bootstrap_nor_the_standard_errors():
    base = make_profile(num_sets=2)
    profile = with_scores(
        base, lambda batch: [[batch.data + s for s in layer] for layer in base.scores["kl"]]
    )
    assert np.ptp(_resample(profile, "kl", 50, seed=0), axis=0).max() < 1e-12
    assert max(flat(profile.standard_errors["kl"])) < 1e-12


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, 0.3), st.sampled_from(["none", "layer", "model"]))
def test_frequencies_are_shares_that_fall_along_a_layer_and_with_the_threshold(seed, threshold, normalize):
    profile = noisy_profile(seed)
    options = {"normalize": normalize, "num_samples": 50, "seed": seed}
    found = keep_frequency(profile, "kl", threshold, **options)
    higher = keep_frequency(profile, "kl", threshold + 0.05, **options)
    assert [len(layer) for layer in found] == profile.model.num_iterations
    for layer, harder in zip(found, higher, strict=True):
        assert all(0 <= share <= 1 for share in layer)
        assert layer == sorted(layer, reverse=True)
        assert all(b <= a for a, b in zip(layer, harder, strict=True))


def test_a_seed_gives_the_same_again():
    profile = noisy_profile()
    first, again, other = (keep_frequency(profile, "kl", 0.05, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert measure_stability(profile, "kl", seed=1) == measure_stability(profile, "kl", seed=1)


def test_where_all_batches_agree_every_resample_keeps_what_the_plan_keeps():
    base = make_profile()
    profile = with_scores(base, lambda batch: base.scores["kl"])
    for threshold in (0.0, 0.1, 0.3 / 16):  # the latter two: scores of the profile
        kept = plan_by_threshold(profile, threshold).num_iterations
        wanted = [[float(i < k) for i in range(r)] for k, r in zip(kept, [2, 0, 3], strict=True)]
        assert keep_frequency(profile, "kl", threshold) == wanted
    assert measure_stability(profile, "kl").low == pytest.approx(1)


@pytest.mark.parametrize("num_sets", [1, 2])
def test_one_batch_of_each_data_set_gives_no_frequency_and_no_stability(num_sets):
    profile = noisy_profile(num_batches=num_sets, num_sets=num_sets)
    stability = measure_stability(profile, "kl")
    assert keep_frequency(profile, "kl", 0.1) is None
    assert (stability.median, stability.low) == (None, None)
    assert all(-1 <= correlation <= 1 for correlation in stability.between_sets.values())


@pytest.mark.parametrize(
    ("scores", "num_iterations"), [([[0.2], [0.1]], (1, 1)), ([[0.1, 0.1], [0.1]], (2, 1))]
)
def test_ranks_of_too_few_or_equal_scores_give_no_stability(scores, num_iterations):
    profile = make_profile({"kl": scores}, num_iterations, num_sets=2)
    stability = measure_stability(profile, "kl")
    assert (stability.median, stability.low, stability.between_sets) == (None, None, {(0, 1): None})
    assert keep_frequency(profile, "kl", 0.05) == [[1.0] * r for r in num_iterations]


def test_stability_is_spearmans_rank_correlation_of_the_resamples_and_falls_with_noise():
    profile = noisy_profile(num_iterations=(3, 3, 3), noise=2)
    own = flat(profile.scores["kl"])
    wanted = [spearmanr(row, own).statistic for row in _resample(profile, "kl", 300, seed=0)]
    stability = measure_stability(profile, "kl", num_samples=300)
    assert stability.median == pytest.approx(np.percentile(wanted, 50))
    assert stability.low == pytest.approx(np.percentile(wanted, 5))
    assert stability.low < stability.median < 1
    calm, wild = (measure_stability(noisy_profile(noise=noise), "kl") for noise in (0.1, 5))
    assert wild.median < calm.median


def test_data_sets_are_compared_pair_by_pair_by_their_token_weighted_means():
    profile = noisy_profile(num_batches=9, num_sets=3, noise=2)
    means = []
    for number in range(3):
        batches = [batch for batch in profile.batches if batch.data == number]
        shares = [batch.num_tokens for batch in batches]
        means.append(np.average([flat(batch.scores["kl"]) for batch in batches], axis=0, weights=shares))
    unmeasured = profile.model_copy(update={"data": [*profile.data, profile.data[0]]})
    pairs = measure_stability(unmeasured, "kl").between_sets
    assert list(pairs) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for (first, second), found in pairs.items():
        wanted = None if second == 3 else pytest.approx(spearmanr(means[first], means[second]).statistic)
        assert found == wanted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threshold": -0.1}, "threshold: expected a number from 0, got -0.1"),
        ({"threshold": math.nan}, "threshold: expected a number from 0, got nan"),
        ({"metric": "loss"}, "metric: expected one that the profile holds, cosine, kl, got 'loss'"),
        ({"normalize": "all"}, "normalize: expected one of none, layer, model, got 'all'"),
        ({"num_samples": 0}, "num_samples: expected at least 1, got 0"),
    ],
)
def test_values_that_cannot_be_resampled_are_refused(arguments, words):
    with refused(words):
        keep_frequency(make_profile(), **{"metric": "kl", "threshold": 0.1, **arguments})
