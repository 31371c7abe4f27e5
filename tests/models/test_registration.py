"""Importing iiad.models registers the models with transformers' Auto classes; iiad itself is light."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline

from iiad.checkpoints import save_checkpoint
from iiad.data.tokenizers import train_tokenizer
from iiad.models import PCformerModel
from tests.helpers import make_iiet, make_pcformer, make_profile

ROOT = Path(__file__).parents[2]

FRESH = """
import sys
import iiad, iiad.planning, iiad.influence, cli.main

def require_light(after):
    heavy = {"torch", "transformers", "scipy"} & set(sys.modules)
    assert not heavy, (after, heavy)

require_light("importing")
folder, *options = sys.argv[1:]
for arguments in (["--help"], options):
    sys.argv = ["iiad", "plan", *arguments]
    try:
        cli.main.run()
    except SystemExit as end:
        assert not end.code
require_light("planning")

from iiad.data import load_tokenizer  # reads the configuration of the folder's model
assert load_tokenizer(folder).vocab_size > 255
assert "iiad.checkpoints.loading" not in sys.modules, "it registers the models by itself"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved IIET without code beside it, as a user of iiad has it."""
    path = tmp_path_factory.mktemp("models") / "iiet"
    model = make_iiet(vocab_size=300, num_iterations=1)
    save_checkpoint(model, path, tokenizer=train_tokenizer(["a few words to learn from"], 300))
    return path


def test_every_auto_class_knows_the_models(folder, tmp_path):
    make_pcformer().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(folder).num_iterations == [1] * 3
    assert type(AutoModel.from_pretrained(tmp_path)) is PCformerModel
    assert pipeline("text-generation", str(folder)).model.config.model_type == "iiet"
    config = AutoConfig.for_model("iiet", vocab_size=9, num_layers=2, num_iterations=2)
    assert AutoModelForCausalLM.from_config(config).config.num_iterations == [2, 2]


def test_a_new_interpreter_imports_and_plans_without_torch_and_knows_a_folders_model(folder, tmp_path):
    make_profile().save(tmp_path / "profile.json")
    plan = (tmp_path / "profile.json", "--threshold", "0.02", "--output", tmp_path / "plan.json")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH, *map(str, (folder, *plan))],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "plan.json").exists()
