"""Recipes are checked whole, before anything loads, and every problem has a line of its own."""

import copy
from itertools import combinations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from iiad.training import DistillRecipe, TrainRecipe, load_recipe, recipe_files
from iiad.training.problems import find_problems
from iiad.training.recipe_files import read_fields
from iiad.training.recipes import shortened_fields
from tests.helpers import refused

TRAIN = {
    "model": {"num_layers": 5, "num_iterations": 2},
    "tokenizer": {"vocab_size": 300},
    "data": {"train": ["stdlib"], "block_size": 64},
    "training": {"max_steps": 200},
}
DISTILL = {"data": {"train": ["stdlib"]}, "distillation": {"distill": {"max_steps": 100}}}
KINDS = pytest.mark.parametrize("kind", [TrainRecipe, DistillRecipe])

GONE = object()
STAGE = "distillation.distill"

# What to plant, and the beginning of its line: unknown names, and values that are wrong in themselves.
TRAIN_PROBLEMS = [
    ({"model.hiden_size": 256}, "model.hiden_size: no such field (did you mean hidden_size?)"),
    ({"model.num_layers": 0}, "model.num_layers: expected greater than or equal to 1, got 0"),
    ({"model.num_iterations": [1, "a"]}, "model.num_iterations: expected an integer, or a list of integers, one"),
    ({"model.num_attention_heads": {}}, "model.num_attention_heads: expected a valid integer, got {}"),
    ({"model.attention_dropout": 1}, "model.attention_dropout: expected less than 1, got 1"),
    ({"model.solver": "llama"}, "model.solver: expected 'transformer', 'iiet' or 'pcformer', got 'llama'"),
    ({"model.initializer_range": float("inf")}, "model.initializer_range: expected a finite number, got inf"),
    ({"tokenizer.vocab_size": 256}, "tokenizer.vocab_size: expected greater than or equal to 257, got 256"),
    ({"data.train": []}, "data.train: expected at least 1 item, got []"),
    ({"data.validation": 3}, "data.validation: expected a valid list, got 3"),
    ({"training.max_steps": 1.5}, "training.max_steps: expected a valid integer, got 1.5"),
    ({"training.warmup_steps": True}, "training.warmup_steps: expected a number of steps, or a share"),
    ({"training.learning_rate": float("nan")}, "training.learning_rate: expected "),
    ({"training.weight_decay": True}, "training.weight_decay: expected a valid number, got True"),
    ({"training.adam_beta1": "0.9"}, "training.adam_beta1: expected a valid number, got '0.9'"),
    ({"training.bf16": "yes"}, "training.bf16: expected true, false or auto, got 'yes'"),
    ({"training.gradient_checkpointing": "lyer"}, "training.gradient_checkpointing: expected true, false, layer or"),
    ({"training.torch_compile": 1}, "training.torch_compile: expected a valid boolean, got 1"),
    ({"training.report_to": [1]}, "training.report_to.0: expected a valid string, got 1"),
    ({"training.seed": -1}, "training.seed: expected greater than or equal to 0"),
    ({"training.block_size": 3}, "training.block_size: no such field (did you mean data.block_size?)"),
    ({"training.7": 3}, "training.7: no such field (there are: "),
    ({"nonsense": {"a": 1}}, "nonsense: no such field (there are: model, tokenizer, data, training)"),
]  # fmt: skip
DISTILL_PROBLEMS = [
    ({"distillation.distil": {"warmup_steps": 0}}, "distillation.distil: no such field (did you mean distill?)"),
    ({"distillation.recover.max_step": 99}, "distillation.recover.max_step: no such field (did you mean max_steps?)"),
    ({"distillation.layerwise": 7}, "distillation.layerwise: expected fields, got 7"),
    ({"distillation.temperature": 0}, "distillation.temperature: expected greater than or equal to 0.01"),
    ({"student.start_norm": "x"}, "student.start_norm: expected 'start' or 'update', got 'x'"),
    ({"student.int": "x"}, "student.int: no such field (did you mean init?)"),
    ({"training.max_steps": 3}, "training.max_steps: no such field (did you mean distillation.l"),
    ({"training.eval_steps": 0}, "training.eval_steps: expected greater than or equal to 1, got 0"),
    ({"data.text_field": ""}, "data.text_field: expected at least 1 character, got ''"),
]  # fmt: skip

# The same for conflicts between fields.
TRAIN_CONFLICTS = [
    ({"model.num_iterations": [1, 2]}, "model.num_iterations: expected one number or 5 (num_layers), got [1, 2]"),
    ({"model.num_iterations": -1}, "model.num_iterations: expected from 0 to 1000, got -1"),
    ({"model.num_iterations": 10**9}, "model.num_iterations: expected from 0 to 1000, got 1000000000"),
    ({"model.num_attention_heads": 3}, "model.hidden_size: expected a multiple of num_attention_heads (3), got 512"),
    ({"model.num_key_value_heads": 3}, "model.num_key_value_heads: expected a divisor of num_attention_heads (4)"),
    ({"model.head_dim": 5}, "model.head_dim: expected even, for rotary position embeddings"),
    ({"model.relaxation": True}, "model.relaxation: expected false with history, got True"),
    ({"tokenizer.path": "a"}, "tokenizer.vocab_size: expected none beside path, got 300"),
    ({"data.block_size": 9999}, "data.block_size: expected at most model.max_position_embeddings (2048), got 9999"),
    ({"training.decay_steps": 3}, "training.decay_steps: expected none with lr_scheduler_type cosine; only"),
    (
        {"training.lr_scheduler_type": "constant_with_warmup", "training.min_lr_ratio": 0.1},
        "training.min_lr_ratio: expected 0 with lr_scheduler_type constant_with_warmup, which has no end, got 0.1",
    ),
]  # fmt: skip
STABLE = {f"{STAGE}.lr_scheduler_type": "warmup_stable_decay"}
DISTILL_CONFLICTS = [
    ({f"{STAGE}.max_steps": 0, "distillation.recover.max_steps": 0}, f"{STAGE}.max_steps: expected above 0 in at"),
    (
        {"distillation.ce_weight": 0, "distillation.kl_weight": 0},
        "distillation.ce_weight: expected above 0, or kl_weight or hidden_weight",
    ),
    ({"distillation.hidden_layers": [2, 2]}, "distillation.hidden_layers: expected different numbers from 0 on"),
    ({"student.start_norm": "update", "student.init": "random"}, "student.start_norm: expected start with init"),
    ({"distillation.retain": 0.5, "data.validation": "x"}, "training.eval_steps: expected a number, to measure"),
    ({"distillation.retain": 0.5, "training.eval_steps": 5}, "data.validation: expected text to measure"),
    (
        {"training.decay_steps": 51, "training.lr_scheduler_type": "warmup_stable_decay", f"{STAGE}.max_steps": 500},
        None,
    ),
    (
        {"training.decay_steps": 2, f"{STAGE}.lr_scheduler_type": "linear"},
        "training.decay_steps: expected none with lr_scheduler_type cosine, linear",
    ),
    ({"training.decay_steps": 2, f"{STAGE}.max_steps": 0, **STABLE}, "training.decay_steps: expected none"),
    ({"training.min_lr_ratio": 0.1, "training.lr_scheduler_type": "constant_with_warmup", **STABLE}, None),
    (
        {"training.min_lr_ratio": 0.1, "training.lr_scheduler_type": "constant_with_warmup"},
        "training.min_lr_ratio: expected 0 with",
    ),
]  # fmt: skip


def plant(base, changes):
    fields = copy.deepcopy(base)
    for path, value in changes.items():
        *sections, name = path.split(".")
        place = fields
        for section in sections:
            place = place.setdefault(section, {})
        if value is GONE:
            place.pop(name)
        else:
            place[name] = value
    return fields


@pytest.fixture
def load(tmp_path):
    """Load a recipe from fields or the text of a file."""

    def run(fields, *arguments, kind=TrainRecipe):
        path = tmp_path / "recipe.yaml"
        path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
        return load_recipe(kind, path, *arguments)

    return run


@pytest.mark.parametrize(
    ("kind", "base", "table"), [(TrainRecipe, TRAIN, TRAIN_PROBLEMS), (DistillRecipe, DISTILL, DISTILL_PROBLEMS)]
)  # fmt: skip
def test_all_unknown_names_and_wrong_values_are_reported_and_nothing_else(kind, base, table):
    assert find_problems(kind, base) == []
    for size in (1, 2, len(table)):
        for chosen in combinations(table, size):
            fields = plant(base, {path: value for changes, _ in chosen for path, value in changes.items()})
            before = repr(fields)
            found = find_problems(kind, fields)
            assert repr(fields) == before
            assert len(found) == size, found
            assert all(sum(line.startswith(start) for line in found) == 1 for _, start in chosen), found


@pytest.mark.parametrize(
    ("kind", "base", "changes", "line"),
    [(TrainRecipe, TRAIN, *row) for row in TRAIN_CONFLICTS]
    + [(DistillRecipe, DISTILL, *row) for row in DISTILL_CONFLICTS],
)
def test_a_conflict_between_fields_is_one_line_that_names_the_field(kind, base, changes, line):
    found = find_problems(kind, plant(base, changes))
    assert len(found) == (line is not None)
    assert line is None or found[0].startswith(line), found


def test_conflicts_of_several_sections_stand_beside_wrong_fields_of_others():
    changes = {"model.head_dim": 5, "model.relaxation": True, "training.decay_steps": 3, "data.train": []}
    found = find_problems(TrainRecipe, plant(TRAIN, changes))
    fields = ["model.head_dim", "model.relaxation", "data.train", "training.decay_steps"]
    assert [line.partition(":")[0] for line in found] == fields


def leaves(kind, prefix=()):
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, (*prefix, name))
        else:
            yield (*prefix, name)


@KINDS
def test_a_misspelling_of_any_field_is_caught_and_the_right_name_suggested(kind):
    for *sections, name in leaves(kind):
        middle = len(name) // 2
        doubled, dropped = name[:middle] + name[middle - 1 :], name[:middle] + name[middle + 1 :]
        swapped = name[:middle] + name[middle:][1::-1] + name[middle + 2 :]
        for wrong in (f"{name}s", doubled, dropped, swapped):
            path = ".".join([*sections, wrong])
            [line, *_] = find_problems(kind, plant(TRAIN if kind is TrainRecipe else DISTILL, {path: 1}))
            assert line == f"{path}: no such field (did you mean {name}?)"


def test_a_misspelled_field_is_not_missing_too_and_what_it_holds_is_checked():
    fields = plant(
        TRAIN, {"model": GONE, "modle": {"num_layers": 0, "wdth": 3}, "data.train": GONE, "data.trian": 3}
    )
    assert [problem.partition(" (")[0] for problem in find_problems(TrainRecipe, fields)] == [
        "modle: no such field",
        "model.wdth: no such field",
        "data.trian: no such field",
        "model.num_layers: expected greater than or equal to 1, got 0",
        "data.train: expected a valid list, got 3",
    ]


def test_an_empty_recipe_says_what_it_needs():
    assert find_problems(TrainRecipe, {}) == [
        "data.train: is missing",
        "training.max_steps: is missing",
    ]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 4096), st.floats(), st.text(max_size=3),
    st.sampled_from(["iiet", "cosine", "stdlib", "warmup_stable_decay", "layer"]),
    st.lists(st.integers(-1, 3), max_size=3), st.dictionaries(st.sampled_from(["max_steps", "path"]), st.integers()),
)  # fmt: skip


def some_fields(kind):
    """Fields of a recipe, of any kind of value, with sections where there are some."""
    known = {}
    for name, field in kind.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        known[name] = st.one_of(some_fields(field.annotation), VALUES) if is_section else VALUES
    return st.fixed_dictionaries({}, optional={**known, "extra": VALUES, 3: VALUES})


@KINDS
@settings(max_examples=50)
@given(data=st.data())
def test_there_are_no_problems_exactly_where_the_recipe_is_accepted(kind, data):
    fields = data.draw(some_fields(kind))
    found = find_problems(kind, fields)
    assert len(set(found)) == len(found)
    try:
        kind.model_validate(fields)
    except ValidationError:
        assert found
    else:
        assert found == []


def test_settings_beat_the_file_and_the_file_beats_the_defaults(load):
    fields = {**TRAIN, "model": {"num_layers": 5, "history": True}}
    settings = [
        "model.num_layers=7",
        "data.train=[a.txt, b.txt]",
        "data.validation=c.txt",
        "model.solver=transformer",
    ]
    recipe = load(fields, [*settings, "training.learning_rate=1e-3"])
    assert (recipe.model.num_layers, recipe.model.hidden_size) == (7, 512)
    assert (recipe.data.train, recipe.data.validation) == (["a.txt", "b.txt"], ["c.txt"])
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (1e-3, 200)
    assert recipe.model.unused_fields() == ["history"]
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.max_steps = 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train=[*.txt]", "quote a name that begins with *"),
        ("max_steps=3", "expected section.field=value"),
        ("training.max_steps", "expected section.field=value"),
        ("training.max_steps=[1", "expected YAML after =, got [1; put it in quotes"),
        ("training.max_steps.x=1", "expected a section before the last dot, got field max_steps"),
        ("training.max_steps=010", "training.max_steps: expected a valid integer, got '010'"),
        (
            "training.warmup_steps=1:30",
            "training.warmup_steps: expected a number of steps, or a share of max_steps",
        ),
        ("training.learning_rate=.nan", "training.learning_rate: expected a finite number, got nan"),
        ("training.learning_rate=-1e-3", "training.learning_rate: expected greater than 0, got -0.001"),
        ("training.adam_epsilon=0x1", "training.adam_epsilon: expected a valid number, got '0x1'"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused_in_one_line(setting, message, load):
    with refused(message):
        load(TRAIN, [setting])


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-1_000", -1000), ("0", 0), ("1e3", 1e3), ("1.", 1.0), (".5", 0.5), ("-.inf", float("-inf")),
     ("00", "00"), ("08", "08"), ("1:30.5", "1:30.5"), ("0o7", "0o7"), ("0b1", "0b1"), (".", ".")],
)  # fmt: skip
def test_numbers_are_read_as_in_json(text, value, tmp_path):
    (tmp_path / "numbers.yaml").write_text(f"a: {{b: {text}}}")
    read = read_fields(tmp_path / "numbers.yaml")["a"]["b"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "expected YAML, got "),
        ("just text", "expected sections (model, tokenizer, data, ...), got 'just text'"),
        ("data: {train: [a]}\ndata: {train: [b]}", "there twice"),
        ("data: {[1]: 2}", "expected YAML"),
        ("[" * 1000, "expected YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(text, message, load):
    with refused(message):
        load(text)


def test_a_name_that_no_file_has_is_refused_with_those_that_ship():
    with refused("recipe: expected a file or one of 1.3b, 340m"):
        load_recipe(TrainRecipe, "missing.yaml")


def test_a_recipe_of_the_other_command_is_one_short_line(load):
    for_train = "expected a recipe for `iiad distill`, got one for `iiad train`"
    with refused(f"demo: {for_train}"):
        load_recipe(DistillRecipe, "demo")
    with refused("demo-distill: expected a recipe for `iiad train`, got one for `iiad distill`"):
        load_recipe(TrainRecipe, "demo-distill")
    with refused(f"recipe.yaml: {for_train}"):  # whatever the command line puts over it
        load(TRAIN, ["student.init=random"], {"distillation": {"retain": 0.9}}, kind=DistillRecipe)
    for kind, field in ((TrainRecipe, "student"), (DistillRecipe, "tokenizer")):
        with refused(f"{field}: no such field"):
            load({**TRAIN, "student": {}}, kind=kind)


@pytest.mark.parametrize(
    ("name", "kind", "setting", "lines"),
    [
        ("demo", TrainRecipe, "training.max_steps=5", ["training.warmup_steps: 30 cut to max_steps, 5"]),
        ("demo", TrainRecipe, "training.max_steps=30", []),
        ("55m", TrainRecipe, "training.max_steps=2", ["training.warmup_steps: 100 cut to max_steps, 2"]),
        (
            "distill-55m",
            DistillRecipe,
            "distillation.distill.max_steps=10",
            ["distillation.distill.warmup_steps: 100 cut to max_steps, 10"],
        ),
        ("distill-55m", DistillRecipe, "distillation.distill.max_steps=0", []),
        ("demo-distill", DistillRecipe, "distillation.distill.max_steps=3", []),  # its warm-up is a share
    ],
)
def test_fewer_steps_than_the_warm_up_cut_it_and_say_so(name, kind, setting, lines):
    assert shortened_fields(load_recipe(kind, name, [setting])) == lines


def test_fewer_steps_than_the_decay_cut_it_and_say_so():
    stable = ["training.lr_scheduler_type=warmup_stable_decay", "training.decay_steps=300"]
    recipe = load_recipe(TrainRecipe, "demo", [*stable, "training.max_steps=50"])
    assert shortened_fields(recipe) == [
        "training.decay_steps: 300 cut to 20, training.max_steps less its warm-up"
    ]


def test_a_recipe_is_read_once(tmp_path, monkeypatch):
    path, reads, original = tmp_path / "recipe.yaml", [], recipe_files.read_whole
    path.write_text("tokenizer: {path: t}\ndata: {train: [a]}\ntraining: {max_steps: 3}\n")
    monkeypatch.setattr(
        recipe_files, "read_whole", lambda file, most: reads.append(file) or original(file, most)
    )
    recipe = load_recipe(TrainRecipe, path, ["training.max_steps=4"])
    assert (recipe.training.max_steps, reads) == (4, [path])
