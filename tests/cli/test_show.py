"""`iiad show` prints what other commands wrote."""

import json

import pytest
import typer
from typer.testing import CliRunner

from cli import main
from cli.show import show
from iiad.errors import InputError
from iiad.planning import plan_by_threshold
from tests.helpers import make_profile, make_table
from tests.reporting.test_verification_report import make_verification


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
        (
            "[]",
            "found kind None; accepted: bench, check, evaluation, latency, plan, profile, signals, verification",
        ),
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


@pytest.fixture
def iiad(monkeypatch, capsys, tmp_path):
    """Run the whole command line in an empty folder that holds a profile; returns code, stdout, stderr."""
    make_profile().save(tmp_path / "profile.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IIAD_DEBUG", raising=False)  # which --debug sets

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["iiad", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main.run()
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


PLAN = ("plan", "profile.json", "--output", "x.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "deep.json"),
        ("plan", "deep.json", "--threshold", "1", "--output", "x.json"),
        (*PLAN, "--threshold", "nan"),
        (*PLAN, "--threshold", "0.1", "--overhead-cut", "0.5"),
        (*PLAN, "--overhead-cut", "2"),
        (*PLAN, "--overhead-cut", "0.9", "--max-score", "0"),
        (*PLAN, "--threshold", "0.1", "--metric", "loss"),
        (*PLAN, "--speedup", "2"),
        (*PLAN, "--threshold", "0.1", "--verify", "nowhere", "--data", "deep.json"),
        (*PLAN, "--threshold", "0.1", "--verify", "nowhere", "--data", "nothing.txt"),
        (*PLAN, "--threshold", "0.1", "--verify", "nowhere"),
        (*PLAN, "--threshold", "0.1", "--verify", "m", "--data", "deep.json", "--max-tokens", "-5"),
        (*PLAN, "--threshold", "0.1", "--verify", "m", "--data", "deep.json", "--verification", "x.json"),
        (*PLAN, "--threshold", "0.1", "--plot", "profile.json"),
        ("profile", "nowhere", "--data", "deep.json", "--output", "x.json", "--memory-gib", "nan"),
        ("profile", "nowhere", "--data", "deep.json", "--output", "x.json", "--threshold", "-1"),
        ("profile", "nowhere", "--data", "deep.json", "--output", "x.json", "--plot", "profile.json"),
        ("profile", "nowhere", "--data", "deep.json", "--output", "x.json", "--metric", "magic"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_bad_input_is_exit_code_2_one_line_and_nothing_written(arguments, iiad, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    code, _, err = iiad(*arguments)
    assert code == 2
    *_, last = err.splitlines()
    assert last.startswith("iiad: ")
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep.json", "profile.json"]
