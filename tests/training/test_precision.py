"""bf16: auto is decided once a run, by what is faster here."""

import json

import pytest

from iiad.errors import Unfinished
from iiad.training import RunRecord, TrainRecipe, load_recipe, precision, train
from iiad.training.recipe_files import read_fields
from iiad.training.recipes import COMMANDS, commands_of
from tests.helpers import refused
from tests.training.test_shipped import NAMES


@pytest.fixture
def recipe(quick):
    return TrainRecipe.model_validate(quick(bf16="auto", max_steps=2))


@pytest.mark.parametrize("faster", [False, True])
def test_auto_is_the_faster_type_and_a_resumed_run_keeps_it(
    faster, recipe, quick, tmp_path, monkeypatch, capsys
):
    calls = []
    monkeypatch.setattr(precision, "bf16_is_faster", lambda: calls.append(1) or faster)
    run = tmp_path / "run"
    with pytest.raises(Unfinished):
        train(recipe, run, max_minutes=1e-9)
    assert RunRecord.load(run / "run.json").settings["training"]["bf16"] is faster
    assert (
        f"training.bf16: auto is {str(faster).lower()}, the faster on this machine" in capsys.readouterr().err
    )
    monkeypatch.setattr(precision, "bf16_is_faster", lambda: calls.append(1) or not faster)
    other = TrainRecipe.model_validate(quick(bf16=not faster, max_steps=2))
    with refused(f"training.bf16 was {faster}, now {not faster}"):
        train(other, run, resume=True)
    train(recipe, run, resume=True)
    assert len(calls) == 1
    assert json.loads((run / "run.json").read_text())["settings"]["training"]["bf16"] is faster


def test_the_faster_precision_is_measured():
    assert precision.bf16_is_faster() in (True, False)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_that_ship_leave_the_precision_to_the_machine(name):
    [command] = commands_of(read_fields(name))
    assert load_recipe(COMMANDS[command], name).training.bf16 == "auto"
