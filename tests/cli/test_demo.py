"""The demo at a toy size: every run is made once, an interrupted demo goes on, a foreign folder is refused."""

import pytest

from iiad import InputError
from iiad.reporting.demo_tables import demo_report, next_steps
from iiad.studies import load_study
from iiad.studies.demo import LEAST_SHARE, fit_steps, run_demo
from iiad.studies.estimates import RunEstimate
from tests.helpers import printed

TINY = {
    "data.train": ["states:length=3"],
    "data.validation": ["states:length=3,rows=32"],
    "training.max_steps": 2,
    "training.warmup_steps": 0,
    "training.per_device_train_batch_size": 2,
    "model.hidden_size": 16,
    "model.intermediate_size": 16,
    "students.distillation.distill.max_steps": 1,
    "students.distillation.distill.warmup_steps": 0,
    "students.training.per_device_train_batch_size": 2,
}


def interrupt(artefact):
    if artefact.kind == "plan":
        raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_demo_goes_on_and_makes_every_run_once(tmp_path, capsys):
    folder = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        run_demo(folder, interrupt, changes=TINY, repeats=1)
    assert not (folder / "runs" / "teacher-seed0-cut0.3-distilled").exists()
    shown = []
    made = run_demo(folder, shown.append, repeats=1)
    assert "goes on with the demo" in capsys.readouterr().err
    assert [artefact.kind for artefact in shown] == ["profile", "plan", "plan", "plan"]
    text = printed(demo_report(made.result, made.bench, 100))
    for row in (
        "Transformer",
        "IIET, r = 0",
        "teacher, r = 3",
        "cut 55 %, untrained",
        "cut 100 %, distilled",
    ):
        assert row in text
    assert f"iiad show {folder}/study.json" in next_steps(folder, made.minutes, made.data)
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    again = run_demo(folder, shown.append)
    assert {
        path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()
    } == before
    assert again.result == made.result


@pytest.mark.parametrize(("whole", "share"), [(1.0, 1.0), (7.0, 8 * 0.7 / 7), (100.0, LEAST_SHARE)])
def test_steps_are_scaled_to_the_minutes_but_not_below_what_the_lesson_needs(
    whole, share, monkeypatch, capsys
):
    study = load_study("demo")
    estimate = [RunEstimate("teacher", 1, 1, 1.0, whole)]
    monkeypatch.setattr("iiad.studies.demo.estimate_runs", lambda study, processes: estimate)
    found = fit_steps(study, 8.0, 2)
    assert found.settings["training.max_steps"] == round(share * study.settings["training.max_steps"])
    name = "distillation.distill.max_steps"
    assert found.students.settings[name] == round(share * study.students.settings[name])
    said = capsys.readouterr().err
    assert ("would not show the lesson" in said) == (whole == 100.0)
    assert "about" in said


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no study"):
        run_demo(tmp_path, interrupt, changes=TINY)
    with pytest.raises(InputError, match="expected a folder, got a file"):
        run_demo(tmp_path / "thesis.tex", interrupt)
