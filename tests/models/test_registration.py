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
LIGHT = "heavy = {'torch', 'transformers', 'scipy'} & set(sys.modules)\nassert not heavy, heavy\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved IIET without code beside it, as a user of iiad has it."""
    path = tmp_path_factory.mktemp("models") / "iiet"
    model = make_iiet(vocab_size=300, num_iterations=1)
    save_checkpoint(model, path, tokenizer=train_tokenizer(["a few words to learn from"], 300))
    return path


def run(code, *arguments):
    """Run code in a fresh interpreter, warnings being errors; its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import sys\n" + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_auto_class_knows_the_models(folder, tmp_path):
    make_pcformer().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(folder).num_iterations == [1] * 3
    assert type(AutoModel.from_pretrained(tmp_path)) is PCformerModel
    assert pipeline("text-generation", str(folder)).model.config.model_type == "iiet"
    config = AutoConfig.for_model("iiet", vocab_size=9, num_layers=2, num_iterations=2)
    assert AutoModelForCausalLM.from_config(config).config.num_iterations == [2, 2]


@pytest.mark.parametrize(
    "code",
    [
        "from iiad.data import load_tokenizer\nassert load_tokenizer(sys.argv[1]).vocab_size > 255",
        "from iiad.checkpoints import read_limits\nassert read_limits(sys.argv[1])[1] == 300",
    ],
    ids=["tokenizer", "configuration"],
)
def test_models_are_known_where_a_folder_is_loaded(code, folder):
    run(code, folder)


def test_importing_loads_neither_torch_nor_transformers_nor_scipy():
    run(f"import iiad, iiad.planning, iiad.influence, cli.main\n{LIGHT}")


def test_planning_at_the_command_line_loads_neither_torch_nor_transformers_nor_scipy(tmp_path):
    make_profile().save(tmp_path / "profile.json")
    code = (
        "from cli.main import run\n"
        "for arguments in (['--help'], sys.argv[1:]):\n"
        "    sys.argv = ['iiad', 'plan', *arguments]\n"
        "    try:\n"
        "        run()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
    )
    options = ("--threshold", "0.02", "--output", tmp_path / "plan.json")
    assert "plan" in run(code + LIGHT, tmp_path / "profile.json", *options)
    assert (tmp_path / "plan.json").exists()
