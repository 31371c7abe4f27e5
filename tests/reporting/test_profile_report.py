"""A profile as tables."""

import pytest

from iiad.planning.trust import assess_trust
from iiad.reporting.profile_tables import InfluenceReport
from tests.helpers import make_profile, printed


def report(profile, threshold=None, seed=0, details=True, **options):
    return printed(InfluenceReport(profile, assess_trust(profile, threshold, seed), details), **options)


def test_the_report_shows_scores_errors_meaning_and_how_far_to_trust_them():
    text = report(make_profile())
    words = " ".join(text.split())
    for shown in (
        "influence by kl",
        "influence by cosine",
        "iteration 3",
        "0.3000 ±0.0300",
        "KL(full || stopped)",
        "teacher: 3.0000 nats a token on 4,096 tokens in 8 batches, standard errors over the batches",
        "agreement with kl",
        "fixed points: does the iteration settle?",
        "converges",
        "kept at threshold",
        "100 %",
    ):
        assert shown in words
    assert "\x1b" not in text


def test_the_report_shows_the_threshold_asked_for_and_the_same_again():
    profile = make_profile({"kl": [[1.0, 0.5]]}, (2,))
    one = report(profile, threshold=0.5, seed=3)
    assert "kept at threshold 0.5 on kl" in one
    assert one == report(profile, threshold=0.5, seed=3)
    [row] = [line for line in one.split("kept at")[1].splitlines() if line.startswith("1 ")]
    first, _, second, _ = row.split()[1:]
    assert first == "100"
    assert 10 < int(second) < 90  # the threshold is the score itself


def test_the_report_compares_data_sets_by_name_and_shows_the_stages_of_a_predictor():
    profile = make_profile(num_sets=2)
    model = profile.model.model_copy(update={"num_start_evaluations": 2})
    text = report(profile.model_copy(update={"model": model, "stages": {"kl": [[0.7], [0.8], [0.9]]}}))
    words = " ".join(text.split())
    for shown in ("1 with 2", "between data sets (1: set0, 2: set1)", "predictor's stages by kl", "stage 2"):
        assert shown in words


def test_the_table_is_coloured_where_there_is_colour():
    text = report(make_profile({"kl": [[1.0, -0.5]]}, (2,)), force_terminal=True)
    assert "\x1b[1;31m" in text  # the largest
    assert "\x1b[35m" in text  # negative


def test_the_report_survives_one_batch_zero_tiny_and_negative_scores_and_an_ascii_terminal():
    text = report(make_profile({"kl": [[0.0, 0.0]]}, (2,), errors=False), encoding="ascii")
    assert "in 1 batch" in text
    assert "stability: expected several batches, got one" in text
    text = report(make_profile({"kl": [[-3e-9, 1e-10]]}, (2,)), encoding="ascii")
    assert "-3.0e-09 +-3.0e-10" in text


def test_rows_that_say_that_all_is_decided_or_alike_need_details():
    scores = {"kl": [[1.0, 0.5, 0.1]], "loss": [[1.0, 0.5, 0.1]], "cosine": [[0.1, 0.2, 0.3]]}
    profile = make_profile(scores, (3,))
    tables = [report(profile, threshold=0.3, details=details) for details in (False, True)]
    short, long = (" ".join(table.split()) for table in tables)
    for words in (
        "influence by cosine",
        "loss +1.00 +1.00 1.00",
        "100 %",
        "other samples of the text",
        "fixed points",
    ):
        assert words in long
        assert words not in short.replace("fixed points, and rows that say 100 % or", "")
    for words in ("influence by kl", "cosine -1.00 -1.00", "cosine ranks the iterations in reverse (-1.00)"):
        assert words in short
    assert "--details" in short
    assert len(tables[0].splitlines()) < 0.6 * len(tables[1].splitlines())
    undecided = report(make_profile({"kl": [[1.0, 0.5]]}, (2,)), threshold=0.5, details=False)
    assert "kept at threshold 0.5 on kl" in undecided


@pytest.mark.parametrize(
    ("profile", "verdict"),
    [
        (make_profile(), "threshold 0.17 drops 4 of 5 iterations, predicted to cost 0.219 nats per token."),
        (
            make_profile({"cosine": [[0.4, 0.1]]}, (2,)),
            "threshold 0.2 drops 1 of 2 iterations, predicted to cost 0.1 of cosine distance, summed over layers.",
        ),
        (
            make_profile({"kl": [[3e-9, -4e-9]]}, (2,)),
            "the iterations contribute nothing (at most 4.0e-09 nats per token): "
            "they have learnt nothing yet, or are not needed.",
        ),
        (
            make_profile(loss=4.6),
            "the teacher knows no more of this text than a uniform guess (4.60 nats a token): train it first.",
        ),
    ],
)
@pytest.mark.parametrize("details", [False, True])
def test_the_report_begins_with_a_verdict_of_one_line(profile, verdict, details):
    assert report(profile, details=details, width=200).splitlines()[0] == f"Verdict: {verdict}"


def test_the_verdict_counts_what_other_text_may_decide_otherwise():
    text = report(make_profile({"kl": [[1.0, 0.5]]}, (2,)), threshold=0.5, width=200)
    assert text.splitlines()[0].endswith("predicted to cost 0 nats per token; 1 undecided on other text.")
