"""Agreement of metrics against naive definitions of ranks, pairs and tops."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.errors import InputError
from iiad.influence.agreement import Agreement, agreements, rank_agreement, rank_correlation
from tests.helpers import make_profile


def naive_spearman(first, second):
    """Pearson's correlation of average ranks; for distinct numbers 1 - 6 sum d^2 / (n (n^2 - 1))."""
    ranks = [[sum(b < a for b in x) + (1 + sum(b == a for b in x)) / 2 for a in x] for x in (first, second)]
    n, middle = len(first), (len(first) + 1) / 2
    if len(set(first)) == len(set(second)) == n:
        return 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / (n * (n**2 - 1))
    products = sum((a - middle) * (b - middle) for a, b in zip(*ranks, strict=True))
    squares = [sum((a - middle) ** 2 for a in x) for x in ranks]
    return products / (squares[0] * squares[1]) ** 0.5


def naive_kendall(first, second):
    """tau-b: pairs in the same order less pairs in opposite order, over the geometric mean of pairs not tied."""

    def sign(x, i, j):
        return (x[i] > x[j]) - (x[i] < x[j])

    pairs = list(combinations(range(len(first)), 2))
    score = sum(sign(first, i, j) * sign(second, i, j) for i, j in pairs)
    untied = [sum(sign(x, i, j) != 0 for i, j in pairs) for x in (first, second)]
    return score / (untied[0] * untied[1]) ** 0.5


def naive_overlap(first, second):
    half = -(-len(first) // 2)
    tops = []
    for scores in (first, second):
        left, top = dict(enumerate(scores)), set()
        for _ in range(half):
            best = next(i for i, score in left.items() if score == max(left.values()))
            top.add(best)
            del left[best]
        tops.append(top)
    return len(tops[0] & tops[1]) / half


numbers = st.lists(
    st.sampled_from([0.5, 0.3, 0.2, 0.1, 0.0, -0.1]) | st.floats(-1, 1), min_size=6, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(numbers, numbers)
def test_agreements_are_the_naive_ones(kl, cosine):
    scores = {"kl": [kl[:2], kl[2:5], kl[5:]], "cosine": [cosine[:2], cosine[2:5], cosine[5:]]}
    found = agreements(make_profile(scores, (2, 3, 1), errors=False))
    if len(set(kl)) == 1 or len(set(cosine)) == 1:
        assert found == [Agreement("cosine", "kl", None, None, None)]
        return
    assert [(a.metric, a.reference) for a in found] == [("cosine", "kl")]
    assert found[0].spearman == pytest.approx(naive_spearman(cosine, kl))
    assert found[0].kendall == pytest.approx(naive_kendall(cosine, kl))
    assert found[0].overlap == naive_overlap(cosine, kl)


def test_every_other_metric_is_compared_with_the_reference():
    scores = {
        "kl": [[0.4, 0.3], [], [0.2, 0.1, 0.05]],
        "loss": [[4.0, 3.0], [], [2.0, 1.0, 0.5]],
        "taylor": [[-0.4, -0.3], [], [-0.2, -0.1, -0.05]],
    }
    profile = make_profile(scores, (2, 0, 3))
    same, opposite = agreements(profile)
    assert (same.metric, same.spearman, same.kendall, same.overlap) == pytest.approx(("loss", 1, 1, 1))
    # Three of five each, the middle one in both.
    assert (opposite.spearman, opposite.kendall, opposite.overlap) == pytest.approx((-1, -1, 1 / 3))
    assert [a.metric for a in agreements(profile, "loss")] == ["kl", "taylor"]
    assert rank_agreement(profile, "taylor") == opposite.spearman


def test_ranks_of_fewer_than_three_iterations_mean_nothing():
    profile = make_profile({"kl": [[0.2], [0.1]], "cosine": [[0.3], [0.1]]}, (1, 1))
    assert agreements(profile) == [Agreement("cosine", "kl", None, None, None)]
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_a_reference_that_was_not_measured_is_refused():
    with pytest.raises(InputError, match="metric 'kl': this profile does not hold it"):
        agreements(make_profile({"cosine": [[0.1, 0.2], [], [0.3, 0.2, 0.1]]}))
