"""A plan, and a recipe of a second, for the tiny teacher that all rooms share."""

import json

import pytest

from iiad.checkpoints import identify_model, load_model
from iiad.distillation import distill
from iiad.planning import Plan
from iiad.training import DistillRecipe

OFF = {"max_steps": 0}


@pytest.fixture(scope="package")
def plan_file(teacher_folder, tmp_path_factory):
    """The teacher's first layer keeps its iterations, its second loses them."""
    identity = identify_model(load_model(teacher_folder), teacher_folder)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    Plan.explicit([2, 0], identity).save(path)
    return path


@pytest.fixture(scope="package")
def little_text(text_file, tmp_path_factory):
    few = tmp_path_factory.mktemp("few") / "few.jsonl"
    few.write_text("".join(text_file.read_text().splitlines(keepends=True)[:6]))
    return few


@pytest.fixture(scope="package")
def lesson(recipe_fields, little_text):
    """Make a recipe: its stages' steps, and whatever else of section distillation, by name."""

    def make(layerwise=0, distill=0, recover=0, student=None, training=None, schedules=None, **section):
        steps = {"layerwise": layerwise, "distill": distill, "recover": recover}
        stages = {
            name: {"max_steps": number, "warmup_steps": 0, "learning_rate": 0.003} if number else OFF
            for name, number in steps.items()
        }
        for name, changes in (schedules or {}).items():
            stages[name] = {**stages[name], **changes}
        texts = {"train": [str(little_text)], "validation": [str(little_text)]}
        usual = {"per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 100}
        return DistillRecipe.model_validate(
            {
                "data": {**recipe_fields["data"], **texts},
                "student": student or {},
                "distillation": {"check_teacher": False, **stages, **section},
                "training": {**usual, **(training or {})},
            }
        )

    return make


@pytest.fixture
def distilled(teacher_folder, plan_file, lesson, tmp_path):
    """Distil the teacher by a recipe that is made of these changes; the student's folder."""

    def run(name="run", teacher=teacher_folder, plan=plan_file, resume=False, **changes):
        distill(teacher, plan, lesson(**changes), tmp_path / name, resume=resume)
        return tmp_path / name

    return run


def log_of(folder, stage=None):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry and stage in (None, entry["stage"])]
