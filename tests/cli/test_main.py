"""The command line: help, one clear line for what is wrong, and the pipeline end to end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli import main
from cli.options import all_data, gather_data, split_data
from iiad.conversion import released
from iiad.errors import InputError, Unfinished
from iiad.evaluation import Evaluation
from iiad.planning import Plan
from iiad.training import RunRecord
from iiad.training.recipe_files import find_recipe

pytestmark = pytest.mark.xdist_group("pipeline")  # made once, by the process that runs these tests

COMMANDS = "train profile plan capture distill evaluate generate bench check convert demo env".split()


@pytest.fixture(autouse=True)
def wide_and_quiet(monkeypatch, cache_dir):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("IIAD_CACHE", str(cache_dir))
    monkeypatch.delenv("IIAD_DEBUG", raising=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, iiad):
    code, out, _ = iiad(command, "--help")
    assert code == 0
    assert f"Example:  iiad {command}" in out
    for recipe in re.findall(r"iiad train (\w\S+)|--recipe (\w\S+)", out):
        assert find_recipe(next(filter(None, recipe))).exists()


def test_a_bare_call_shows_the_commands(iiad):
    _, out, err = iiad()
    assert all(command in out + err for command in COMMANDS)
    assert "iiad: \n" not in err


@pytest.mark.parametrize("arguments", [["x" * 5000], ["plan", "--" + "y" * 5000], ["show", "z" * 5000]])
def test_a_name_of_thousands_of_characters_is_cut(arguments, iiad):
    code, _, err = iiad(*arguments)
    assert code == 2
    assert len(err) < 500


@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize("argument", ["half \udcff", "a\x1b[2J", "\x7f"])
def test_arguments_that_are_not_utf8_or_move_the_cursor_are_refused_first(argument, place, iiad):
    arguments = ["generate", "nowhere", "--prompt", "text"]
    arguments[place] = argument
    expected = f"iiad: arguments: {place}: expected text that can be printed, got {argument!r}\n"
    assert iiad(*arguments) == (2, "", expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument"),
        (["train", "demo"], "Missing option '--output-dir'"),
        (["plan", "p.json", "--threshold", "many", "--output", "q.json"], "Invalid value for '--threshold'"),
        (["plan", "missing.json", "--threshold", "1", "--output", "q.json"], "missing.json: no such file"),
        (["train", "missing.yaml", "--output-dir", "x"], "recipe: expected a file or one of"),
        (["generate", "missing", "--prompt", "a"], "missing: no such model folder"),
        (["generate", "owner/missing", "--prompt", "a"], "owner/missing: cannot be loaded"),
        (["evaluate", "missing", "--data", "stdlib"], "missing: no such model folder"),
        (["distill", "owner/t", "--output-dir", "x"], "--data: expected text"),
        (["convert", "missing", "there"], "missing: no such model folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, iiad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = iiad(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            ZeroDivisionError("oh\nno"),
            1,
            "ZeroDivisionError: oh no (a fault of iiad's; `iiad --debug` shows where)",
        ),
        (InputError("field: expected a, got b"), 2, "field: expected a, got b"),
        (OSError(28, "No space left"), 2, "No space left"),
        (OSError(28, "No space left", "there/file"), 2, "there/file: No space left"),
        (MemoryError(), 2, "out of memory: a smaller model, batch or context helps"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto allocate 9 bytes."),
            2,
            "out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        ),
        (InputError("a\x1b[2J\nb\ud800" + "x" * 5000), 2, f"a\\x1b[2J\\nb\\ud800{'x' * 183}...{'x' * 100}"),
        (Unfinished("saved, go on with --resume"), 75, "saved, go on with --resume"),
        (KeyboardInterrupt(), 130, "interrupted; a run goes on with --resume"),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(error, code, line, iiad, monkeypatch):
    monkeypatch.setattr(released, "convert", Mock(side_effect=error))
    assert iiad("convert", "owner/a", "b") == (code, "", f"iiad: {line}\n")


@pytest.mark.parametrize(("given", "found"), [(None, "1000"), ("5", "5")])
def test_threads_that_wait_sleep_unless_the_user_wants_it_otherwise(given, found, iiad, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    assert iiad("--help")[0] == 0
    assert os.environ["GOMP_SPINCOUNT"] == found


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["iiad", "--debug", "convert", "missing", "there"])
    with pytest.raises(ValueError, match="no such model folder"):
        main.run()


def test_data_takes_several_values_as_a_shell_gives_them():
    arguments = ["evaluate", "m", "--data", "a", "b", "--plan", "p", "--data", "c", "d", "e"]
    gathered = gather_data(arguments)
    assert gathered[:3] == ["evaluate", "m", "--data"]
    assert gathered[4:7] == ["--plan", "p", "--data"]
    assert split_data([gathered[3], gathered[7]]) == [["a", "b"], ["c", "d", "e"]]
    assert all_data([gathered[3], gathered[7]]) == ["a", "b", "c", "d", "e"]


def test_tasks_and_their_data_take_several_values_too():
    gathered = gather_data("evaluate m --tasks a b --task-data a=x b=y --data t u".split())
    assert [all_data([gathered[place]]) for place in (3, 5, 7)] == [["a", "b"], ["a=x", "b=y"], ["t", "u"]]


@given(st.lists(st.sampled_from(["--plan", "x", "--data=y", "-h", "-"])))
def test_arguments_without_data_are_left_alone(arguments):
    assert gather_data(arguments) == arguments


def test_the_command_is_installed_and_does_not_import_torch_for_help():
    script = "import sys; sys.argv = ['iiad', '--help']\nfrom iiad_cli.main import run\n"
    script += "try:\n    run()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert (Path(sys.executable).parent / "iiad").exists()


@pytest.fixture(scope="module")
def pipeline(teacher_folder, text_file, little_text, cache_dir, tmp_path_factory):
    """profile.json, plan.json and a student, made by the command line."""
    folder = tmp_path_factory.mktemp("pipeline")
    profile, plan, recipe = folder / "profile.json", folder / "plan.json", folder / "recipe.yaml"
    stage = {"max_steps": 2, "warmup_steps": 0}
    fields = {
        "data": {"train": ["replaced by --data"], "block_size": 32, "validation": [str(little_text)]},
        "distillation": {"distill": stage, "recover": stage, "check_teacher": False},
        "training": {"per_device_train_batch_size": 4},
    }
    recipe.write_text(yaml.safe_dump(fields))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IIAD_CACHE", str(cache_dir))
        for line in (
            f"profile {teacher_folder} --data {text_file} --output {profile} --max-tokens 512",
            f"plan {profile} --threshold 1e9 --output {plan}",
            f"distill {teacher_folder} {plan} --data {text_file} --output-dir {folder / 'student'} --recipe {recipe}",
        ):
            patch.setattr(sys, "argv", ["iiad", *line.split()])
            with pytest.raises(SystemExit, match=r"^0$"):
                main.run()
    return folder


def test_the_pipeline_makes_a_student_of_the_plan(pipeline, teacher_folder):
    plan = Plan.load(pipeline / "plan.json")
    assert plan.num_iterations == [0, 0]
    record = RunRecord.load(pipeline / "student" / "run.json")
    assert record.finished
    assert record.results["overhead_cut"] == 1.0
    assert json.loads((pipeline / "student" / "config.json").read_text())["num_iterations"] == [0, 0]


def test_evaluate_compares_teacher_truncated_teacher_and_student(
    iiad, pipeline, teacher_folder, little_text, tmp_path
):
    output = tmp_path / "evaluation.json"
    code, out, _ = iiad(
        "evaluate", teacher_folder, pipeline / "student", "--data", little_text,
        "--plan", pipeline / "plan.json", "--output", output,
    )  # fmt: skip
    assert code == 0
    assert "truncated" in out
    results = Evaluation.load(output).results
    assert [result.evaluations_per_token for result in results] == [6, 2, 2]
    assert [result.overhead_cut for result in results] == [0.0, 1.0, 1.0]
    assert results[0].retained == 1.0
    before = output.read_bytes()
    code, _, err = iiad("evaluate", teacher_folder, "--data", little_text, "--output", output)
    assert (code, output.read_bytes()) == (2, before)
    assert "exists already" in err


def test_generate_bench_and_convert_run_on_the_student(iiad, pipeline, tmp_path):
    student, released, back = pipeline / "student", tmp_path / "released", tmp_path / "back"
    for line, words in (
        (("generate", student, "--prompt", "The layer", "--max-new-tokens", 4), "The layer"),
        (("bench", student, "--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 1), "1.00x"),
        (("convert", student, released), "released format"),
        (("convert", released, back), "IIET, 0 iterations"),
    ):
        code, out, _ = iiad(*line)
        assert code == 0
        assert words in out
    assert (back / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
    assert json.loads((back / "config.json").read_text())["num_iterations"] == [0, 0]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    code, _, err = iiad("convert", student, tmp_path / "taken")
    assert code == 2
    assert "nothing was overwritten" in err
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_a_plan_for_another_teacher_is_refused_everywhere(iiad, pipeline, text_file, tmp_path):
    other = pipeline / "student"  # other weights than the plan's teacher
    for command in (
        ["evaluate", other, "--data", text_file, "--plan", pipeline / "plan.json"],
        ["bench", other, "--plan", pipeline / "plan.json", "--prompt-tokens", 8, "--new-tokens", 4],
        ["distill", other, pipeline / "plan.json", "--data", text_file, "--output-dir", tmp_path / "run"],
        ["generate", other, "--prompt", "a", "--plan", pipeline / "plan.json"],
    ):
        code, _, err = iiad(*command)
        assert code == 2, command
        assert "expected one for teacher" in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_artefact_is_named_with_what_is_wrong(iiad, pipeline, tmp_path):
    damaged, profile = tmp_path / "profile.json", json.loads((pipeline / "profile.json").read_text())
    profile["scores"]["kl"][0][0] = float("nan")
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[]", "profile.json: expected a JSON object, got a list"),
        ((pipeline / "plan.json").read_text(), "profile.json: kind: expected 'profile', got 'plan'"),
        (json.dumps(profile), "scores"),
    ):
        damaged.write_text(text)
        code, _, err = iiad("plan", damaged, "--threshold", "0", "--output", tmp_path / "plan.json")
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1


MISSING = """
import sys
from iiad_cli import main

codes = []
for line in sys.stdin.read().splitlines():
    sys.argv = ["iiad", *line.split()]
    try:
        main.run()
    except SystemExit as end:
        codes.append(end.code)
assert set(codes) == {2}, codes
assert "torch" not in sys.modules
"""
NO_MODEL = "gone: no such model folder"
NO_TEXT = "inputs: expected a file, folder or pattern that matches one, got 'gone'"


def test_missing_models_texts_and_plans_are_refused_before_torch_is_imported(teacher_folder, pipeline):
    teacher, plan = teacher_folder, pipeline / "plan.json"
    lines = {
        "profile gone --data stdlib --output p.json": NO_MODEL,
        f"profile {teacher} --data gone --output p.json": NO_TEXT,
        "capture gone --data stdlib --output s": NO_MODEL,
        f"capture {teacher} --data gone --output s": NO_TEXT,
        f"evaluate {teacher} gone --data stdlib": NO_MODEL,
        f"evaluate {teacher} --data stdlib gone": NO_TEXT,
        f"evaluate {teacher} --data stdlib --plan gone.json": "gone.json: no such file",
        "generate gone --prompt a": NO_MODEL,
        f"generate {teacher} --draft gone --prompt a": NO_MODEL,
        f"bench {teacher} gone": NO_MODEL,
        f"bench {teacher} --plan gone.json": "gone.json: no such file",
        "check gone": NO_MODEL,
        f"check {teacher} --teacher gone": NO_MODEL,
        "convert gone there": NO_MODEL,
        f"distill gone {plan} --data stdlib --output-dir s": NO_MODEL,
        f"distill {teacher} gone --data stdlib --output-dir s": "gone: no such file",
        f"distill {teacher} {plan} --data gone --output-dir s": "data.train: no file gone here",
        f"distill {teacher} {plan} --data stdlib --signals gone --output-dir s": "signals: no folder gone here",
        f"plan {pipeline / 'profile.json'} --curve --verify gone --data stdlib": NO_MODEL,
        "train demo --set data.train=gone --output-dir t": "data.train: no file gone here",
        "train documentation --set data.train=stdlib --set data.validation=stdlib --set tokenizer.path=/gone "
        "--set tokenizer.vocab_size=null --output-dir t": "tokenizer.path: no folder /gone here",
    }
    found = subprocess.run(
        [sys.executable, "-c", MISSING], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    for (line, words), said in zip(lines.items(), found.stderr.splitlines(), strict=True):
        assert words in said, line


SEEDS = [
    "generate {teacher} --prompt a",
    "bench {teacher}",
    "bench {teacher} --layers",
    "check {teacher}",
    "profile {teacher} --data {text} --output out.json",
    "plan profile.json --threshold 1 --output plan.json",
]


@pytest.mark.parametrize("line", SEEDS)
@pytest.mark.parametrize("seed", ["-1", "2147483648", "9" * 23])
def test_every_seed_has_the_same_bounds_in_every_command(line, seed, iiad, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profile.json").write_text("{}")
    code, out, err = iiad(*line.format(**vars(folders)).split(), "--seed", seed)
    assert (code, out) == (2, "")
    assert err == f"iiad: seed: expected from 0 to 2147483647, got {seed}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


@pytest.mark.parametrize("value", ["1e308", "nan", "inf", "-1"])
def test_a_limit_of_memory_that_is_none_is_refused(value, iiad, folders, tmp_path):
    output = tmp_path / "profile.json"
    line = ("profile", folders.teacher, "--data", folders.text, "--output", output, "--memory-gib", value)
    code, _, err = iiad(*line)
    assert (code, output.exists()) == (2, False)
    assert err == f"iiad: memory_gib: expected from 0 to 1,048,576, got {float(value)}\n"
