"""Recipes are checked whole, before anything loads, and say what is wrong."""

import copy

import pytest
import yaml
from pydantic import BaseModel

from iiad import InputError
from iiad.training import DistillRecipe, TrainRecipe, load_recipe

GOOD = {
    "tokenizer": {"vocab_size": 300},
    "data": {"train": ["stdlib"], "block_size": 64},
    "training": {"max_steps": 200},
}


def write(tmp_path, fields):
    path = tmp_path / "recipe.yaml"
    path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
    return path


def refusal(path, settings=(), kind=TrainRecipe):
    with pytest.raises(InputError) as error:
        load_recipe(kind, path, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_settings_beat_the_file_and_the_file_beats_the_defaults(tmp_path):
    path = write(tmp_path, {**GOOD, "model": {"num_layers": 5}})
    recipe = load_recipe(
        TrainRecipe, path, ["model.num_layers=7", "data.train=[a.txt, b.txt]", "training.bf16=true"]
    )
    assert recipe.model.num_layers == 7
    assert recipe.model.hidden_size == 512
    assert recipe.data.train == ["a.txt", "b.txt"]
    assert recipe.training.bf16 is True
    assert recipe.training.max_steps == 200


def leaves(kind, prefix=()):
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, (*prefix, name))
        else:
            yield (*prefix, name)


@pytest.mark.parametrize("kind", [TrainRecipe, DistillRecipe])
def test_a_misspelling_of_any_field_is_caught_and_the_right_name_suggested(kind, tmp_path):
    base = GOOD if kind is TrainRecipe else {"data": GOOD["data"]}
    for *sections, name in leaves(kind):
        fields = copy.deepcopy(base)
        place = fields
        for section in sections:
            place = place.setdefault(section, {})
        place[name + "x"] = 1
        message = refusal(write(tmp_path, fields), kind=kind)
        assert ".".join([*sections, name + "x"]) + ": no such field" in message
        assert f"did you mean {name}?" in message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.max_steps=0", "training.max_steps: input should be greater than or equal to 1, found 0"),
        ("training.max_steps=1.5", "training.max_steps"),
        ("training.learning_rate=0", "training.learning_rate: input should be greater than 0, found 0"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("training.learning_rate=-1e-3", "training.learning_rate"),
        ("training.iterations_start=1.1", "training.iterations_start"),
        ("training.warmup_steps=300", "warmup_steps must be at most max_steps (200), found 300"),
        ("training.lr_scheduler_type=cosin", "training.lr_scheduler_type"),
        ("training.seed=-1", "training.seed"),
        ("model.attention_dropout=1", "model.attention_dropout"),
        ("model.num_iterations=-1", "num_iterations must be at least 0"),
        ("model.num_iterations=[1,2]", "num_iterations must be one number or 12 (num_layers)"),
        ("model.solver=llama", "model.solver"),
        (
            "model.num_attention_heads=3",
            "hidden_size must be a multiple of num_attention_heads (3), found 512",
        ),
        ("model.num_key_value_heads=3", "num_key_value_heads must divide num_attention_heads (4), found 3"),
        ("model.head_dim=5", "head_dim must be even"),
        ("model.num_layers=99999999999", "model.num_layers"),
        ("model.relaxation=true", "relaxation is for history: false"),
        ("data.train=[*.txt]", "a name that begins with * must be quoted"),
        ("tokenizer.path=somewhere", "give either path or vocab_size"),
        ("tokenizer.vocab_size=256", "tokenizer.vocab_size"),
        ("data.train=[]", "data.train"),
        (
            "data.block_size=4096",
            "data.block_size must be at most model.max_position_embeddings (2048), found 4096",
        ),
        ("max_steps=3", "must be section.field=value"),
        ("training.max_steps", "must be section.field=value"),
        ("training.max_steps=[1", "cannot be read as YAML"),
    ],
)
def test_a_value_out_of_range_names_field_bound_and_value(setting, message, tmp_path):
    assert message in refusal(write(tmp_path, GOOD), [setting])


def test_all_problems_are_reported_at_once(tmp_path):
    message = refusal(write(tmp_path, GOOD), ["training.max_steps=0", "model.num_layers=0", "data.trian=[x]"])
    assert all(field in message for field in ("training.max_steps", "model.num_layers", "data.trian"))


def test_files_that_are_no_recipe_are_refused(tmp_path):
    assert "no such recipe file" in refusal(tmp_path / "missing.yaml")
    assert "cannot be read as YAML" in refusal(write(tmp_path, "a: [1"))
    assert "must hold sections" in refusal(write(tmp_path, "just text"))
    assert "there twice" in refusal(write(tmp_path, "data: {train: [a]}\ndata: {train: [b]}"))
    assert "tokenizer: is missing" in refusal(write(tmp_path, {"data": GOOD["data"]}))


def test_a_recipe_cannot_be_changed_after_it_was_checked(tmp_path):
    recipe = load_recipe(TrainRecipe, write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.max_steps = 3


def test_one_file_may_stand_without_a_list_and_one_line_changes_the_solver(tmp_path):
    fields = {**GOOD, "model": {"num_iterations": 2, "history": True}}
    recipe = load_recipe(
        TrainRecipe, write(tmp_path, fields), ["data.train=a.txt", "model.solver=transformer"]
    )
    assert recipe.data.train == ["a.txt"]
    assert recipe.model.unused_fields() == ["history", "num_iterations"]


def test_distillation_needs_something_to_do():
    settings = ["data.train=[x]", "distillation.distill.max_steps=0", "distillation.recover.max_steps=0"]
    assert "nothing to do" in refusal(None, settings, DistillRecipe)


STABLE = "distillation.distill.lr_scheduler_type=warmup_stable_decay"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ([STABLE, "training.decay_steps=950"], None),
        ([STABLE, "training.decay_steps=951"], "less warmup_steps of distillation.distill (950), found 951"),
        (
            [STABLE, "training.decay_steps=951", "distillation.recover={lr_scheduler_type: warmup_stable_decay, "
             "max_steps: 90}"],
            "less warmup_steps of distillation.recover (40), found 951",
        ),
        ([STABLE, "training.decay_steps=2", "distillation.distill.max_steps=0"], "training.decay_steps is for"),
        (["training.lr_scheduler_type=warmup_stable_decay", "training.decay_steps=2"], None),
        (
            ["training.lr_scheduler_type=warmup_stable_decay", "training.decay_steps=2",
             "distillation.distill.lr_scheduler_type=linear", "distillation.recover.lr_scheduler_type=cosine"],
            "training.decay_steps is for lr_scheduler_type warmup_stable_decay, found cosine, linear",
        ),
        (["training.lr_scheduler_type=constant_with_warmup", "training.min_lr_ratio=0"], None),
        (["training.lr_scheduler_type=constant_with_warmup", "training.min_lr_ratio=0.1", STABLE], None),
        (["distillation.distill.lr_scheduler_type=constant_with_warmup", "training.min_lr_ratio=0.1"], None),
        (
            ["distillation.distill.lr_scheduler_type=constant_with_warmup", "training.min_lr_ratio=0.1",
             "distillation.recover.max_steps=0"],
            "training.min_lr_ratio is for an lr_scheduler_type with an end, found constant_with_warmup",
        ),
    ],
)  # fmt: skip
def test_what_belongs_to_a_schedule_is_for_the_stages_that_are_run_with_it(settings, problem):
    settings = ["data.train=[x]", *settings]
    if problem is None:
        load_recipe(DistillRecipe, None, settings)
    else:
        assert problem in refusal(None, settings, DistillRecipe)


def test_a_recipe_of_the_other_command_is_one_short_line(tmp_path):
    assert refusal("demo", kind=DistillRecipe) == "demo: is a recipe for `iiad train`, not for `iiad distill`"
    assert refusal("demo-distill") == "demo-distill: is a recipe for `iiad distill`, not for `iiad train`"
    path = write(tmp_path, GOOD)
    with pytest.raises(InputError) as error:  # whatever the command line puts over it
        load_recipe(DistillRecipe, path, ["student.init=random"], {"distillation": {"retain": 0.9}})
    assert str(error.value) == f"{path}: is a recipe for `iiad train`, not for `iiad distill`"
    both = write(tmp_path, {**GOOD, "student": {}})
    assert "student: no such field" in refusal(both)
    assert "tokenizer: no such field" in refusal(both, kind=DistillRecipe)
