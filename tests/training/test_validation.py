"""All problems of a recipe are found at once: each of those there are, and nothing that only follows from them."""

import copy
import random
from itertools import combinations, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from iiad.training.recipe_validation import find_problems
from iiad.training.recipes import DistillRecipe, TrainRecipe
from iiad.training.section import Section, section_of

GONE = object()
TRAIN = {
    "model": {"num_layers": 5, "num_iterations": 2},
    "tokenizer": {"vocab_size": 300},
    "data": {"train": ["stdlib"], "block_size": 64},
    "training": {"max_steps": 200},
}
DISTILL = {"data": {"train": ["stdlib"]}, "distillation": {"distill": {"max_steps": 100}}}

# What to plant, how the line about it begins, and which fields stand or fall with it.
TRAIN_PROBLEMS = [
    ({"model.hiden_size": 3}, "model.hiden_size: no such field (did you mean hidden_size?)", {"model.hidden_size"}),
    ({"model.num_layers": 0}, "model.num_layers: input should be greater", {"model.num_layers"}),
    (
        {"model.num_iterations": [1, 2]},
        "model: num_iterations must be one number or 5 (num_layers)",
        {"model.num_layers", "model.num_iterations"},
    ),
    ({"model.num_iterations": [1, "a"]}, "model.num_iterations.1: input should", {"model.num_iterations"}),
    ({"model.num_iterations": "a"}, "model.num_iterations: input", {"model.num_iterations"}),
    ({"model.num_iterations": -1}, "model: num_iterations must be at least 0", {"model.num_iterations"}),
    (
        {"model.num_key_value_heads": 3},
        "model: num_key_value_heads must divide",
        {"model.num_attention_heads", "model.num_key_value_heads"},
    ),
    ({"model.num_attention_heads": {}}, "model.num_attention_heads: input", {"model.num_attention_heads"}),
    ({"model.head_dim": 5}, "model: head_dim must be even", {"model.head_dim"}),
    ({"model.relaxation": True}, "model: relaxation is for history", {"model.history"}),
    ({"model.histroy": False}, "model.histroy: no such field (did you mean history?)", {"model.history"}),
    ({"model.solver": "llama"}, "model.solver: input should be 'transformer'", {"model.solver"}),
    ({"tokenizer.path": "a"}, "tokenizer: give either path or vocab_size", {"tokenizer"}),
    ({"tokenizer.vocab_size": 3}, "tokenizer.vocab_size: input", {"tokenizer"}),
    ({"tokenizer": GONE}, "tokenizer: is missing", {"tokenizer"}),
    (
        {"tokenizer": GONE, "tokeniser": {"vocab_size": 300}},
        "tokeniser: no such field (did you mean tokenizer?)",
        {"tokenizer"},
    ),
    ({"data.train": []}, "data.train: list should have", {"data.train"}),
    ({"data.train": GONE}, "data.train: is missing", {"data.train"}),
    ({"data.train": GONE, "data.trian": ["x"]}, "data.trian: no such field (did you mean train?)", {"data.train"}),
    ({"data.validation": 3}, "data.validation: input should be a valid list", {"data.validation"}),
    (
        {"data.block_size": 99999},
        "data.block_size must be at most model.max_position_embeddings (2048), found 99999",
        {"data.block_size", "model.max_position_embeddings"},
    ),
    ({"model.max_position_embeddings": 1}, "model.max_position_embeddings: ", {"model.max_position_embeddings"}),
    ({"training.max_steps": 0}, "training.max_steps: input", {"training.max_steps"}),
    ({"training.max_steps": GONE}, "training.max_steps: is missing", {"training.max_steps"}),
    (
        {"training.warmup_steps": 300},
        "training: warmup_steps must be at most max_steps (200), found 300",
        {"training.max_steps"},
    ),
    ({"training.decay_steps": 3}, "training: decay_steps is for", {"training.lr_scheduler_type"}),
    (
        {"training.lr_scheduler_type": "warmup_stable_decay", "training.decay_steps": 101},
        "training: decay_steps must be at most max_steps less warmup_steps (100), found 101",
        {"training.lr_scheduler_type", "training.max_steps"},
    ),
    (
        {"training.lr_scheduler_type": "constant_with_warmup", "training.min_lr_ratio": 0.1},
        "training: min_lr_ratio is for an lr_scheduler_type with an end, found constant_with_warmup",
        {"training.lr_scheduler_type"},
    ),
    ({"training.lr_scheduler_type": "cosin"}, "training.lr_scheduler_type: ", {"training.lr_scheduler_type"}),
    ({"training.gradient_checkpointing": "lyer"}, "training.gradient_checkpointing: input", set()),
    ({"training.report_to": [1]}, "training.report_to.0: ", set()),
    ({"training.learning_rate": float("nan")}, "training.learning_rate: ", set()),
    ({"training.block_size": 3}, "training.block_size: no such field (did you mean data.block_size?)", set()),
    ({"training.7": 3}, "training.7: no such field (there are: ", set()),
    ({"nonsense": {"a": 1}}, "nonsense: no such field (there are: model, tokenizer, data, training)", set()),
]  # fmt: skip
STAGE = "distillation.distill"
SCHEDULES = {"layerwise", "recover", "schedules"}
DISTILL_PROBLEMS = [
    ({f"{STAGE}.warmup_steps": 101}, f"{STAGE}: warmup_steps must be at most max_steps (100)", {STAGE}),
    ({f"{STAGE}.warmup_step": 3}, f"{STAGE}.warmup_step: no such field (did you mean warmup_steps?)", {STAGE}),
    ({STAGE: GONE, "distillation.distil": {"max_steps": 3, "warmup_steps": 0}}, "distillation.distil: no", {STAGE}),
    ({"distillation.recover.max_step": 3}, "distillation.recover.max_step: no such field (did you", {"recover"}),
    ({"distillation.layerwise": 7}, "distillation.layerwise: must be a section with fields, found 7", {"layerwise"}),
    (
        {"distillation.ce_weight": 0, "distillation.kl_weight": 0},
        "distillation: ce_weight, kl_weight and hidden_weight are all 0",
        {STAGE, "hidden_weight"},
    ),
    ({"distillation.hidden_weight": -1}, "distillation.hidden_weight: ", {"hidden_weight"}),
    ({"distillation.hidden_layers": [2, 2]}, "distillation: hidden_layers must be different", set()),
    ({"distillation.retain": 0.5}, "distillation.retain needs", {"validation", "training.eval_steps"}),
    ({"training.eval_steps": 0}, "training.eval_steps: ", {"training.eval_steps"}),
    ({"distillation.temperature": 0}, "distillation.temperature: ", set()),
    ({"student.start_norm": "x"}, "student.start_norm: ", set()),
    ({"student.int": "x"}, "student.int: no such field (did you mean init?)", set()),
    (
        {"training.decay_steps": 3},
        "training.decay_steps is for lr_scheduler_type warmup_stable_decay, found cosine",
        SCHEDULES,
    ),
    (
        {"training.decay_steps": 51, f"{STAGE}.lr_scheduler_type": "warmup_stable_decay"},
        "training.decay_steps must be at most max_steps less warmup_steps of distillation.distill (50), found 51",
        {STAGE, *SCHEDULES},
    ),
    (
        {"training.min_lr_ratio": 0.1, "training.lr_scheduler_type": "constant_with_warmup"},
        "training.min_lr_ratio is for an lr_scheduler_type with an end, found constant_with_warmup",
        SCHEDULES,
    ),
    ({"training.max_steps": 3}, "training.max_steps: no such field (did you mean distillation.l", set()),
    ({"data.text_field": ""}, "data.text_field: ", set()),
    ({"data.validation": 7}, "data.validation: ", {"validation"}),
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


def independent(chosen):
    touched = [field for _, _, fields in chosen for field in fields]
    return len(set(touched)) == len(touched)


def subsets(table):
    """Every independent one, two and three of the table, and some four."""
    for size in (1, 2, 3):
        yield from filter(independent, combinations(table, size))
    rng = random.Random(0)
    yield from islice(filter(independent, (rng.sample(table, 4) for _ in range(10**6))), 400)


@pytest.mark.parametrize(
    ("kind", "base", "table"), [(TrainRecipe, TRAIN, TRAIN_PROBLEMS), (DistillRecipe, DISTILL, DISTILL_PROBLEMS)]
)  # fmt: skip
def test_all_of_several_problems_are_reported_and_nothing_else(kind, base, table):
    assert find_problems(kind, base) == []
    for chosen in subsets(table):
        changes = {path: value for change, _, _ in chosen for path, value in change.items()}
        found = find_problems(kind, plant(base, changes))
        assert len(found) == len(chosen), (changes, found)
        for _, line, _ in chosen:
            assert sum(problem.startswith(line) for problem in found) == 1, (line, found)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 4096), st.floats(), st.text(max_size=3),
    st.sampled_from(["iiet", "cosine", "stdlib", "warmup_stable_decay", "layer"]),
    st.lists(st.integers(-1, 3), max_size=3), st.dictionaries(st.sampled_from(["max_steps", "path"]), st.integers()),
)  # fmt: skip


def some_fields(kind):
    """Fields of a recipe, of any kind of value, with sections where there are some."""
    known = {}
    for name, field in kind.model_fields.items():
        section = section_of(field.annotation)
        known[name] = st.one_of(some_fields(section), VALUES) if section else VALUES
    return st.fixed_dictionaries({}, optional={**known, "extra": VALUES, 3: VALUES})


@pytest.mark.parametrize("kind", [TrainRecipe, DistillRecipe])
@given(data=st.data())
def test_there_are_no_problems_exactly_where_the_recipe_is_accepted(kind, data):
    fields = data.draw(some_fields(kind))
    before = repr(fields)
    found = find_problems(kind, fields)
    assert repr(fields) == before
    assert len(set(found)) == len(found)
    try:
        kind.model_validate(fields)
    except ValidationError:
        assert found
    else:
        assert found == []


def all_sections(kind):
    yield kind
    for field in kind.model_fields.values():
        if section := section_of(field.annotation):
            yield from all_sections(section)


@pytest.mark.parametrize("kind", [TrainRecipe, DistillRecipe])
def test_sections_can_be_checked_in_parts(kind):
    for section in all_sections(kind):
        assert issubclass(section, Section)
        validators = section.__pydantic_decorators__.model_validators
        assert list(validators) == ["_has_no_conflicts"], "checks between fields are methods with @check"
        for name, field in section.model_fields.items():
            inner = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert inner == (section_of(field.annotation) is not None)
            if field.is_required() and not inner:
                assert field.examples, f"{name} is required: it needs an example"


def test_what_is_in_a_misspelled_section_is_checked_too():
    fields = {**TRAIN, "modle": {"num_layers": 0, "wdth": 3}}
    del fields["model"]
    assert [problem.partition(" (")[0] for problem in find_problems(TrainRecipe, fields)] == [
        "modle: no such field",
        "model.wdth: no such field",
        "model.num_layers: input should be greater than or equal to 1, found 0",
    ]


def test_a_section_by_itself_reports_all_its_conflicts_too():
    with pytest.raises(ValidationError) as error:
        TrainRecipe.model_validate(plant(TRAIN, {"model.head_dim": 5, "model.relaxation": True}))
    assert error.value.error_count() == 2


def test_an_empty_recipe_says_what_it_needs():
    assert find_problems(TrainRecipe, {}) == [
        "tokenizer: is missing",
        "data: is missing (it needs train)",
        "training: is missing (it needs max_steps)",
    ]
