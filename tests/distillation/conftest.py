"""Recipes of a second for the tiny teacher that all rooms share, and captures of its signals."""

import json

import pytest

from iiad.checkpoints import save_checkpoint
from iiad.data import train_tokenizer
from iiad.distillation import StoredSignals, capture_signals, distill
from iiad.training import DistillRecipe
from tests.helpers import make_iiet

OFF = {"max_steps": 0}


@pytest.fixture(scope="package")
def lesson(recipe_fields, little_text):
    """Make a recipe: its stages' steps, and whatever else of section distillation, by name."""

    def make(
        layerwise=0,
        distill=0,
        recover=0,
        onpolicy=0,
        student=None,
        training=None,
        schedules=None,
        data=None,
        **section,
    ):
        steps = {"layerwise": layerwise, "distill": distill, "recover": recover, "onpolicy": onpolicy}
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
                "data": {**recipe_fields["data"], **texts, **(data or {})},
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


T = 16
NUM_BLOCKS = 30
BLOCKS_PER_SHARD = 4
LAYERS = [0, 1, 2]


@pytest.fixture(scope="session")
def teacher(text_file, tmp_path_factory):
    """An untrained IIET with peaked outputs, of another plan in each layer."""
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, 300)
    model = make_iiet(
        vocab_size=len(tokenizer), num_layers=2, num_iterations=[2, 1], tie_word_embeddings=False
    )
    model.lm_head.weight.data *= 6
    folder = tmp_path_factory.mktemp("signals-teacher") / "teacher"
    save_checkpoint(model, folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="session")
def options(cache_dir):
    """Settings of a small capture of several shards, the last of them smaller than the others."""
    return {
        "top_k": 8,
        "temperature": 2.0,
        "block_size": T,
        "hidden_layers": LAYERS,
        "max_tokens": NUM_BLOCKS * T,
        "batch_size": 3,
        "blocks_per_shard": BLOCKS_PER_SHARD,
        "cache_dir": str(cache_dir),
        "device": "cpu",
        "check_teacher": False,  # it knows less than token counts do
    }


@pytest.fixture(scope="session")
def signals(teacher, little_text, options, tmp_path_factory):
    """The folder of a finished capture."""
    folder = tmp_path_factory.mktemp("signals") / "signals"
    capture_signals(teacher, [str(little_text)], folder, **options)
    return folder


@pytest.fixture
def stored(signals):
    return StoredSignals.open(signals)


@pytest.fixture(scope="session")
def capture(teacher, little_text, options):
    """The capture of `signals` again, into a folder, with other settings if given."""

    def run(folder, source=None, inputs=None, **changes):
        return capture_signals(
            source or teacher, inputs or [str(little_text)], folder, **{**options, **changes}
        )

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
