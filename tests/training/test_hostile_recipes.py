"""Every field of every recipe, and files that are made to harm: refused in printable lines, or harmless."""

import datetime
import time
from contextlib import suppress
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest

from iiad import memory
from iiad.errors import InputError, printable
from iiad.studies import Study
from iiad.training import DistillRecipe, TrainRecipe, estimates, load_recipe, recipe_summary
from iiad.training.estimates import find_excess
from iiad.training.problems import find_problems
from iiad.training.recipe_files import MOST_BYTES
from iiad.training.recipe_summary import summarize_recipe
from iiad.training.recipes import missing_inputs, shortened_fields
from tests.helpers import refused
from tests.studies.test_definition import FIELDS as STUDY
from tests.training.test_recipes import DISTILL, TRAIN, leaves, plant

NAN, INF = float("nan"), float("inf")
HUGE = [2**63, 10**31, -(10**31), 10**400, 1e300, -1e300]
RECURSIVE: list = []
RECURSIVE.append(RECURSIVE)

REFUSED = [
    NAN,
    INF,
    -INF,
    *HUGE,
    {},
    {"x": 1},
    [None],
    [[1]],
    RECURSIVE,
    {1: 2},
    b"x",
    datetime.date(2020, 1, 2),
]
"""Values that no field takes."""
WRONG = {
    bool: [True, False],
    str: ["1", "x", "x" * 5000, "nan", "true"],
    float: [0.123],
    int: [3, 0, -1],
    list: [[]],
}
"""Type -> values that only fields of the type, or of a wider one, may take."""


def types_of(annotation):
    """The plain types that an annotation accepts."""
    if get_origin(annotation) is Annotated:
        return types_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(types_of, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {get_origin(annotation) or annotation}


def annotation_of(kind, path):
    for name in path[:-1]:
        kind = kind.model_fields[name].annotation
    return kind.model_fields[path[-1]].annotation


CASES = [
    (kind, base, path)
    for kind, base in ((TrainRecipe, TRAIN), (DistillRecipe, DISTILL), (Study, STUDY))
    for path in leaves(kind)
]


@pytest.mark.parametrize(
    ("kind", "base", "path"), CASES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else ""
)
def test_every_field_refuses_what_it_is_not_and_what_it_takes_can_be_described(kind, base, path, monkeypatch):
    monkeypatch.setattr(recipe_summary, "measure_cpu", lambda: 1e10)
    accepted = types_of(annotation_of(kind, path))
    field = ".".join(path)
    is_text = path[0] == "data" and list in accepted  # a name alone is a list of one
    never = [value for value in REFUSED if not (isinstance(value, dict) and dict in accepted)]
    for type_, values in WRONG.items():
        if not takes(accepted, type_) and not (is_text and type_ is str):
            never += values
    for value in never:
        found = find_problems(kind, plant(base, {field: value}))
        assert any(line.startswith(field) for line in found), (value, found)
        assert all(len(line) < 300 and printable(line) == line for line in found)
    for value in [None, 0, 1, -1, 2, 0.5, 1.0, "", "x", 2**20, 2**40, True, [], [0], ["x"], 5e-324]:
        fields = plant(base, {field: value})
        if not find_problems(kind, fields):
            recipe = kind.model_validate(fields)
            if kind is Study:
                continue
            summarize_recipe(recipe), missing_inputs(recipe), shortened_fields(recipe), find_excess(recipe)


def takes(accepted, type_):
    return type_ in accepted or (type_ is int and float in accepted) or (type_ is list and list in accepted)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HEAD = "tokenizer: {vocab_size: 300}\ntraining: {max_steps: 2}\ndata:\n"
FILES = {
    "a bomb of aliases": (HEAD + "  train: [x]\n" + BOMB, "a: no such field"),
    "a bomb in a field": (BOMB + HEAD + "  train: *i\n", "data.train.0: expected a valid string, got [["),
    "a list of itself": (HEAD + "  train: &x [*x]\n", "data.train.0: expected a valid string, got [[["),
    "nested lists": ("data: " + "[" * 3000 + "]" * 3000, "expected YAML, got "),
    "nested maps": ("data: " + "{a: " * 5_000 + "}" * 5_000, "expected YAML, got "),
    "a tag that runs code": ("data: !!python/object/apply:os.system [touch harmed]", "expected YAML, got could not"),
    "no integer": ("data: !!int x", "expected YAML, got invalid literal"),
    "an integer beyond printing": (f"data: !!int '0x{'f' * 9000}'", "data: expected fields, got a number of thou"),
    "no boolean": ("data: !!bool x", "expected YAML, got 'x'"),
    "no date": ("data: !!timestamp x", "expected YAML, got 'NoneType'"),
    "a month 13": (HEAD + "  train: [!!timestamp 2020-13-45]", "expected YAML, got month must be in 1..12"),
    "a key that is a list": ("data: {[1]: 2}", "expected YAML, got "),
    "two keys": (HEAD + "  train: [x]\n  train: [y]", "expected YAML, got 'train' is there twice"),
    "a long key twice": (f"{'k' * 1000}: 1\n{'k' * 1000}: 2", "kkk' is there twice"),
    "half a character": (HEAD + '  train: ["\\ud800"]', "train.0: expected text that can be printed, got '\\ud800'"),
    "an escape": (HEAD + '  text_field: "\\e[2J"', "text_field: expected text that can be printed, got '\\x1b[2J'"),
    "a NUL": (HEAD + '  cache_dir: "a\\0"', "data.cache_dir: expected text that can be printed, got 'a\\x00'"),
    "an escape in a name": (HEAD + '  train: [x]\n"\\e[2J": 1', "expected text that can be printed, got '\\x1b[2J'"),
    "a long name": (HEAD + f"  train: [x]\n{'k' * 1000}: 1", f"{'k' * 60}...: no such field"),
    "a long value": (HEAD + f"  train: [x]\n  block_size: {'k' * 9000}", "data.block_size: expected a valid integer"),
    "no text": (b"data: \xff\xfe", "expected UTF-8 text, got invalid start byte at byte 6"),
    "NUL bytes": (b"\0" * 100, "expected YAML, got "),
    "too much": (b"x" * (MOST_BYTES + 1), "expected at most 262,144 bytes, got more"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_made_to_harm_is_one_short_line_in_a_moment(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = FILES[name]
    (tmp_path / "r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    with refused("r.yaml: ", message):
        load_recipe(TrainRecipe, "r.yaml")
    assert time.monotonic() - started < 5
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_a_recipe_cut_anywhere_is_read_or_refused(tmp_path):
    text = (
        HEAD + "  train: [stdlib]\n  block_size: 64\nmodel: {num_iterations: [1, 2], num_layers: 2}\n"
    ).encode()
    for end in range(len(text)):
        (tmp_path / "r.yaml").write_bytes(text[:end])
        with suppress(InputError):
            load_recipe(TrainRecipe, tmp_path / "r.yaml")


def test_dates_are_text(tmp_path):
    (tmp_path / "r.yaml").write_text(HEAD + "  train: [2020-01-02]\n")
    assert load_recipe(TrainRecipe, tmp_path / "r.yaml").data.train == ["2020-01-02"]


@pytest.mark.parametrize(
    "setting", ["data.train=!!int x", "data.train=" + "[" * 2000, 'data.train=["\\ud800"]']
)
def test_a_setting_made_to_harm_is_one_line(setting):
    with refused(f"--set {setting[:20]}"):
        load_recipe(TrainRecipe, None, [setting])


def test_weights_beyond_the_memory_are_refused_with_their_size(monkeypatch, iiad, tmp_path):
    monkeypatch.setattr(estimates, "machine_bytes", lambda: 2**30)
    recipe = TrainRecipe.model_validate(TRAIN)
    assert find_excess(recipe) is find_excess(recipe, states=True) is None
    assert find_excess(recipe, vocab_size=2**20) == (
        "model: expected weights within this machine's memory of 1.0 GiB, got 2.1 GiB, for 553 million parameters"
    )
    wide = (
        "--set model.hidden_size=131072 --set model.num_attention_heads=4 --set training.bf16=false".split()
    )
    code, out, err = iiad("validate", "demo", *wide)
    assert (code, out) == (2, "")
    assert "model: expected weights within this machine's memory of 1.0 GiB, got 1028 GiB" in err
    code, _, err = iiad("train", "demo", *wide, "--output-dir", tmp_path / "run")
    assert code == 2
    assert err.startswith(
        "iiad: model: expected weights, gradients and Adam's averages within this machine's memory"
    )
    assert list(tmp_path.iterdir()) == []


def test_memory_is_that_of_the_machine_or_of_its_container(monkeypatch):
    total = memory.machine_bytes()
    assert 2**28 < total < 2**50
    monkeypatch.setattr(memory, "_container_limit", lambda: (2**20, 2**10))
    assert memory.machine_bytes() == 2**20
