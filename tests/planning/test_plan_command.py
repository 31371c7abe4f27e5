"""`iiad plan`, and plans and their trade-off as tables."""

import re
import sys
from unittest.mock import Mock

import pytest
import typer
from typer.testing import CliRunner

from cli.plan import plan as command
from iiad.planning import Bounds, Plan, Targets, plan_by_target, plan_by_threshold, trade_off
from iiad.planning.stability import keep_frequency
from iiad.reporting.plan_tables import CurveReport, PlanReport
from tests.helpers import make_profile, make_table, printed, refused

PROFILE = make_profile({"kl": [[0.5, 0.1], [], [0.9, 0.05, 0.3]]}, (2, 0, 3))


@pytest.fixture
def run(tmp_path):
    """Run the command on a profile, TABLE being a latency table; returns the result, with errors raised."""
    app = typer.Typer()
    app.command()(command)
    PROFILE.save(tmp_path / "profile.json")
    make_table(PROFILE.model).save(tmp_path / "latency.json")

    def invoke(*arguments, output=True):
        paths = {"PROFILE": "profile.json", "TABLE": "latency.json", "PLAN": "plan.json"}
        given = ["PROFILE", *arguments, *(["--output", "PLAN"] if output else [])]
        named = [str(tmp_path / paths[word]) if word in paths else word for word in given]
        result = CliRunner().invoke(app, named, env={"COLUMNS": "110"})
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
    with refused("exists already"):
        run("--threshold", "0")
    run("--threshold", "0", "--overwrite")
    assert Plan.load(tmp_path / "plan.json").num_iterations == [2, 0, 3]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("--threshold 0.25 --normalize layer", [1, 0, 3]),
        ("--threshold 0.4 --min-iterations 2", [2, 0, 2]),
        ("--threshold 0.4 --pin 1=2 --pin 3=0", [2, 0, 0]),
        ("--overhead-cut 0.55", [1, 0, 1]),
        ("--compute-cut 0.4", [0, 0, 1]),
        ("--max-evaluations 7", [1, 0, 3]),
        ("--max-cache-bytes 650 --max-iterations 2", [2, 0, 1]),
        ("--max-score 0.11", [1, 0, 3]),
        ("--max-latency-ms 6 --latency TABLE", [1, 0, 1]),
        ("--speedup 1.5 --latency TABLE --device cpu --dtype float32", [1, 0, 1]),
        ("--max-latency-ms 52 --phase prefill --latency TABLE --context 256", [1, 0, 1]),
        ("--overhead-cut 0.2 --speedup 1.1 --latency TABLE --curve", [1, 0, 3]),
    ],
)
def test_each_way_to_ask_gives_its_plan(arguments, wanted, run, tmp_path):
    result = run(*arguments.split())
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.num_iterations == wanted
    assert plan.explanation in " ".join(result.stdout.split())


def test_the_curve_alone_needs_no_output_and_writes_none(run, tmp_path):
    result = run("--curve", output=False)
    assert result.exit_code == 0
    assert "trade-off by kl" in result.stdout
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threshold -1", "threshold: expected a number from 0, got -1.0"),
        ("--threshold nan", "threshold: expected a number from 0, got nan"),
        ("--threshold 0.1 --metric cosine", "metric: expected one ... kl, got 'cosine'"),
        ("", "targets: expected one of --threshold ... --curve"),
        ("--threshold 0.1 --speedup 2", "threshold: expected a threshold or targets, got it and speedup"),
        ("--overhead-cut 1.2", "overhead_cut: expected a share from 0 to 1, got 1.2"),
        ("--overhead-cut 0.9 --pin 3=3", "overhead_cut: expected at most 0.4 within the bounds, got 0.9"),
        ("--speedup 2", "speedup: expected a latency table with it"),
        ("--overhead-cut 0.5 --device cuda", "device: expected a latency table ... got cuda alone"),
        ("--overhead-cut 0.5 --phase prefill", "phase: expected a latency table ... got prefill alone"),
        ("--speedup 2 --latency TABLE --device cuda", "a table with device cuda, got cpu"),
        ("--speedup 2 --latency TABLE --dtype bfloat16", "a table with dtype bfloat16, got float32"),
        ("--speedup 2 --latency TABLE --context 8", "a table with context 8, got 256"),
        ("--speedup 2 --latency TABLE --phase x", "phase: expected decode, prefill or sentence, got x"),
        ("--speedup 2 --latency none.json", "none.json: no such file"),
        ("--threshold 0.1 --normalize rank", "normalize: expected one of none, layer, model, got 'rank'"),
        ("--threshold 0.1 --pin 3:2", "pin: expected LAYER=ITERATIONS"),
        ("--threshold 0.1 --context 0", "context: expected a whole number from 1, got 0"),
        ("--curve", "--output: expected none with --curve alone"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_leaves_no_file(arguments, message, run, tmp_path):
    with refused(*message.split(" ... ")):
        run(*arguments.split())
    assert not (tmp_path / "plan.json").exists()


def test_a_plan_needs_an_output_and_help_shows_an_example(run):
    with refused("output: expected a file for the plan, got none"):
        run("--threshold", "0.1", output=False)
    assert "iiad plan profile.json --threshold 0.01 --output plan.json" in run("--help").stdout


def report(plan, profile=None, latency=None, **counted):
    kept = None
    if profile and plan.threshold is not None:
        kept = keep_frequency(profile, plan.metric, plan.threshold, plan.normalize, plan.bounds)
    return PlanReport(plan, plan.costs(**counted, latency=latency), kept, latency)


def test_the_table_names_which_cut_is_meant_and_what_the_teacher_costs():
    text = printed(report(Plan.explicit([1, 0, 1], make_profile().model)))
    for words in (
        "■□□",
        "5 → 2",
        "60.0% overhead cut",
        "8 → 5",
        "37.5% compute cut",
        "800 → 500",
        "Written by hand for teacher teacher.",
        "1 sequence of 1,024 tokens",
        "prefill FLOPs",
        "decode FLOPs",
    ):
        assert words in text
    assert "Predicted loss" not in text
    assert "resamples" not in text


def test_the_table_survives_an_ascii_terminal():
    plan = plan_by_threshold(PROFILE, 0.4)
    for shown in (report(plan, PROFILE), CurveReport(trade_off(PROFILE))):
        printed(shown, encoding="ascii").encode("ascii")
    text = printed(report(plan), encoding="ascii")
    assert "#.." in text
    assert "5 -> 2" in text
    assert "+-" in text


def test_a_threshold_plan_shows_how_often_each_iteration_is_kept():
    scores = {"kl": [[0.5, 0.105], [], [0.9, 0.05, 0.3]]}
    profile = make_profile(scores, (2, 0, 3))  # batches 10 % to both sides: 0.105 is near the threshold
    text = printed(report(plan_by_threshold(profile, 0.1), profile))
    share = keep_frequency(profile, "kl", 0.1)[0][1]
    assert 0 < share < 1
    assert re.search(rf"100% +{share:.0%}", text)
    pinned = plan_by_threshold(profile, 0.1, bounds=Bounds(pins={1: 1}))
    assert re.search(r"100% +0%", printed(report(pinned, profile)))
    one = make_profile(scores, (2, 0, 3), errors=False)
    for plan, known in (
        (plan_by_threshold(one, 0.1), one),
        (plan_by_target(profile, Targets(overhead_cut=0.5)), profile),
    ):
        assert "kept in" not in printed(report(plan, known))


def test_the_report_says_what_is_lost_and_how_far_to_trust_the_clock():
    table = make_table(PROFILE.model)
    plan = plan_by_target(PROFILE, Targets(speedup=1.5), latency=table)
    text = " ".join(printed(report(plan, PROFILE, latency=table)).split())
    for words in (
        "a speedup of decode of at least 1.5",
        "Predicted loss by kl: 0.45 ± 0.017 nats per token, if the layers add up.",
        "9 → 6 ms",
        "1.50x, table off by up to 5.0%",
        "table off by up to 2.0%",
        "cpu (a CPU), float32",
        "2 sequences of 256 tokens",
    ):
        assert words in text
    bare = plan_by_threshold(PROFILE, 100.0)
    assert "134 parameters of the teacher are unused under the plan" in printed(report(bare))
    bytes_and_loss = printed(report(bare, context=2048, batch_size=4))
    assert "6.55 MB → 2.46 MB" in bytes_and_loss


def test_the_curve_shows_the_front_beside_thresholds_with_their_knees():
    text = printed(CurveReport(trade_off(PROFILE), make_table(PROFILE.model)))
    rows = [re.split(r"\s*│\s*", line.strip(" │")) for line in text.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["8", "7", "6", "5", "4", "3"]
    assert rows[3] == ["5", "60.0%", "0.45 ◄", "6", "0.39 ◄", "0.45"]
    assert rows[2] == ["6", "40.0%", "0.35", "7"]  # no threshold gives so many
    flat = " ".join(text.split())
    assert "of all plans, --max-evaluations 5: 60.0% overhead cut for 0.45;" in flat
    assert "of thresholds, --threshold 0.39: 60.0% for 0.45." in flat
    assert "off by up to 5.0%" in flat
    assert "Thinned" not in flat


def test_a_long_curve_is_thinned_and_says_so():
    scores = [[1 / (1 + t + 3 * i) for i in range(3)] for t in range(24)]
    profile = make_profile({"kl": scores}, (3,) * 24)
    text = printed(CurveReport(trade_off(profile)))
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == 40
    assert "Thinned: 40 of 73 rows are shown (--details: all)." in text
    text = printed(CurveReport(trade_off(profile), details=True))
    assert len([line for line in text.splitlines() if line.startswith("│")]) == 73
    assert "Thinned" not in text
    assert text.count("◄") >= 2
    assert rows[0].split("│")[1].strip() == "96"
    assert rows[-1].split("│")[1].strip() == "24"


def test_a_plan_is_written_before_it_is_printed_so_that_a_reader_may_go_away(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["cli.plan_steps"], "print_result", Mock(side_effect=BrokenPipeError))
    with pytest.raises(BrokenPipeError):
        run("--threshold", "0.1")
    assert Plan.load(tmp_path / "plan.json").threshold == 0.1
