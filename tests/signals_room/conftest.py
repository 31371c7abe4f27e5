"""A tiny teacher with a tokenizer, and signals of it that tests may read but not change."""

import json

import pytest

from iiad.checkpoints import save_checkpoint
from iiad.data import train_tokenizer
from iiad.signals import StoredSignals, capture_signals
from tests.conftest import make_iiet

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
def signals(teacher, text_file, options, tmp_path_factory):
    """The folder of a finished capture."""
    folder = tmp_path_factory.mktemp("signals") / "signals"
    capture_signals(teacher, [str(text_file)], folder, **options)
    return folder


@pytest.fixture
def stored(signals):
    return StoredSignals.open(signals)


@pytest.fixture
def capture(teacher, text_file, options):
    """The capture of `signals` again, into a folder, with other settings if given."""

    def run(folder, source=None, inputs=None, **changes):
        return capture_signals(
            source or teacher, inputs or [str(text_file)], folder, **{**options, **changes}
        )

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
