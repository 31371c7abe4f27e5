"""`iiad show` prints what other commands wrote."""

import json

import pytest
import typer
from typer.testing import CliRunner

from cli.show import show
from iiad.errors import InputError
from iiad.planning import plan_by_threshold
from tests.influence_room.profiles import make_profile
from tests.planning_room.latencies import make_table
from tests.reporting_room.test_verification_report import make_verification


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(show)

    def invoke(*files):
        result = CliRunner().invoke(app, [str(file) for file in files])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    return invoke


def test_files_are_printed_by_what_they_are_in_the_order_given(run, tmp_path):
    profile = make_profile()
    made = {
        "profile": profile,
        "plan": plan_by_threshold(profile, 0.1),
        "verification": make_verification(),
        "latency": make_table(profile.model),
    }
    for name, artefact in made.items():
        artefact.save(tmp_path / f"{name}.json")
    text = run(*(tmp_path / f"{name}.json" for name in made))
    places = [
        text.index(words)
        for words in ("influence by kl", "plan: iterations", "perplexity 20.09", "decode step")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", "found kind None; accepted: bench, evaluation, latency, plan, profile, verification"),
        (json.dumps({"kind": "magic"}), "found kind 'magic'"),
        (json.dumps({"kind": "plan"}), "teacher: is missing"),
    ],
)
def test_other_files_are_one_line(content, message, run, tmp_path):
    if content is not None:
        (tmp_path / "file.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "file.json")
    assert "\n" not in str(caught.value)
