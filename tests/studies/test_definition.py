"""Studies are checked whole before anything runs."""

import pytest
import yaml

from iiad.studies import load_study
from iiad.studies.conduct import Conduct
from iiad.studies.definition import find_study
from tests.helpers import refused

FIELDS = {
    "train": "task",
    "settings": {"training.max_steps": 4, "training.warmup_steps": 0},
    "arms": {"r0": {"model.num_iterations": 0}, "r2": {"model.num_iterations": 2}},
    "reference": "r0",
    "seeds": [0, 1],
    "students": {"teacher": "r2", "cuts": [0.5], "distill": "task-distill"},
}


@pytest.fixture
def load(tmp_path):
    """Load a study with changes."""

    def run(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**FIELDS, **changes}))
        return load_study(path)

    return run


def test_runs_are_recipes_with_the_changes_of_the_study_the_arm_the_seed_and_the_rate(load):
    recipe = load().recipe_of("r2", 1, 0.005)
    assert recipe.model.num_iterations == 2
    assert (recipe.training.max_steps, recipe.training.seed, recipe.training.learning_rate) == (4, 1, 0.005)
    assert load().lesson(1).data.train == recipe.data.train
    assert load().lesson(1).training.seed == 1


def test_settings_of_the_command_stand_above_those_of_the_study_and_below_an_arms(load, tmp_path):
    load()
    changes = ["training.max_steps=7", "model.num_iterations=1", "model.num_layers=1"]
    study = load_study(tmp_path / "study.yaml", changes)
    recipe = study.recipe_of("r2")
    assert (recipe.training.max_steps, recipe.model.num_iterations, recipe.model.num_layers) == (7, 2, 1)
    assert recipe.training.warmup_steps == 0
    for change, message in (
        ("model.deep=1", "model.deep: no such field"),
        ("deep", "expected section.field=value"),
    ):
        with refused(message):
            load_study(tmp_path / "study.yaml", [change])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "r1"}, "reference: expected one of the arms (r0, r2), got 'r1'"),
        ({"arms": {"r 0": {}}, "reference": "r 0"}, "arms: expected names of letters, digits, dots, + and -"),
        ({"arms": {"../r0": {}}, "reference": "../r0"}, "arms: expected names of letters, digits"),
        ({"arms": {}}, "arms: expected at least 1 item"),
        ({"seeds": [1, 1]}, "seeds: expected different numbers"),
        ({"seeds": [-1]}, "seeds.0: expected greater than or equal to 0"),
        ({"seeds": []}, "seeds: expected at least 1 item"),
        ({"learning_rates": [0.1, 0.1]}, "learning_rates: expected different numbers"),
        ({"learning_rates": [0]}, "learning_rates.0: expected greater than 0"),
        ({"train": "nothing"}, "arms.r0: recipe: expected a file or one of"),
        ({"arms": {"r0": {"model.deep": 3}}, "students": None}, "arms.r0: task: model.deep: no such field"),
        ({"arms": {"r0": {"data.validation": []}}, "students": None}, "arms.r0: data.validation: expected text"),
        ({"students": {"teacher": "r1", "cuts": [0.5]}}, "students.teacher: expected one of the arms"),
        ({"students": {"teacher": "r0", "cuts": [0.5]}}, "students.teacher: expected an arm with iterations, got r0"),
        ({"students": {"teacher": "r2", "cuts": [0.5, 0.5]}}, "students.cuts: expected different numbers"),
        ({"students": {"teacher": "r2", "cuts": [0]}}, "students.cuts.0: expected greater than 0"),
        ({"students": {"teacher": "r2", "cuts": [1.5]}}, "students.cuts.0: expected less than or equal to 1"),
        ({"students": {"teacher": "r2", "cuts": [0.5], "distill": "task"}}, "expected a recipe for `iiad distill`"),
        ({"texts": {"metrics": ["bleu"]}}, "texts: expected arms that are encoder-decoders, got r0"),
        ({"texts": {"metrics": []}}, "texts.metrics: expected at least 1 item"),
        ({"texts": {"metrics": ["meteor"]}}, "texts.metrics.0: expected 'bleu', 'chrf' or 'rouge'"),
        ({"refrence": "r0"}, "refrence: no such field (did you mean reference?)"),
    ],
)  # fmt: skip
def test_a_study_that_cannot_be_run_is_one_line(changes, message, load):
    with refused(message):
        load(**changes)


def test_two_arms_of_one_name_are_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(FIELDS).replace("  r2:\n", "  r0:\n"))
    with refused("'r0' is there twice"):
        load_study(path)
    with refused("study: expected a file or one of"):
        load_study("nothing")


@pytest.mark.parametrize(
    "path", sorted(find_study("depth-s3").parent.glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_studies_that_ship_can_be_run(path):
    assert load_study(path.stem).arms


def test_texts_are_made_of_the_models_that_are_compared_and_not_for_a_learning_rate(load, tmp_path):
    pairs = {"model.num_encoder_layers": 1, "data.block_size": None, "data.train": ["docstrings"]}
    texts = {"metrics": ["bleu", "rouge"], "num_beams": 2, "max_new_tokens": 20, "batch_size": 5}
    settings = {**FIELDS["settings"], **pairs, "data.validation": ["docstrings"], "tokenizer.vocab_size": 300}
    study = load(settings=settings, texts=texts, students=None, learning_rates=[0.1, 0.2])
    conduct = Conduct(study, tmp_path, 1, print)
    tuning, final = (conduct.training_job("r2", 0, 0.1, tuning=tuning).steps[1] for tuning in (True, False))
    wanted = "--metrics bleu rouge --num-beams 2 --max-new-tokens 20 --batch-size 5"
    assert wanted in " ".join(final.arguments)
    assert "--metrics" not in tuning.arguments
    assert tuning.output != final.output


def test_iterations_of_the_encoder_alone_make_a_teacher(tmp_path):
    fields = yaml.safe_load(find_study("translation").read_text())
    fields["students"]["teacher"], path = "encoder-r3", tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert load_study(path).students.teacher == "encoder-r3"
    fields["students"]["teacher"] = "r0"
    path.write_text(yaml.safe_dump(fields))
    with refused("students.teacher: expected an arm with iterations, got r0"):
        load_study(path)
