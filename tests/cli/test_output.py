"""--json, --quiet, --version and completion: one mechanism for every command."""

import json
import re
import subprocess
import sys

import pytest
import yaml

import iiad as package
from cli.main import COMMANDS
from iiad import progress
from iiad.planning import plan_by_threshold
from tests.helpers import make_profile


@pytest.fixture
def world(teacher_folder, text_file, little_text, cache_dir, recipe_fields, tmp_path, monkeypatch):
    """Words of command lines -> what they stand for, in a folder with a profile, a plan and recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IIAD_CACHE", str(cache_dir))
    monkeypatch.setenv("COLUMNS", "160")
    make_profile().save("profile.json")
    plan_by_threshold(make_profile(), 0.1).save("plan.json")
    data = {**recipe_fields["data"], "train": [str(little_text)], "validation": [str(little_text)]}
    training = {**recipe_fields["training"], "max_steps": 2, "warmup_steps": 0}
    recipe = {**recipe_fields, "data": data, "training": training}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(recipe))
    return {"TEACHER": teacher_folder, "TEXT": text_file, "LITTLE": little_text}


LINES = {
    "validate demo": ["command", "problems", "summary", "notes"],
    "env": ["torch", "python"],
    "show profile.json": ["scores", "batches"],
    "plan profile.json --curve --threshold 0.1 --output new.json": ["num_iterations", "teacher"],
    "train train.yaml --output-dir run": ["output_dir", "tokens", "validation_nll"],
    "profile TEACHER --data TEXT --output new.json --max-tokens 128 --metric cosine": ["scores", "batches"],
    "capture TEACHER --data LITTLE --output-dir signals --no-check-teacher": ["layout", "shards"],
    "evaluate TEACHER --data LITTLE": ["results", "settings"],
    "bench TEACHER --prompt-tokens 8 --new-tokens 2 --repeats 1": ["results", "settings"],
    "bench TEACHER --layers --prompt-tokens 8 --new-tokens 2 --repeats 1": ["decode", "prefill"],
    "generate TEACHER --prompt class --max-new-tokens 2": ["texts", "num_new_tokens"],
    "check TEACHER --no-compile --prompt-tokens 8 --new-tokens 4": ["results", "model"],
    "convert TEACHER released": ["destination", "converted"],
}


SLOW = [pytest.param(line, marks=pytest.mark.slow if line.startswith("check") else ()) for line in LINES]


@pytest.mark.parametrize("line", SLOW)
def test_with_json_and_quiet_stdout_is_the_result_and_stderr_is_empty(line, world, iiad):
    code, out, err = iiad(*(world.get(word, word) for word in line.split()), "--json", "--quiet")
    assert (code, err) == (0, "")
    *others, last = map(json.loads, out.splitlines())
    assert set(LINES[line]) <= last.keys()
    assert [each["kind"] for each in others] == (["curve"] if "--curve" in line else [])


def test_what_an_artefact_prints_as_json_is_what_its_file_holds(world, iiad, tmp_path):
    files = ["profile.json", "plan.json"]
    _, out, _ = iiad("show", *files, "--json")
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads((tmp_path / file).read_text()) for file in files
    ]


def test_what_a_library_prints_is_no_part_of_the_json(world, iiad, monkeypatch):
    monkeypatch.setattr("iiad.planning.make_plan", lambda *_: print("a library speaks"))
    code, out, err = iiad("plan", "profile.json", "--curve", "--threshold", "1", "--output", "x", "--json")
    assert code == 0
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["curve"]
    assert "a library speaks" in err


def test_problems_of_a_recipe_are_json_too_and_other_bad_input_is_one_line_on_stderr(world, iiad):
    code, out, err = iiad("validate", "demo", "--set", "model.num_layers=0", "--json", "--quiet")
    assert (code, json.loads(out)["problems"]) == (
        2,
        ["model.num_layers: expected greater than or equal to 1, got 0"],
    )
    code, out, err = iiad("show", "gone.json", "--json", "--quiet")
    assert (code, out, err) == (2, "", "iiad: gone.json: no such file\n")


def test_quiet_leaves_the_table_and_ends_with_its_command(world, iiad):
    plan = ["plan", "profile.json", "--threshold", "0.1", "--overwrite", "--output", "plan.json"]
    loud, quiet = iiad(*plan), iiad(*plan, "--quiet")
    assert quiet == (0, loud[1], "")
    assert "plan written to" in loud[2]
    assert iiad(*plan) == loud


def test_other_processes_than_the_first_print_no_result(world, iiad, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert iiad("show", "plan.json") == iiad("show", "plan.json", "--json") == (0, "", "")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_takes_json_and_quiet(command, iiad):
    _, out, _ = iiad(command.__name__, "--help")
    assert "--json" in out
    assert "--quiet" in out


def test_the_version_is_printed_and_nothing_is_imported_for_it(iiad):
    assert iiad("--version") == (0, f"iiad {package.__version__}\n", "")
    script = """if True:
        import sys
        from iiad_cli.main import run
        try:
            run()
        except SystemExit:
            print([name for name in "torch transformers numpy scipy pydantic yaml".split() if name in sys.modules])
    """
    command = [sys.executable, "-c", script, "--version"]
    assert "[]" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_shell_completes_commands(iiad, monkeypatch):
    for name, value in {
        "_IIAD_COMPLETE": "complete_bash",
        "COMP_WORDS": "iiad pr",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert iiad() == (0, "profile\n", "")


DISTILL = """
distill TEACHER PLAN --data LITTLE --output-dir run --set distillation.distill.max_steps=2 --set data.block_size=32
--set distillation.recover.max_steps=0 --set distillation.check_teacher=false
"""
TASKS = {
    "train": "train",
    "profile": "profiling",
    "capture": "capturing",
    "evaluate": "evaluating",
    "bench": "",
}
LONG = {line: TASKS[line.split()[0]] for line in LINES if line.split()[0] in TASKS}
LONG |= {DISTILL: "distill"}
LONG |= {"plan teacher.json --curve --verify TEACHER --data LITTLE --max-tokens 64": "verifying"}


@pytest.mark.parametrize("line", LONG)
def test_long_commands_say_how_long_they_will_take(line, world, iiad, plan_file, monkeypatch):
    words = {**world, "PLAN": plan_file}
    if "teacher.json" in line:
        made = "profile TEACHER --data TEXT --output teacher.json --max-tokens 64"
        assert iiad(*(words.get(word, word) for word in made.split()))[0] == 0
    for bound in ("_MEASURED_FOR", "_LONG"):
        monkeypatch.setattr(progress, bound, 0.0)
    code, _, err = iiad(*(words.get(word, word) for word in line.split()))
    assert code == 0
    assert re.search(rf"^{LONG[line]}.*: will take about ", err, re.MULTILINE)
