"""A verification as a table, in words and as a picture."""

import pytest

from iiad.planning import predicted_loss, trade_off
from iiad.planning.verification import Verification, VerificationSettings, candidates, verified
from iiad.reporting.verification_tables import (
    VerificationReport,
    verification_remarks,
    verification_verdict,
)
from tests.helpers import make_profile, printed

SETTINGS = VerificationSettings(
    block_size=64, batch_size=8, max_tokens=4096, seed=0, dtype="float32", device="cpu"
)
SCORES = {"kl": [[0.4, 0.1], [], [0.3, 0.05, 0.01]], "cosine": [[0.1, 0.4], [], [0.01, 0.05, 0.3]]}


def make_verification(true_share=1.0, metric="kl", plan=(1, 0, 1), shift=0.0, scores=SCORES):
    """Plans whose true loss is `true_share` of what is predicted; baselines lose `shift` more."""
    profile = make_profile(scores)
    plans = []
    for candidate in candidates(profile, trade_off(profile, metric), plan, num_random=2):
        predicted = predicted_loss(profile.scores[metric], candidate.num_iterations)
        loss = true_share * predicted + (shift if candidate.kind == "baseline" else 0)
        measured = {"kl": loss, "kl_error": 0.001, "loss": loss, "loss_error": None}
        plans.append(verified(candidate, profile, metric, **measured))
    return Verification(
        model=profile.model,
        data=profile.data,
        settings=SETTINGS,
        metric=metric,
        profile_fingerprint=profile.fingerprint,
        loss=3.0,
        plans=plans,
    )


def test_the_table_shows_every_kind_of_plan_predicted_beside_true():
    text = printed(VerificationReport(make_verification(), details=True), width=120)
    for words in ("the plan", "points of the threshold's curve", "best plans by other metrics", "by cosine"):
        assert words in text
    for words in ("last layers first", "random 2", "perplexity 20.09 in full", "101", "0.1600 ±0.0010"):
        assert words in text


def test_a_narrow_terminal_gets_several_tables_and_whole_words():
    lines = printed(VerificationReport(make_verification()), width=60, encoding="ascii").splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(line.startswith("first layers first") for line in lines) == 2


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, "1.00: scores add up"),
        (1.5, "1.50: scores are not additive: together, iterations are worth more than one by one"),
        (0.5, "0.50: scores are not additive: together, iterations are worth less than one by one"),
    ],
)
def test_additivity_is_said_in_words(share, words):
    made = make_verification(share)
    assert made.additivity == pytest.approx(share)
    assert words in verification_remarks(made)[0]


def test_scores_that_are_no_losses_are_compared_by_rank_alone():
    made = make_verification(metric="cosine")
    assert made.additivity is None
    assert "Rank correlation of predicted and true loss" in verification_remarks(made, details=True)[0]


def test_whether_influence_beats_other_choices_is_said_with_names():
    assert "smaller KL than all" in verification_remarks(make_verification(shift=0.5))[-1]
    worse = verification_remarks(make_verification(shift=-5.0))[-1]
    assert "better: " in worse
    assert "random 1" in worse
    assert "it is the same as: uniform" in verification_remarks(make_verification(shift=0.5))[-1]


def test_the_plan_comes_first():
    made = make_verification()
    assert made.plans[0] == made.points[0]
    with pytest.raises(ValueError, match="expected the plan itself first"):
        Verification.model_validate({**made.model_dump(), "plans": made.model_dump()["plans"][::-1]})


TINY = {"kl": [[4e-9, 1e-9], [], [3e-9, 5e-10, 1e-10]], "cosine": SCORES["cosine"]}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (
            {},
            "scores rank 3 plans of like cost as their true loss does (+1.00); "
            "the plan loses 0.16, predicted 0.16.",
        ),
        ({"plan": None}, "scores rank 3 plans of like cost as their true loss does (+1.00)."),
        (
            {"true_share": -1.0},
            "do not plan by these scores: they rank 3 plans of like cost in reverse of their true loss (-1.00).",
        ),
        (
            {"scores": TINY},
            "no plan loses anything (at most 8.6e-09 nats per token): "
            "the iterations have learnt nothing yet, or are not needed.",
        ),
    ],
)
@pytest.mark.parametrize("details", [False, True])
def test_the_report_begins_with_a_verdict_of_one_line(changes, verdict, details):
    text = printed(VerificationReport(make_verification(**changes), details), width=200)
    assert text.splitlines()[0] == f"Verdict: {verdict}"


def test_scores_that_hardly_rank_plans_are_pointed_out():
    made = make_verification()
    true = dict(zip(("101", "200", "002"), (0.2, 0.1, 0.2), strict=True))  # predicted: 0.16, 0.36, 0.51
    losses = [true.get("".join(map(str, plan.num_iterations)), plan.kl) for plan in made.plans]
    plans = [plan.model_copy(update={"kl": loss}) for plan, loss in zip(made.plans, losses, strict=True)]
    made = made.model_copy(update={"plans": plans})
    assert verification_verdict(made).startswith("these scores hardly rank 3 plans of like cost (")


def test_rows_and_correlations_that_can_say_nothing_need_details():
    made = make_verification()
    short, long = (printed(VerificationReport(made, details), width=120) for details in (False, True))
    assert "last layers first" not in short  # the same as the plan
    assert "last layers first" in long
    assert "Rank correlation of predicted and true loss over them" not in short
    assert "Rank correlation of predicted and true loss over them: +1.00" in long
    assert "--details" in short
    assert "--details" not in long
