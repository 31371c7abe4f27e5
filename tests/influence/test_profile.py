"""The profile as a file, and as a table."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from iiad.errors import InputError
from iiad.influence import Profile, rank_agreement
from iiad.influence.averages import average
from iiad.reporting.profile_tables import InfluenceReport
from tests.helpers import make_profile, printed


def test_a_profile_comes_back_from_its_file_as_it_was(tmp_path):
    for profile in (make_profile(), make_profile(errors=False)):
        path = tmp_path / "profile.json"
        profile.save(path)
        assert Profile.load(path) == profile
        assert Profile.load(path).fingerprint == profile.fingerprint
        assert profile.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_fingerprint_follows_the_scores():
    one = make_profile({"kl": [[0.1]]}, (1,))
    assert one.fingerprint == make_profile({"kl": [[0.1]]}, (1,)).fingerprint
    assert one.fingerprint != make_profile({"kl": [[0.1000001]]}, (1,)).fingerprint


def spoil(fields, *path_and_value):
    *path, last, value = path_and_value
    for step in path:
        fields = fields[step]
    fields[last] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("scores", "kl", 0, 1, float("nan")), "scores.kl.0.1: .*finite number, got nan"),
        (("scores", "kl", 0, 1, float("inf")), "scores.kl.0.1: .*finite number, got inf"),
        (("scores", "kl", 0, [0.1]), "scores: kl has 1 numbers for layer 1; accepted: 2"),
        (("scores", "kl", [[0.1, 0.2]]), "scores: kl has 1 layers; accepted: 3"),
        (("scores", {}), "scores: "),
        (
            ("scores", "magic", [[0.1, 0.2], [], [1, 2, 3]]),
            "scores: found metric 'magic'; accepted: cosine, kl, loss, relative_l2, taylor",
        ),
        (("standard_errors", "kl", 0, 0, -0.1), "standard_errors: found one below 0"),
        (("standard_errors", "kl", 0, 0, float("nan")), "standard_errors.kl.0.0: .*got nan"),
        (
            ("standard_errors", {"kl": [[0, 0], [], [0, 0, 0]]}),
            "standard_errors: found kl; accepted: .*cosine, kl",
        ),
        (("standard_errors", "kl", 2, []), "standard_errors: kl has 0 numbers for layer 3; accepted: 3"),
        (("standard_errors", None), "standard_errors: found null"),
        (("batches", []), "batches: expected at least 1 item"),
        (("batches", 0, "num_tokens", 0), "batches.0.num_tokens: .*greater than or equal to 1, got 0"),
        (("batches", 3, "scores", "kl", 0, 0, 0.5), "scores: kl holds .*which its batches do not average to"),
        (("batches", 3, "scores", "kl", 0, [0.5]), "batches.3: kl has 1 numbers for layer 1; accepted: 2"),
        (("batches", 3, "scores", "kl", 0, 0, float("nan")), "batches.3.scores.kl.0.0: .*got nan"),
        (("batches", 3, "data", 1), "batches.3: its metrics or its data set are not the profile's"),
        (("stages", {"kl": [[0.1], [], []]}), "stages: kl has 1 numbers for layer 1; accepted: 0"),
        (("fixed_point", []), "fixed_point: has 0 layers; accepted: 3"),
        (("fixed_point", 0, "residuals", [0.1]), "fixed_point: has 1 residuals for layer 1; accepted: 2"),
        (("data", []), "data: expected at least 1 item"),
        (("format_version", 1), "format_version: expected 2, got 1"),
        (("model", "num_iterations", [1, 2]), "model: num_iterations has 2 entries; accepted: 3"),
        (("model", "num_iterations", [0, 0, 0]), "model: num_iterations is .0, 0, 0."),
        (("model", "num_iterations", [-1, 0, 3]), "model: num_iterations is .-1, 0, 3."),
        (("settings", "block_size", 0), "settings.block_size: "),
        (("extra", 1), "extra: no such field"),
        (("kind", "plan"), "must be a profile .*found kind 'plan'"),
    ],
)
def test_a_spoilt_file_gives_one_line_that_names_file_and_field(change, message, tmp_path):
    path = tmp_path / "profile.json"
    fields = json.loads(make_profile().model_dump_json())
    spoil(fields, *change)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message) as caught:
        Profile.load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "[1]", '{"kind": "profile"}', '"profile"', "not json"])
def test_what_is_no_profile_gives_one_line(text, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Profile.load(path)
    assert "\n" not in str(caught.value)


def test_a_profile_cannot_be_made_with_scores_that_do_not_fit():
    with pytest.raises(ValidationError, match="layer 2"):
        make_profile({"kl": [[0.1], [0.1]]}, (1, 2))


def test_scores_of_a_metric_that_is_not_there_lists_those_there_are():
    profile = make_profile({"kl": [[0.1]]}, (1,))
    with pytest.raises(InputError, match="metric 'cosine': this profile does not hold it; accepted: kl"):
        profile.scores_of("cosine")
    with pytest.raises(InputError, match="metric 'magic': there is no such metric; accepted: kl"):
        profile.scores_of("magic")


def test_rank_agreement_is_about_order_alone():
    same = {"kl": [[3.0, 2.0], [1.0, 0.5]], "cosine": [[0.9, 0.8], [0.02, 0.01]]}
    assert rank_agreement(make_profile(same, (2, 2)), "cosine") == pytest.approx(1)
    turned = {"kl": same["kl"], "cosine": [[0.01, 0.02], [0.8, 0.9]]}
    assert rank_agreement(make_profile(turned, (2, 2)), "cosine") == pytest.approx(-1)


@pytest.mark.parametrize(
    "scores", [{"kl": [[1.0, 2.0]], "cosine": [[1.0, 2.0]]}, {"kl": [[1.0] * 3], "cosine": [[0.1, 0.2, 0.3]]}]
)
def test_rank_agreement_of_too_few_or_equal_scores_is_none(scores):
    assert rank_agreement(make_profile(scores, (len(scores["kl"][0]),)), "cosine") is None


def test_the_report_shows_scores_errors_meaning_and_how_far_to_trust_them():
    text = printed(InfluenceReport(make_profile()))
    assert "influence by kl" in text
    assert "influence by cosine" in text
    assert "iteration 3" in text
    assert "0.3000 ±0.0300" in text
    words = " ".join(text.split())
    assert "KL(full || stopped)" in words
    assert (
        "teacher: 3.0000 nats a token on 4,096 tokens in 8 batches, standard errors over the batches" in words
    )
    assert "agreement with kl" in words
    assert "fixed points: does the iteration settle?" in words
    assert "converges" in words
    assert "kept at threshold" in words
    assert "100 %" in words
    assert "\x1b" not in text


def test_the_report_shows_the_threshold_asked_for_and_the_same_again():
    profile = make_profile({"kl": [[1.0, 0.5]]}, (2,))
    one = printed(InfluenceReport(profile, threshold=0.5, seed=3))
    assert "kept at threshold 0.5 on kl" in one
    assert one == printed(InfluenceReport(profile, threshold=0.5, seed=3))
    [row] = [line for line in one.split("kept at")[1].splitlines() if line.startswith("1 ")]
    first, _, second, _ = row.split()[1:]
    assert first == "100"
    assert 10 < int(second) < 90  # the threshold is the score itself


def test_the_report_compares_data_sets_by_name():
    words = " ".join(printed(InfluenceReport(make_profile(num_sets=2))).split())
    assert "1 with 2" in words
    assert "between data sets (1: set0, 2: set1)" in words


def test_the_report_shows_the_stages_of_a_predictor():
    profile = make_profile()
    model = profile.model.model_copy(update={"num_start_evaluations": 2})
    stages = {"kl": [[0.7], [0.8], [0.9]]}
    text = printed(InfluenceReport(profile.model_copy(update={"model": model, "stages": stages})))
    assert "predictor's stages by kl" in text
    assert "stage 2" in text


def test_the_table_is_coloured_where_there_is_colour():
    text = printed(InfluenceReport(make_profile({"kl": [[1.0, -0.5]]}, (2,))), force_terminal=True)
    assert "\x1b[1;31m" in text  # the largest
    assert "\x1b[35m" in text  # harm


def test_the_report_survives_one_batch_zero_tiny_and_negative_scores_and_an_ascii_terminal():
    text = printed(InfluenceReport(make_profile({"kl": [[0.0, 0.0]]}, (2,), errors=False)), encoding="ascii")
    assert "in 1 batch" in text
    assert "one batch says nothing" in text
    text = printed(InfluenceReport(make_profile({"kl": [[-3e-9, 1e-10]]}, (2,))), encoding="ascii")
    assert "-3.0e-09 +-3.0e-10" in text


def test_standard_errors_of_several_data_sets_are_taken_within_each():
    values, origins = [1.0, 3.0, 10.0, 12.0], [0, 0, 1, 1]
    scores = [{"kl": [[value]]} for value in values]
    means, errors = average(scores, [5] * 4, origins)
    assert means == {"kl": [[6.5]]}
    within = 2 * (2 * (1 / 4 * 1) ** 2) * 2  # n / (n - 1) times each set's two squares, two sets
    assert errors["kl"][0][0] == pytest.approx(within**0.5)
    _, pooled = average(scores, [5] * 4)
    assert pooled["kl"][0][0] > 3 * errors["kl"][0][0]
    assert average(scores[:3], [5] * 3, [0, 0, 1]) == average(
        scores[:3], [5] * 3
    )  # a set of one says nothing
