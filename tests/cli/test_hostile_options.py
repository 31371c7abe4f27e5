"""Every option of every command with values that no one means: one line and exit code 2, or 0; no fault of ours."""

import inspect
import random
import shutil
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

import pytest
import transformers
import yaml

from cli.main import COMMANDS
from cli.options import BOUNDS
from iiad.errors import InputError
from iiad.planning import plan_by_threshold
from iiad.studies import conduct
from iiad.training import teacher as training_teacher
from tests.helpers import make_profile, make_table

NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1e308",
    "9" * 120,
    "9" * 5000,
    "-" + "9" * 120,
    "",
    "x",
    "1e",
    "0x10",
    "-1",
    "True",
]
WORDS = [
    "", " ", ".", "-", "--", "~", "*", "[", "{}", "0", "null", "self", "auto", "stdlib:x", "\t", "a\nb", "x" * 5000,
    "é" * 300, "/dev/null", "/dev/zero", "missing/none", "a=b", "a.b=[", "3=2=1", "1=99999999999999999999", "0=1",
    "1=" + "9" * 5000, "9" * 5000, "states:length=" + "9" * 5000, "states:rows=0", "a.b=" + "9" * 5000,
    "owner/name", "../x",
]  # fmt: skip
NEGATIVE = {
    ("plan", "max_score"),
    *((command, "length_penalty") for command in ("capture", "evaluate", "generate")),
}
"""Options that take numbers below zero."""
SHARES = pytest.mark.parametrize("share", [0.05, pytest.param(1.0, marks=pytest.mark.slow)])
"""Share of the values that are tried."""


def parameters(*wanted):
    """Command, name, flag and types of every option and argument of these types."""
    for command in COMMANDS:
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
            annotation, *info = get_args(parameter.annotation) or (None,)
            if info:
                types = (
                    {annotation}
                    if get_origin(annotation) not in (Union, UnionType)
                    else {*get_args(annotation)}
                )
                types = {inner for kind in types for inner in (get_args(kind) or (kind,))}
                flags = [flag for flag in info[0].param_decls or () if flag.startswith("--")]
                flag = flags[0] if flags else f"--{name.replace('_', '-')}"
                is_argument = type(info[0]).__name__ == "ArgumentInfo"
                if types & set(wanted):
                    yield command.__name__, name, "" if is_argument else flag


@pytest.fixture
def lines(folders, tmp_path, monkeypatch):
    """A valid line of each command, in a folder of its own; what loads or makes a model stops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def stop(*arguments, **options):
        raise InputError("stopped before a model")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", stop)
    for name in ("build_model", "train_tokenizer"):
        monkeypatch.setattr(training_teacher, name, stop)
    monkeypatch.setattr(conduct, "conduct_study", stop)
    profile = make_profile()
    for artefact in (profile, plan_by_threshold(profile, 0.05), make_table(profile.model)):
        artefact.save(f"{artefact.kind}.json")
    fields = {"tokenizer": {"path": str(folders.teacher)}, "data": {"train": [str(folders.text)]}}
    Path("recipe.yaml").write_text(yaml.safe_dump({**fields, "training": {"max_steps": 1}}))
    teacher, text = folders.teacher, folders.text
    made = f"""
        validate recipe.yaml
        study depth-s3 --output-dir out
        train recipe.yaml --output-dir out
        profile {teacher} --data {text} --output out.json
        plan profile.json --threshold 0.05 --output out.json
        capture {teacher} --data {text} --output out
        distill {teacher} {folders.plan} --output-dir out --data {text}
        evaluate {teacher} --data {text}
        generate {teacher} --prompt a
        bench {teacher} --prompt-tokens 8 --new-tokens 4
        check {teacher}
        convert {teacher} out
        show profile.json
        report profile.json --output out.html
        demo --output-dir out
        env
    """.split("\n")
    return {line.split()[0]: line.split() for line in made if line.strip()}


def require_clean(result, *words):
    """Fail unless a command ended in good order, or in one line."""
    code, _, err = result
    assert code in (0, 2), (words, err)
    assert "a fault of iiad's" not in err, (words, err)
    assert "Traceback" not in err, (words, err)
    last = err.splitlines()[-1] if err else ""
    assert len(last) < 1200, words
    assert code == 0 or last.startswith("iiad: ") or words[0] == "validate", (words, err)
    for made in ("out", "out.json", "out.html"):
        if Path(made).is_file():
            Path(made).unlink()
        shutil.rmtree(made, ignore_errors=True)


def chosen(values, seed, share):
    return [value for value in values if random.Random(f"{seed}{value}").random() < share]


@SHARES
@pytest.mark.parametrize(("command", "name", "flag"), [*parameters(int, float)])
def test_every_number_has_bounds_that_are_checked_before_anything_loads(
    command, name, flag, share, lines, iiad
):
    for value in ["nan", "9" * 120, "-1", *chosen(NUMBERS, flag, share)]:
        if value == "-1" and (command, name) in NEGATIVE:
            continue
        code, out, err = iiad(*lines[command], f"{flag}={value}")
        assert (code, out) == (2, ""), value[:30]
        assert len(err.splitlines()) == 1
        assert len(err) < 1000
        assert err.startswith(f"iiad: {name}: expected from ") or f"Invalid value for '{flag}" in err
    assert not any(path.name.startswith("out") for path in Path().iterdir())


@SHARES
@pytest.mark.parametrize(("command", "name", "flag"), [*parameters(int, float)])
def test_every_number_within_bounds_is_used_or_refused(command, name, flag, share, lines, iiad):
    for value in chosen(
        ["0", "1", "2", "3", "0.5", "1000", str(2**20), *map(repr, BOUNDS[name])], flag, share
    ):
        require_clean(iiad(*lines[command], f"{flag}={value}"), command, flag, value)


@SHARES
@pytest.mark.parametrize(("command", "name", "flag"), [*parameters(str, Path)])
def test_every_text_and_path_is_used_or_refused(command, name, flag, share, lines, iiad):
    for value in chosen(WORDS, f"{command}{name}", share):
        words = list(lines[command])
        if flag:
            words.append(f"{flag}={value}")
        elif name == "plan":
            words[2] = value
        else:
            words[2 if name == "destination" else 1] = value
        require_clean(iiad(*words), *words)
