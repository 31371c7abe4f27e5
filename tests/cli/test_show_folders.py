"""`iiad show` of a run, a model or signals: where it is, what it is, and whether it runs now."""

import fcntl
import json
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiad.checkpoints import load_model
from iiad.distillation import capture_signals
from iiad.errors import InputError
from iiad.training import RunRecord
from iiad.training.run_status import read_run
from tests.helpers import half_done


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def run(teacher_folder, tmp_path):
    """The teacher's run as a kill after its last checkpoint leaves it, its log up to step 10 of 24."""
    folder = half_done(teacher_folder, 24, tmp_path / "run")
    (folder / "checkpoint-24").rename(folder / "checkpoint-10")
    (folder / "BEST").write_text("checkpoint-10\n")
    lines = (teacher_folder / "log.jsonl").read_text().splitlines(keepends=True)[:5]
    (folder / "log.jsonl").write_text("".join(lines) + '{"stage": "train", "st')
    return folder


def show(iiad, folder):
    code, out, err = iiad("show", folder)
    assert (code, err) == (0, "")
    return out.splitlines()


def test_a_finished_run_shows_its_model_its_plan_and_its_results(iiad, teacher_folder):
    head, *lines = show(iiad, teacher_folder)
    assert head == f"{teacher_folder}: iiad train, finished"
    text = "\n".join(lines)
    for words in (
        "train        step 24 of 24, loss ",
        "checkpoints: checkpoint-24",
        "model        iiet, ",
        " parameters, layers 2, width 16, vocabulary 300",
        "plan         2 2 iterations, 6 block evaluations per token",
        "results      tokens 3,072, validation nll ",
    ):
        assert words in text
    assert "time left" not in text
    assert show(iiad, teacher_folder / "run.json") == [head, *lines]


def test_an_unfinished_run_shows_where_it_is_and_how_to_go_on(iiad, run):
    head, *lines = show(iiad, run)
    assert head == f"{run}: iiad train, unfinished, not running: go on with --resume"
    text = "\n".join(lines)
    for words in ("step 10 of 24, loss ", " tokens/s", "checkpoint-10 (best)", "once it goes on", "plan  "):
        assert words in text
    shutil.rmtree(run / "checkpoint-10")
    assert "model" not in "\n".join(show(iiad, run))
    (run / "log.jsonl").unlink()
    assert show(iiad, run)[1:] == ["  train        step 0 of 24"]


def test_a_run_that_another_process_has_locked_is_running(iiad, run):
    with (run / ".lock").open("w+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on there")
        lock.flush()
        assert show(iiad, run)[0] == f"{run}: iiad train, running (process 7 on there)"
        code, out, _ = iiad("show", run, "--json")
        assert (code, json.loads(out)["running"]) == (0, "process 7 on there")
    assert "not running" in show(iiad, run)[0]


def test_the_time_left_regards_that_later_steps_have_iterations(run):
    record = RunRecord.load(run / "run.json")
    tokens = 4 * 32  # of a step
    line = {"stage": "train", "step": 10, "loss": 3.0, "tokens_per_second": tokens / 2.0}  # 2 s a step
    (run / "log.jsonl").write_text(json.dumps(line) + "\n")
    left = read_run(run).seconds_left
    without_phases = {**record.settings["training"], "iterations_start": 0.0}
    record.model_copy(update={"settings": {**record.settings, "training": without_phases}}).save(
        run / "run.json"
    )
    assert read_run(run).seconds_left == pytest.approx(14 * 2.0)
    assert 2 * 2.0 + 12 * 2.0 < left < 2 * 2.0 + 12 * 2.0 * 3  # 12 of them with 6 evaluations instead of 2


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.dictionaries(
                st.sampled_from(["stage", "step", "loss", "tokens_per_second", "x"]),
                st.one_of(
                    st.none(),
                    st.booleans(),
                    st.integers(),
                    st.floats(),
                    st.just("train"),
                    st.just([{}]),
                    st.text(),
                ),
            ).map(json.dumps),
        ),
        max_size=4,
    ).map("\n".join)
)
def test_any_log_is_shown_or_refused_in_one_line(teacher_folder, tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("log")
    shutil.copy(teacher_folder / "run.json", folder)
    (folder / "log.jsonl").write_text(text, encoding="utf-8", errors="replace")
    with suppress(InputError):
        assert read_run(folder).command == "train"


def test_a_model_folder_shows_its_plan_and_parameters(iiad, folders):
    number = load_model(folders.student).num_parameters()
    assert show(iiad, folders.student) == [
        f"{folders.student}: a model",
        f"  model        iiet, {number:,} parameters, layers 3, width 32, vocabulary 320",
        "  plan         0 2 1 iterations, 6 block evaluations per token",
        "  cache        exact policy",
    ]
    assert "plan" not in "\n".join(show(iiad, folders.llama))


@pytest.fixture
def signals(teacher_folder, little_text, cache_dir, tmp_path):
    options = {
        "top_k": 4,
        "block_size": 16,
        "blocks_per_shard": 8,
        "cache_dir": cache_dir,
        "check_teacher": False,
    }
    capture_signals(teacher_folder, [str(little_text)], tmp_path / "signals", **options)
    return tmp_path / "signals"


def test_signals_show_whether_they_are_whole(iiad, signals, capsys):
    capsys.readouterr()
    head, *lines = show(iiad, signals)
    assert head == f"{signals}: finished"
    record = json.loads((signals / "signals.json").read_text())
    number = len(record["shards"])
    assert f"{number} of {number} shards of 8 blocks" in lines[-1]
    heading = {name: value for name, value in record.items() if name not in ("shards", "iiad_version")}
    heading = {**heading, "kind": "unfinished signals"}
    del heading["teacher"]["name"], heading["data"]["names"]
    rows = [heading, *record["shards"][:2]]
    (signals / "signals.partial.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"ind')
    (signals / "signals.json").unlink()
    head, *lines = show(iiad, signals)
    assert head == f"{signals}: unfinished, not running: go on with --resume"
    assert f"2 of {number} shards of 8 blocks" in lines[-1]
    (signals / "signals.partial.jsonl").write_text("[]\n")
    code, _, err = iiad("show", signals)
    assert (code, len(err.splitlines())) == (2, 1)


def test_other_folders_are_refused_and_nothing_is_left_in_them(iiad, tmp_path):
    code, out, err = iiad("show", tmp_path)
    assert (code, out) == (2, "")
    assert "config.json, signals.json, study.json or beams.json, got none of them" in err
    assert not list(tmp_path.iterdir())


def test_show_loads_no_torch(run, signals, folders):
    script = """if True:
        import sys
        from iiad_cli.main import run
        try:
            run()
        except SystemExit as end:
            assert not end.code
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", script, "show", run, signals, folders.student], check=True)
