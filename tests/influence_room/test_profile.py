"""The profile as a file, and as a table."""

import hashlib
import io
import json

import pytest
from pydantic import ValidationError
from rich.console import Console

from iiad.artefacts import DataIdentity, ModelIdentity
from iiad.errors import InputError
from iiad.influence import Profile, ProfileSettings, rank_agreement
from iiad.reporting.influence import InfluenceReport


def make_profile(scores=None, num_iterations=(2, 0, 3), errors=True, **fields):
    """A profile of a made-up model; `scores` by metric, or numbers that fall with the iteration."""
    if scores is None:
        scores = {
            "kl": [[0.1 * (t + 1) / 4**i for i in range(r)] for t, r in enumerate(num_iterations)],
            "cosine": [[0.2 * (t + 1) / 3**i for i in range(r)] for t, r in enumerate(num_iterations)],
        }
    model = ModelIdentity(
        name="teacher",
        fingerprint="a" * 64,
        model_type="iiet",
        num_layers=len(num_iterations),
        num_iterations=list(num_iterations),
        num_start_evaluations=1,
        cache_bytes_per_slot=100,
    )
    defaults = {
        "model": model,
        "data": DataIdentity(names=["stdlib"], fingerprint="b" * 64, num_tokens=4096),
        "settings": ProfileSettings(block_size=64, batch_size=8, max_tokens=4096, seed=0, dtype="float32"),
        "num_batches": 8 if errors else 1,
        "scores": scores,
        "standard_errors": {
            metric: [[abs(score) / 10 for score in layer] for layer in layers]
            for metric, layers in scores.items()
        }
        if errors
        else None,
    }
    return Profile(**{**defaults, **fields})


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
        (("scores", "kl", 0, 1, float("nan")), "scores.kl.0.1: .*finite number, found nan"),
        (("scores", "kl", 0, 1, float("inf")), "scores.kl.0.1: .*finite number, found inf"),
        (("scores", "kl", 0, [0.1]), "scores: kl has 1 numbers for layer 1; accepted: 2"),
        (("scores", "kl", [[0.1, 0.2]]), "scores: kl has 1 layers; accepted: 3"),
        (("scores", {}), "scores: "),
        (
            ("scores", "magic", [[0.1, 0.2], [], [1, 2, 3]]),
            "scores: found metric 'magic'; accepted: cosine, kl",
        ),
        (("standard_errors", "kl", 0, 0, -0.1), "standard_errors: found one below 0"),
        (("standard_errors", "kl", 0, 0, float("nan")), "standard_errors.kl.0.0: .*found nan"),
        (
            ("standard_errors", {"kl": [[0, 0], [], [0, 0, 0]]}),
            "standard_errors: found kl; accepted: .*cosine, kl",
        ),
        (("standard_errors", "kl", 2, []), "standard_errors: kl has 0 numbers for layer 3; accepted: 3"),
        (("standard_errors", None), "standard_errors: found null"),
        (("num_batches", 0), "num_batches: .*greater than or equal to 1, found 0"),
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


def printed(renderable, width=110, encoding="utf-8", **options):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, **options).print(renderable)
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_the_table_shows_scores_errors_meaning_and_agreement():
    text = printed(InfluenceReport(make_profile()))
    assert "influence by kl" in text
    assert "influence by cosine" in text
    assert "iteration 3" in text
    assert "0.3000 ±0.0300" in text
    words = " ".join(text.split())
    assert "KL(full || stopped)" in words
    assert "Measured on 4,096 tokens in 8 batches, standard errors over the batches." in words
    assert "Rank agreement with kl: +0." in words
    assert "\x1b" not in text


def test_the_table_is_coloured_where_there_is_colour():
    text = printed(InfluenceReport(make_profile({"kl": [[1.0, -0.5]]}, (2,))), force_terminal=True)
    assert "\x1b[1;31m" in text  # the largest
    assert "\x1b[35m" in text  # harm


def test_the_table_survives_one_batch_zero_tiny_and_negative_scores_and_an_ascii_terminal():
    text = printed(InfluenceReport(make_profile({"kl": [[0.0, 0.0]]}, (2,), errors=False)), encoding="ascii")
    assert "in 1 batch." in text
    text = printed(InfluenceReport(make_profile({"kl": [[-3e-9, 1e-10]]}, (2,))), encoding="ascii")
    assert "-3.0e-09 +-3.0e-10" in text
