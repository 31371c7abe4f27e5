"""The demo at a toy size: every stage runs, a second call runs none again, a strange folder is refused."""

import pytest
from rich.console import Console

import iiad.demo as demo_module
from iiad import InputError
from iiad.demo import bf16_is_faster, run_demo
from iiad.reporting.demo_tables import demo_report, next_steps

TINY = (
    "training.logging_steps=1",
    "training.save_steps=1",
    "training.per_device_train_batch_size=2",
    "data.block_size=32",
)
TINY_TRAIN = (
    "training.max_steps=4",
    "training.warmup_steps=1",
    "model.hidden_size=16",
    "model.intermediate_size=16",
    "model.num_attention_heads=2",
    "model.max_position_embeddings=256",
    "tokenizer.vocab_size=300",
)
TINY_DISTILL = (
    "distillation.distill.max_steps=2",
    "distillation.distill.warmup_steps=0",
    "distillation.recover.max_steps=2",
    "distillation.recover.warmup_steps=0",
    "distillation.check_teacher=false",  # four steps teach nothing
)


@pytest.fixture
def small(monkeypatch, tmp_path, text_file):
    """The demo's own code on its own corpus's loader, with a few documents and steps."""
    load, measure, evaluate, bench = (
        demo_module.load_recipe,
        demo_module.measure_influence,
        demo_module.evaluate_models,
        demo_module.bench_models,
    )

    def load_recipe(kind, name, settings):
        own = TINY_TRAIN if kind is demo_module.TrainRecipe else TINY_DISTILL
        text = [
            f"data.train=[{text_file}]",
            f"data.validation=[{text_file}]",
            f"data.cache_dir={tmp_path / 'c'}",
        ]
        return load(kind, name, [*settings, *TINY, *own, *text])

    def measure_influence(model, data, **options):
        return measure(model, [str(text_file)], **{**options, "max_tokens": 512}, cache_dir=tmp_path / "c")

    def evaluate_models(models, data, **options):
        return evaluate(models, [str(text_file)], **options, max_tokens=500, cache_dir=tmp_path / "c")

    def bench_models(models, **options):
        return bench(models, **options, prompt_tokens=8, new_tokens=2, repeats=1)

    monkeypatch.setattr(demo_module, "bench_models", bench_models)
    monkeypatch.setattr(demo_module, "load_recipe", load_recipe)
    monkeypatch.setattr(demo_module, "measure_influence", measure_influence)
    monkeypatch.setattr(demo_module, "evaluate_models", evaluate_models)
    return tmp_path / "demo"


def test_an_interrupted_demo_goes_on_runs_every_stage_once_and_shows_five_models(small, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(demo_module, "distill", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_demo(small, lambda artefact: None)
    assert not (small / "student").exists()
    (small / ".bench.json-left-by-a-kill").write_text("{")
    assert capsys.readouterr().err.count("not run again") == 0
    shown = []
    made = run_demo(small, shown.append)
    assert capsys.readouterr().err.count("not run again") == 3  # all models but the student
    assert [artefact.kind for artefact in shown] == ["profile", "plan"]
    assert made.tokens["student"] > made.tokens["teacher"] == 4 * 2 * 32
    console = Console(width=80, record=True)
    console.print(demo_report(made, 80))
    text = console.export_text()
    for row in ("Transformer", "IIET, r = 0", "teacher, r = 3", "truncated teacher", "E-IIET"):
        assert row in text
    assert "evaluations" in text
    assert f"iiad generate {small}/student" in next_steps(made)

    before = {path: path.stat().st_mtime_ns for path in small.rglob("*") if path.is_file()}
    again = run_demo(small, shown.append)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err.count("not run again") == 4
    assert again.evaluation == made.evaluation


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        run_demo(tmp_path, lambda artefact: None)
    with pytest.raises(InputError, match="is a file"):
        run_demo(tmp_path / "thesis.tex", lambda artefact: None)


def test_precision_is_measured():
    assert bf16_is_faster() in (True, False)
