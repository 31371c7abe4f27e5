"""The demo at a toy size: every stage runs once, an interrupted demo goes on, a foreign folder is refused."""

import pytest
from rich.console import Console

from iiad import InputError
from iiad.demo import DemoSize, run_demo
from iiad.reporting.demo_tables import demo_report, next_steps

TINY = (
    *("training.logging_steps=1", "training.save_steps=100", "training.per_device_train_batch_size=2"),
    "data.block_size=32",
)
TINY_TRAIN = (
    *("training.max_steps=4", "training.warmup_steps=1", "tokenizer.vocab_size=300"),
    *("model.hidden_size=16", "model.intermediate_size=16", "model.num_attention_heads=2"),
    *("model.num_layers=2", "model.max_position_embeddings=256"),
)
TINY_DISTILL = (
    *("distillation.distill.max_steps=2", "distillation.distill.warmup_steps=0"),
    *("distillation.recover.max_steps=2", "distillation.recover.warmup_steps=0"),
    "distillation.check_teacher=false",  # four steps teach nothing
)


@pytest.fixture
def tiny(tmp_path, text_file, little_text, monkeypatch):
    """The demo's size in these tests: a few documents, steps and tokens."""
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    text = (f"data.train=[{text_file}]", f"data.validation=[{little_text}]")
    return DemoSize(
        text=(str(text_file),),
        train=(*TINY, *TINY_TRAIN, *text),
        distill=(*TINY, *TINY_DISTILL, *text),
        calibration_tokens=512,
        evaluation_tokens=500,
        prompt_tokens=8,
        new_tokens=2,
        repeats=1,
    )


def interrupt(artefact):
    if artefact.kind == "plan":
        raise KeyboardInterrupt


def test_an_interrupted_demo_goes_on_and_runs_every_stage_once(tiny, tmp_path, capsys):
    folder = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        run_demo(folder, interrupt, tiny)
    assert not (folder / "student").exists()
    (folder / ".bench.json-left-by-a-kill").write_text("{")
    assert capsys.readouterr().err.count("again") == 0
    shown = []
    made = run_demo(folder, shown.append, tiny)
    assert capsys.readouterr().err.count("not run again") == 3  # all models but the student
    assert [artefact.kind for artefact in shown] == ["profile", "plan"]
    assert made.tokens["student"] > made.tokens["teacher"] == 4 * 2 * 32
    console = Console(width=80, record=True)
    console.print(demo_report(made.evaluation, made.bench, made.tokens, 80))
    text = console.export_text()
    for row in ("Transformer", "IIET, r = 0", "teacher, r = 3", "truncated teacher", "E-IIET", "evaluations"):
        assert row in text
    assert f"iiad generate {folder}/student" in next_steps(folder, made.minutes)

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = run_demo(folder, shown.append, tiny)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err.count("not run again") == 4
    assert again.evaluation == made.evaluation


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        run_demo(tmp_path, interrupt)
    with pytest.raises(InputError, match="expected a folder, got a file"):
        run_demo(tmp_path / "thesis.tex", interrupt)
