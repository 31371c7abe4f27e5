"""`iiad plan`, and the plan as a table."""

import pytest
import typer
from typer.testing import CliRunner

from cli.plan import plan as command
from iiad.errors import InputError
from iiad.planning import Plan
from iiad.reporting.planning import PlanReport
from tests.influence_room.test_profile import make_profile, printed


@pytest.fixture
def run(tmp_path):
    """Run the command on a profile; returns the result, with errors raised."""
    app = typer.Typer()
    app.command()(command)
    make_profile({"kl": [[0.5, 0.1], [], [0.9, 0.05, 0.3]]}, (2, 0, 3)).save(tmp_path / "profile.json")

    def invoke(*arguments):
        given = [str(tmp_path / "profile.json"), "--output", str(tmp_path / "plan.json")]
        result = CliRunner().invoke(app, [*given, *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_the_command_writes_the_plan_and_prints_it(run, tmp_path):
    result = run("--threshold", "0.4")
    assert result.exit_code == 0
    assert "■□□" in result.stdout
    assert "plan written to" not in result.stdout  # a remark, for stderr
    assert Plan.load(tmp_path / "plan.json").num_iterations == [1, 0, 1]
    with pytest.raises(InputError, match="exists already"):
        run("--threshold", "0")
    run("--threshold", "0", "--overwrite")
    assert Plan.load(tmp_path / "plan.json").num_iterations == [2, 0, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "-1"], "threshold: found -1.0"),
        (["--threshold", "nan"], "threshold: found nan"),
        (["--threshold", "0.1", "--metric", "cosine"], "metric 'cosine': .*accepted: kl"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_leaves_no_file(arguments, message, run, tmp_path):
    with pytest.raises(InputError, match=message):
        run(*arguments)
    assert not (tmp_path / "plan.json").exists()


def test_help_shows_an_example(run):
    assert "iiad plan profile.json --threshold 0.01 --output plan.json" in run("--help").stdout


def test_the_table_names_which_cut_is_meant_and_what_the_teacher_costs():
    text = printed(PlanReport(Plan.explicit([1, 0, 1], make_profile().model)))
    assert "■□□" in text
    assert "5 → 2" in text
    assert "60.0% overhead cut" in text
    assert "8 → 5" in text
    assert "37.5% compute cut" in text
    assert "800 → 500" in text
    assert "Written by hand for teacher teacher." in text


def test_the_table_survives_an_ascii_terminal():
    text = printed(PlanReport(Plan.explicit([1, 0, 1], make_profile().model)), encoding="ascii")
    assert "#.." in text
    assert "5 -> 2" in text
