"""The profile as a file, and its means."""

import hashlib

import pytest
from pydantic import ValidationError

from iiad.influence import Profile
from iiad.influence.averages import average
from tests.helpers import load_spoilt, make_profile, refused


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("scores", "kl", 0, 1, float("nan")), "scores.kl.0.1: "),
        (("scores", "kl", 0, 1, float("inf")), "scores.kl.0.1: "),
        (("scores", "kl", 0, [0.1]), "scores.kl: expected [2, 0, 3] numbers in the layers, got [1, 0, 3]"),
        (("scores", "kl", [[0.1, 0.2]]), "scores.kl: expected [2, 0, 3] numbers in the layers, got [2]"),
        (("scores", {}), "scores: "),
        (
            ("scores", "magic", [[0.1, 0.2], [], [1, 2, 3]]),
            "scores: expected metrics of cosine, kl, loss, relative_l2, taylor, got cosine, kl, magic",
        ),
        (("standard_errors", "kl", 0, 0, -0.1), "standard_errors: expected none below 0, got -0.1"),
        (("standard_errors", "kl", 0, 0, float("nan")), "standard_errors.kl.0.0: "),
        (("standard_errors", {"kl": [[0, 0], [], [0, 0, 0]]}), "expected metrics of cosine, kl, got kl"),
        (
            ("standard_errors", "kl", 2, []),
            "standard_errors.kl: expected [2, 0, 3] numbers in the layers, got [2, 0, 0]",
        ),
        (
            ("standard_errors", None),
            "standard_errors: expected numbers, as there are several batches, got null",
        ),
        (("batches", []), "batches: expected at least 1 item"),
        (("batches", 0, "num_tokens", 0), "batches.0.num_tokens: "),
        (("batches", 3, "scores", "kl", 0, 0, 0.5), "scores.kl: expected the mean of the batches, "),
        (
            ("batches", 3, "scores", "kl", 0, [0.5]),
            "batches.3.scores.kl: expected [2, 0, 3] numbers",
        ),
        (("batches", 3, "scores", "kl", 0, 0, float("nan")), "batches.3.scores.kl.0.0: "),
        (("batches", 3, "data", 1), "batches.3.data: expected 0 to 0, got 1"),
        (
            ("stages", {"kl": [[0.1], [], []]}),
            "stages.kl: expected [0, 0, 0] numbers in the layers, got [1, 0, 0]",
        ),
        (("fixed_point", []), "fixed_point.residuals: expected [2, 0, 3] numbers in the layers, got []"),
        (
            ("fixed_point", 0, "residuals", [0.1]),
            "fixed_point.residuals: expected [2, 0, 3] numbers",
        ),
        (("data", []), "data: expected at least 1 item"),
        (("format_version", 1), "format_version: expected 2, got 1"),
        (("model", "num_iterations", [1, 2]), "model: num_iterations: expected 3 numbers from 0 on"),
        (("model", "num_iterations", [0, 0, 0]), "not all of them 0, got [0, 0, 0]"),
        (
            ("model", "num_iterations", [-1, 0, 3]),
            "num_iterations.0: expected greater than or equal to 0, got -1",
        ),
        (("settings", "block_size", 0), "settings.block_size: "),
        (("extra", 1), "extra: "),
        (("kind", "plan"), "kind: expected 'profile', got 'plan'"),
    ],
)
def test_a_spoilt_file_gives_one_line_that_names_file_and_field(change, message, tmp_path):
    with refused(f"{tmp_path}/spoilt.json: ", message):
        load_spoilt(make_profile(), tmp_path, *change)


@pytest.mark.parametrize("text", ["", "[1]", '{"kind": "profile"}', '"profile"', "not json"])
def test_what_is_no_profile_gives_one_line(text, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with refused(path):
        Profile.load(path)


def test_a_profile_cannot_be_made_with_scores_that_do_not_fit():
    with pytest.raises(
        ValidationError, match=r"scores.kl: expected \[1, 2\] numbers in the layers, got \[1, 1\]"
    ):
        make_profile({"kl": [[0.1], [0.1]]}, (1, 2))


@pytest.mark.parametrize("metric", ["cosine", "magic"])
def test_scores_of_a_metric_that_is_not_there_lists_those_there_are(metric):
    with refused(f"metric: expected one that the profile holds, kl, got '{metric}'"):
        make_profile({"kl": [[0.1]]}, (1,)).scores_of(metric)


def test_standard_errors_of_several_data_sets_are_taken_within_each():
    values, origins = [1.0, 3.0, 10.0, 12.0], [0, 0, 1, 1]
    scores = [{"kl": [[value]]} for value in values]
    means, errors = average(scores, [5] * 4, origins)
    assert means == {"kl": [[6.5]]}
    within = 2 * (2 * (1 / 4 * 1) ** 2) * 2  # n / (n - 1) times each set's two squares, two sets
    assert errors["kl"][0][0] == pytest.approx(within**0.5)
    _, pooled = average(scores, [5] * 4)
    assert pooled["kl"][0][0] > 3 * errors["kl"][0][0]
    few = (scores[:3], [5] * 3)
    assert average(*few, [0, 0, 1]) == average(*few)  # a set of one says nothing
