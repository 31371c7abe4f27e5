"""Means and intervals over seeds, against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from iiad.reporting.study_tables import study_table
from iiad.studies import Estimate, estimate, paired_difference
from iiad.studies.results import answer, estimate_texts
from iiad.studies.study_artefact import ArmResult, SeedFigures, StudyResult
from tests.helpers import printed


@pytest.mark.parametrize("n", [2, 3, 5, 11])
def test_intervals_are_those_of_students_t(n):
    values = np.random.default_rng(n).normal(0.7, 0.1, n).tolist()
    found = estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(math.fsum(values) / n)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))


def test_one_seed_has_no_interval_and_none_no_estimate():
    found = estimate([0.5])
    assert (found.mean, found.deviation, found.low, found.high, found.sign) == (0.5, None, None, None, 0)
    with pytest.raises(ValueError, match="expected at least one"):
        estimate([])


def test_differences_are_paired_by_seed_as_scipys_paired_test():
    values, reference = {0: 0.7, 1: 0.72, 2: 0.9, 5: 0.1}, {0: 0.6, 1: 0.63, 2: 0.83, 7: 0.4}
    found = paired_difference(values, reference)
    test = stats.ttest_rel([0.7, 0.72, 0.9], [0.6, 0.63, 0.83]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    assert found.num_seeds == 3
    assert found.sign == 1
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def arm(name, mean, half):
    difference = None
    if mean is not None:
        ends = (None, None, None) if half is None else (0.01, mean - half, mean + half)
        seeds = 1 if half is None else 3
        difference = Estimate(mean=mean, deviation=ends[0], low=ends[1], high=ends[2], num_seeds=seeds)
    same = Estimate(mean=0.5, deviation=None, low=None, high=None, num_seeds=1)
    return ArmResult(
        name=name,
        learning_rate=0.001,
        tried={},
        parameters=1,
        evaluations_per_token=2,
        tokens=1,
        training_flops=1.0,
        runs=[],
        nll=same,
        accuracy=same,
        nll_difference=difference,
        accuracy_difference=difference,
    )


def test_the_answer_claims_what_the_intervals_allow_and_no_more():
    arms = [arm("r0", None, None), arm("r3", 0.12, 0.04), arm("r1", 0.01, 0.03), arm("plain", -0.05, 0.02)]
    assert answer("r0", arms) == (
        "R3 (+12.0, +8.0 to +16.0) is more accurate than r0; plain (-5.0, -7.0 to -3.0) is less accurate than r0; "
        "no evidence that r1 (+1.0, -2.0 to +4.0) differs from r0: points of accuracy with 95 % intervals, 3 seeds."
    )
    assert answer("r0", [arms[0], arm("r3", 0.12, None)]).startswith("One seed, so no interval and no claim")
    assert answer("r0", arms[:1]) == "Nothing to compare r0 with."


def test_scores_of_texts_are_estimated_over_seeds_and_their_differences_paired():
    own, other = (
        [
            SeedFigures(seed=seed, nll=1, accuracy=0.5, seconds=None, texts={"bleu": value})
            for seed, value in values
        ]
        for values in ([(0, 20.0), (1, 24.0)], [(0, 18.0), (1, 21.0), (2, 90.0)])
    )
    means, differences = estimate_texts(own, other)
    assert (means["bleu"].mean, differences["bleu"].mean, differences["bleu"].num_seeds) == (22.0, 2.5, 2)
    assert differences["bleu"].deviation == pytest.approx(0.5**0.5)
    assert estimate_texts(own, [])[1] == {}
    arms = [
        arm("r0", None, None).model_copy(update={"texts": {"bleu": means["bleu"]}}),
        arm("r3", 0.1, 0.1).model_copy(update={"texts": means, "text_differences": differences}),
    ]
    study = StudyResult(
        definition={},
        iiad_version="0",
        reference="r0",
        arms=arms,
        students=[],
        failed={},
        answer="",
        num_runs=2,
    )
    shown = printed(study_table(study, 120), 120)
    assert "22.00 ± 25.41" in shown  # t(0.975, 1) = 12.706, times 2.828 / sqrt(2)
    assert "2.50 ± 6.35" in shown
