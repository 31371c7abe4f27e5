"""`iiad show` prints what other commands wrote."""

import json

import pytest

from iiad.planning import plan_by_threshold
from tests.helpers import make_profile, make_table
from tests.reporting.test_verification_report import make_verification


def test_files_are_printed_by_what_they_are_in_the_order_given(iiad, tmp_path):
    profile = make_profile()
    made = {
        "influence by kl": profile,
        "plan: iterations": plan_by_threshold(profile, 0.1),
        "perplexity 20.09": make_verification(),
        "decode step": make_table(profile.model),
    }
    for artefact in made.values():
        artefact.save(tmp_path / f"{artefact.kind}.json")
    code, text, _ = iiad("show", *(tmp_path / f"{artefact.kind}.json" for artefact in made.values()))
    assert code == 0
    places = [text.index(words) for words in made]
    assert places == sorted(places)


def test_a_plan_whose_teacher_claims_fewer_layers_than_it_has_iterations_for_is_shown(iiad, tmp_path):
    plan = plan_by_threshold(make_profile(), 0.1)
    plan.model_copy(update={"teacher": plan.teacher.model_copy(update={"num_layers": 1})}).save(
        tmp_path / "p.json"
    )
    assert iiad("show", tmp_path / "p.json")[0] == 0


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder that holds a profile."""
    make_profile().save(tmp_path / "profile.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file.json: no such file"),
        ("{", "file.json: cannot be read as JSON"),
        ("[" * 100_000, "file.json: cannot be read as JSON"),
        ("[]", "file.json: expected a JSON object, got a list"),
        (
            json.dumps({"kind": "magic"}),
            "file.json: kind: expected beams, bench, check, evaluation, family, latency, plan, profile, signals, "
            "study, verification, got 'magic'",
        ),
        (json.dumps({"kind": "plan"}), "file.json: format_version: expected 1, got None"),
        (json.dumps({"kind": "plan", "format_version": 1}), "file.json: teacher: is missing"),
    ],
)
def test_other_files_are_one_line_and_exit_code_2(content, message, iiad, folder):
    if content is not None:
        (folder / "file.json").write_text(content)
    code, out, err = iiad("show", "file.json")
    assert (code, out) == (2, "")
    assert err.startswith(f"iiad: {message}")
    assert len(err.splitlines()) == 1


PLAN = ("plan", "profile.json", "--output", "x.json")
VERIFIED = (*PLAN, "--threshold", "0.1", "--verify")
PROFILE = ("profile", "nowhere", "--data", "deep.json", "--output", "x.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "deep.json", "--threshold", "1", "--output", "x.json"),
        (*PLAN, "--threshold", "inf"),
        (*PLAN, "--threshold", "0.1", "--overhead-cut", "0.5"),
        (*PLAN, "--overhead-cut", "0.9", "--max-score", "0"),
        (*VERIFIED, "nowhere", "--data", "deep.json"),
        (*VERIFIED, "nowhere", "--data", "nothing.txt"),
        (*VERIFIED, "nowhere"),
        (*VERIFIED, "m", "--data", "deep.json", "--max-tokens", "-5"),
        (*VERIFIED, "m", "--data", "deep.json", "--verification", "x.json"),
        (*PLAN, "--threshold", "0.1", "--plot", "profile.json"),
        (*PROFILE, "--threshold", "-1"),
        (*PROFILE, "--plot", "profile.json"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_bad_input_is_exit_code_2_one_line_and_nothing_written(arguments, iiad, folder):
    (folder / "deep.json").write_text("[" * 100_000)
    code, _, err = iiad(*arguments)
    assert code == 2
    *_, last = err.splitlines()
    assert last.startswith("iiad: ")
    assert "Traceback" not in err
    assert sorted(path.name for path in folder.iterdir()) == ["deep.json", "profile.json"]
