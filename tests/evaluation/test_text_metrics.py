"""BLEU, chrF and ROUGE: sacrebleu's and rouge-score's own figures, tests against the first model, refusals."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from iiad.errors import InputError
from iiad.evaluation.text_metrics import TEXT_METRICS, score_texts

REFERENCES = [
    f"the {animal} sits on the {place} ." for animal in ("cat", "dog", "cow") for place in ("mat", "roof")
]
EXACT = list(REFERENCES)
NEAR = [text.replace("sits", "sat") for text in REFERENCES]
FAR = ["a bird flew away"] * len(REFERENCES)


@pytest.fixture(scope="module")
def scores():
    return score_texts([2 * texts for texts in (NEAR, EXACT, FAR, NEAR)], 2 * REFERENCES, list(TEXT_METRICS))


def naive_bleu(texts, references):
    """BLEU-4 in float64 of texts whose words stand apart, without smoothing (Papineni et al. 2002)."""
    precisions = []
    for order in range(1, 5):
        hits = total = 0
        for text, reference in zip(texts, references, strict=True):
            grams, wanted = (
                Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
                for words in (text.split(), reference.split())
            )
            hits, total = hits + (grams & wanted).total(), total + grams.total()
        precisions.append(hits / total)
    lengths = [sum(len(text.split()) for text in side) for side in (references, texts)]
    return 100 * min(1, math.exp(1 - lengths[0] / lengths[1])) * math.exp(np.log(precisions).mean())


def test_bleu_is_the_published_formula(scores):
    texts = [text.replace("cat", "cats").replace("the roof", "roof") for text in REFERENCES]
    found = score_texts([texts], REFERENCES, ["bleu"]).by_model[0]["bleu"]
    assert found.value == pytest.approx(naive_bleu(texts, REFERENCES), abs=1e-9)
    assert scores.by_model[0]["bleu"].value == pytest.approx(naive_bleu(NEAR, REFERENCES), abs=1e-9)


def test_rouge_is_the_mean_f1_of_stemmed_overlaps(scores):
    # 6 words each, the full stop aside; "sits" and "sat" have other stems, so that 2 of 5 bigrams are missing.
    near = scores.by_model[0]
    assert near["rouge1"].value == pytest.approx(100 * 5 / 6)
    assert near["rouge2"].value == pytest.approx(100 * 3 / 5)
    assert near["rougeL"].value == pytest.approx(100 * 5 / 6)
    plural = [text.replace("sits", "sit") for text in REFERENCES]
    assert score_texts([plural], REFERENCES, ["rouge"]).by_model[0]["rouge1"].value == pytest.approx(100)


def test_own_text_scores_100_and_text_without_common_words_0(scores):
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
        exact, far = (scores.by_model[number][name] for number in (1, 2))
        assert (exact.value, exact.low, exact.high) == pytest.approx((100, 100, 100))
        assert far.value < 20
        assert far.low <= far.high


def test_p_values_are_small_for_other_texts_and_1_for_the_same(scores):
    assert all(score.p_value is None for score in scores.by_model[0].values())
    for number in (1, 2):
        assert all(score.p_value < 0.01 for score in scores.by_model[number].values())
    assert all(score.p_value == 1 for score in scores.by_model[3].values())


def test_differences_by_chance_are_not_significant():
    half = len(REFERENCES) // 2
    one, other = NEAR[:half] + EXACT[half:], EXACT[:half] + NEAR[half:]
    found = score_texts([one, other], REFERENCES, list(TEXT_METRICS)).by_model[1]
    assert all(score.p_value > 0.1 for score in found.values())


def test_intervals_narrow_with_more_texts():
    mixed = NEAR[:3] + EXACT[3:]
    few, many = (
        score_texts([mixed * times], REFERENCES * times, list(TEXT_METRICS)).by_model[0] for times in (1, 9)
    )
    for name, score in few.items():
        assert score.low < score.value < score.high
        assert (many[name].high - many[name].low) < (score.high - score.low) / 2


def test_scores_come_with_signatures_and_again_the_same(scores):
    assert scores.signatures["bleu"].startswith(
        "nrefs:1|bs:1000|ar:2000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|"
    )
    assert "nc:6|nw:0" in scores.signatures["chrf"]
    assert "stemmer:porter|bs:1000|ar:2000|seed:12345|version:0.1" in scores.signatures["rougeL"]
    again = [2 * texts for texts in (NEAR, EXACT, FAR, NEAR)]
    assert score_texts(again, 2 * REFERENCES, list(TEXT_METRICS)) == scores


def test_empty_texts_score_0():
    found = score_texts([[""] * len(REFERENCES)], REFERENCES, list(TEXT_METRICS)).by_model[0]
    assert all((score.value, score.low, score.high) == (0, 0, 0) for score in found.values())


@pytest.mark.parametrize(
    ("metrics", "texts", "message"),
    [
        (["meteor"], EXACT, "metrics: expected bleu, chrf, rouge, got meteor"),
        (["bleu"], EXACT[:1], "metrics: expected at least 2 texts for an interval, got 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(metrics, texts, message):
    with pytest.raises(InputError, match=message):
        score_texts([texts], texts, metrics)


@pytest.mark.parametrize(("metric", "package"), [("chrf", "sacrebleu"), ("rouge", "rouge-score")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, metric, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(
        InputError, match=rf"metrics: expected {package} for {metric} \(pip install 'iiad\[eval\]'\)"
    ):
        score_texts([EXACT], EXACT, [metric])


@pytest.mark.slow
def test_one_chance_difference_in_twenty_is_called_significant_at_5_percent():
    """Of sacrebleu's paired bootstrap it is more than 2: why the test is another. 3 minutes on one core."""
    rng, comparisons = np.random.default_rng(0), 300
    references = [" ".join(rng.choice(list("abcdefghijklmnop"), 12)) for _ in range(100)]

    def noisy():
        return [" ".join(word for word in text.split() if rng.random() > 0.3) for text in references]

    found = {"bleu": 0, "rouge1": 0, "bootstrap": 0}
    for _ in range(comparisons):
        systems = [noisy(), noisy()]
        made = score_texts(systems, references, ["bleu", "rouge"]).by_model[1]
        for name in ("bleu", "rouge1"):
            found[name] += made[name].p_value < 0.05
        named = [(str(number), texts) for number, texts in enumerate(systems)]
        _, scores = PairedTest(named, {"bleu": BLEU(force=True)}, [references], test_type="bs")()
        found["bootstrap"] += scores["BLEU"][1].p_value < 0.05
    shares = {name: count / comparisons for name, count in found.items()}
    print(shares)  # with -s
    assert 0.02 < shares["bleu"] < 0.09
    assert 0.02 < shares["rouge1"] < 0.09
    assert shares["bootstrap"] > 0.09
