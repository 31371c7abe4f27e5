"""`import iiad` is light, and transformers' Auto classes know the models all the same, in whatever order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iiad.checkpoints import save_checkpoint
from iiad.data.tokenizers import train_tokenizer
from tests.helpers import make_iiet, make_pcformer, make_profile

ROOT = Path(__file__).parents[2]
LOAD = (
    "assert type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__module__ == 'iiad.models.modeling_iiet'"
)
LIGHT = "heavy = {'torch', 'transformers', 'scipy'} & set(sys.modules)\nassert not heavy, heavy"
FINDERS = "[finder for finder in sys.meta_path if type(finder).__module__ == 'iiad.registration']"


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


@pytest.mark.parametrize(
    "imports",
    [
        "import iiad\nfrom transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM\nimport iiad",
        *(
            # Seconds each, for an interpreter of its own.
            pytest.param(imports, marks=pytest.mark.slow)
            for imports in (
                "import transformers\nimport iiad\nAutoModelForCausalLM = transformers.AutoModelForCausalLM",
                "from transformers import AutoConfig\nimport iiad\nfrom transformers import AutoModelForCausalLM",
                "import iiad.models\nfrom transformers import AutoModelForCausalLM",
            )
        ),
        # This one imports the Auto classes half-way through modules that iiad.models needs.
        "import iiad\nfrom transformers import LlamaForCausalLM, AutoModelForCausalLM",
    ],
)
def test_a_folder_loads_in_any_order_of_imports(imports, folder):
    run(f"{imports}\n{LOAD}\nassert not {FINDERS}", folder)


@pytest.mark.parametrize(
    "code",
    [
        "from transformers import AutoConfig, AutoTokenizer\n"
        "assert AutoConfig.from_pretrained(sys.argv[1]).num_iterations == [1] * 3\n"
        "assert AutoTokenizer.from_pretrained(sys.argv[1]).vocab_size > 255",
        "from transformers import AutoModel, pipeline\n"
        "assert type(AutoModel.from_pretrained(sys.argv[2])).__name__ == 'PCformerModel'\n"
        "pipeline('text-generation', sys.argv[1])",
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.for_model('iiet', vocab_size=9, num_layers=2, num_iterations=2)\n"
        "assert AutoModelForCausalLM.from_config(config).config.num_iterations == [2, 2]",
    ],
)
def test_every_auto_class_knows_the_models_by_itself(code, folder, tmp_path):
    make_pcformer().save_pretrained(tmp_path / "pcformer")
    run(f"import iiad\n{code}", folder, tmp_path / "pcformer")


def test_threads_that_load_at_once_all_know_the_models(folder):
    run(
        "import iiad, threading, transformers\n"
        "failed = []\n"
        "def load():\n"
        "    try:\n"
        "        transformers.AutoConfig.from_pretrained(sys.argv[1])\n"
        "    except BaseException as error:\n"
        "        failed.append(error)\n"
        "threads = [threading.Thread(target=load) for _ in range(8)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "assert not failed, failed",
        folder,
    )


def test_nothing_of_the_hook_stays_in_the_module_it_waited_for():
    run(
        "import iiad\n"
        f"assert len({FINDERS}) == 1\n"
        "import inspect, pickle\n"
        "import transformers.models.auto.configuration_auto as auto\n"
        f"assert not {FINDERS}\n"
        "assert type(auto.__loader__).__module__ == type(auto.__spec__.loader).__module__ != 'iiad.registration'\n"
        "assert 'class AutoConfig' in inspect.getsource(auto)\n"
        "again = pickle.loads(pickle.dumps(auto.CONFIG_MAPPING))\n"
        "assert again['iiet'].model_type == 'iiet'\n"
        "import iiad.models\n"
        "assert auto.CONFIG_MAPPING['iiet'] is iiad.models.IIETConfig\n"
        "assert auto.CONFIG_MAPPING['pcformer'] is iiad.models.PCformerConfig"
    )


def test_a_failed_import_of_transformers_can_be_tried_again(folder):
    run(
        "import iiad\n"
        "sys.modules['transformers.models.auto.auto_mappings'] = None\n"
        "try:\n"
        "    import transformers.models.auto.configuration_auto\n"
        "except ImportError:\n"
        "    del sys.modules['transformers.models.auto.auto_mappings']\n"
        "from transformers import AutoModelForCausalLM\n" + LOAD,
        folder,
    )


def test_models_is_an_attribute_and_others_are_not():
    run(
        "import iiad\n"
        "assert iiad.models.IIETConfig(num_layers=1).iterations == [3]\n"
        "from iiad import models, InputError\n"
        "assert models is iiad.models\n"
        "assert not hasattr(iiad, 'nothing')"
    )


@pytest.mark.parametrize("module", ["iiad", "iiad.planning", "iiad.influence", "cli.main"])
def test_importing_loads_neither_torch_nor_transformers_nor_scipy(module):
    run(f"import {module}\n{LIGHT}")


@pytest.mark.parametrize("arguments", ["--help", "{profile} --threshold 0.02 --output {plan}"])
def test_planning_at_the_command_line_loads_neither_torch_nor_transformers_nor_scipy(arguments, tmp_path):
    make_profile().save(tmp_path / "profile.json")
    arguments = arguments.format(profile=tmp_path / "profile.json", plan=tmp_path / "plan.json").split()
    code = "from cli.main import run\ntry:\n    run()\nexcept SystemExit as end:\n    assert not end.code\n"
    output = run(code + LIGHT, "plan", *arguments)
    assert "plan" in output
    assert (tmp_path / "plan.json").exists() == ("--help" not in arguments)
