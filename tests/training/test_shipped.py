"""The recipes that ship: valid, with headers that say what they are and cost."""

import re
import shlex
from itertools import pairwise

import pytest

from iiad.training.estimates import (
    count_parameters,
    evaluations_per_layer,
    forward_flops,
    training_bytes,
    training_flops,
)
from iiad.training.recipe_files import find_recipe, read_fields
from iiad.training.recipes import BatchShape, DistillRecipe, TrainRecipe, load_recipe

FOLDER = find_recipe("demo").parent
# Recipes of generated tasks are bases of studies, whose files say what they are for.
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("task"))
HEADINGS = ["Purpose", "Tokens", "Memory", "Cost", "Launch"]
PAPER = {"55m": 55e6, "340m": 340e6, "1.3b": 1.3e9}
PAIRS = {"docstrings", "docstrings-distill", "translation"}
PEAK, SHARE, CUT = 989e12, 0.4, 0.55


def kind_of(name):
    return DistillRecipe if "distillation" in read_fields(name) else TrainRecipe


def header(name):
    """The comment at the top, by heading, each in one line."""
    lines = []
    for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    parts = re.split(rf"^({'|'.join(HEADINGS)})\s+", "\n".join(lines), flags=re.MULTILINE)
    return {"title": parts[0].strip()} | {
        heading: " ".join(text.split()) for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def first_number(text):
    number, unit = re.match(r"([\d.e]+) ?(million|billion|GB)?", text).groups()
    return float(number) * {"million": 1e6, "billion": 1e9, "GB": 1e9, None: 1}[unit]


def tokens_of(recipe):
    if isinstance(recipe, TrainRecipe):
        return recipe.training.max_steps * recipe.training.gradient_accumulation_steps * recipe.batch.tokens
    steps = sum(stage.max_steps for stage in recipe.distillation.stages().values())
    if recipe.data.max_batch_tokens is not None:  # of pairs
        return steps * recipe.training.gradient_accumulation_steps * recipe.data.max_batch_tokens
    return steps * recipe.training.blocks_per_process * recipe.data.block_size


def test_the_sizes_of_the_paper_and_small_ones_are_there():
    large = [f"{prefix}{size}" for size in PAPER for prefix in ("", "distill-")]
    assert set(NAMES) == {*large, "demo", "demo-distill", "documentation", "documentation-distill", *PAIRS}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_its_header_says_what_it_is(name):
    recipe, said = load_recipe(kind_of(name), name), header(name)
    assert list(said) == ["title", *HEADINGS]
    assert all(said.values())
    assert first_number(said["Tokens"]) == pytest.approx(tokens_of(recipe), rel=0.05)
    assert re.search(r"\d G", said["Memory"])
    assert name not in ("demo", "demo-distill") or "estimated" not in said["Cost"]


@pytest.mark.parametrize("name", NAMES)
def test_launch_lines_name_the_recipe_and_their_settings_are_valid(name):
    launch = header(name)["Launch"].replace("\\", "")
    kind = kind_of(name)
    command = (
        f"iiad train {name} " if kind is TrainRecipe else f"iiad distill teacher plan.json --recipe {name} "
    )
    assert launch.startswith(command)
    assert launch.count(command) == 1 + launch.count("torchrun")
    words = shlex.split(launch.replace("`", ""))
    settings = [word for before, word in pairwise(words) if before == "--set" and "=" in word]
    load_recipe(kind, name, settings)


@pytest.mark.parametrize("name", [f"{prefix}{size}" for size in PAPER for prefix in ("", "distill-")])
def test_eight_gpus_learn_from_as_many_blocks_a_step_as_one(name):
    one = load_recipe(kind_of(name), name)
    [setting] = re.findall(r"training\.gradient_accumulation_steps=\d+", header(name)["Launch"])
    eight = load_recipe(kind_of(name), name, [setting])
    assert one.training.blocks_per_process == 8 * eight.training.blocks_per_process == 256


@pytest.mark.parametrize("name", PAPER)
def test_size_memory_and_cost_are_as_promised(name):
    recipe, said = load_recipe(TrainRecipe, name), header(name)
    sections = (recipe.model, recipe.training, recipe.tokenizer.vocab_size, recipe.batch)
    parameters = count_parameters(recipe.model, 32000)
    assert parameters == pytest.approx(PAPER[name], rel=0.1)
    assert first_number(re.search(r"of ([\d.]+ \w+) parameters", said["Purpose"])[1]) == pytest.approx(
        parameters, rel=0.01
    )
    assert first_number(said["Memory"]) == pytest.approx(training_bytes(*sections), rel=0.03)
    assert "estimated, not measured" in said["Memory"]
    check_cost(said["Cost"], training_flops(*sections))


@pytest.mark.parametrize("name", PAPER)
def test_memory_and_cost_of_a_student_are_as_promised(name):
    teacher, recipe = load_recipe(TrainRecipe, name), load_recipe(DistillRecipe, f"distill-{name}")
    said, model, T = header(f"distill-{name}"), teacher.model, recipe.data.block_size
    full = sum(evaluations_per_layer(model))
    cut = full - CUT * (full - model.num_layers)
    layers, head = forward_flops(model, 32000, [T], [cut])
    student = (4 if recipe.training.gradient_checkpointing else 3) * layers + 3 * head
    with_teacher = recipe.distillation.distill.max_steps / 10_000
    flops = tokens_of(recipe) * (student + with_teacher * sum(forward_flops(model, 32000, [T], [full])))
    check_cost(said["Cost"], flops)
    batch = BatchShape((T,), recipe.training.per_device_train_batch_size * T)
    memory = training_bytes(model, recipe.training, 32000, batch) + 6 * count_parameters(model, 32000)
    if not recipe.training.gradient_checkpointing:
        assert first_number(
            re.search(r", (\d+ GB) where nothing is cut", said["Memory"])[1]
        ) == pytest.approx(memory, rel=0.03)
        tokens = recipe.training.per_device_train_batch_size * T
        memory -= 64 * (full - cut) * model.hidden_size * tokens
    assert first_number(said["Memory"]) == pytest.approx(memory, rel=0.03)


def check_cost(said, flops):
    assert first_number(said) == pytest.approx(flops, rel=0.05)
    hours = float(re.search(r"([\d.]+) hours of one H100 at 40 % of its 989 TFLOP/s", said)[1])
    assert hours == pytest.approx(flops / (SHARE * PEAK) / 3600, rel=0.1)
    assert "estimated, not measured" in said
