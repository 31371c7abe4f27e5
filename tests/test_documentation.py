"""Examples of the documentation: its Python runs as it stands, on less text in fewer steps; its options exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

import iiad.data.sources
import iiad.training
from cli.main import app
from iiad.training import TrainRecipe, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
SMALL = [
    *(
        "data.block_size=32",
        "training.per_device_train_batch_size=2",
        "training.gradient_accumulation_steps=1",
    ),
    "training.bf16=false",
]
SMALL_TRAIN = [
    *(
        "training.max_steps=4",
        "tokenizer.vocab_size=300",
        "model.hidden_size=16",
        "model.intermediate_size=16",
    ),
    *("model.num_attention_heads=2", "model.max_position_embeddings=64"),
]
SMALL_DISTILL = [
    *("distillation.distill.max_steps=2", "distillation.recover.max_steps=2"),
    "distillation.check_teacher=false",  # four steps teach nothing
]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def load_shortened(kind, path, settings=(), *rest):
    load_recipe(kind, path, settings, *rest)  # as it stands, it is one, too
    return load_recipe(
        kind, path, [*settings, *SMALL, *(SMALL_TRAIN if kind is TrainRecipe else SMALL_DISTILL)], *rest
    )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_the_documentation_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.py"
    text.write_text(Path(__file__).read_text()[:1500])
    monkeypatch.setattr(iiad.data.sources, "stdlib_files", lambda split: [(text, text.name)])
    monkeypatch.setattr(iiad.training, "load_recipe", load_shortened)
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    assert names["student"].config.num_layers == names["truncated"].config.num_layers == 4
    assert {path.name for path in tmp_path.iterdir()} >= {"plan.json", "student", "teacher"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_of_the_documentation_exist(page):
    commands = typer.main.get_command(app).commands
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["iiad"]:
                parameters = commands[words[1]].params
                options = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
                assert {word for word in words if word.startswith("--")} <= options, line
