"""Saved folders: they load with iiad, without it, at another plan, and bad ones are refused in one line."""

import json
import shutil
import site
import subprocess
import venv

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from iiad import InputError
from iiad.checkpoints import load_model, model_fingerprint, save_checkpoint
from tests.helpers import PAIR_VARIANTS, VARIANTS, make_iiet

AUTO_MODELS = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
PAIR_AUTO_MODELS = (AutoModel, AutoModelForSeq2SeqLM)


def test_a_saved_model_loads_with_auto_classes_and_computes_the_same(variant, tokens, tmp_path):
    save_checkpoint(variant, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(variant)
    assert loaded.config.num_iterations == variant.config.num_iterations
    assert torch.equal(loaded(tokens).logits, variant(tokens).logits)
    base = AutoModel.from_pretrained(tmp_path / "model")
    assert torch.equal(base(tokens).last_hidden_state, variant.model(tokens).last_hidden_state)


WITHOUT_IIAD = """
import importlib.util, sys
sys.modules["torchao"] = None  # a slow import of transformers' that nothing here needs
assert importlib.util.find_spec("iiad") is None, "this test needs an editable installation, as make does it"
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification
for name in sys.argv[1:]:
    head, inputs, wanted, prompt, text = torch.load(name + "/wanted.pt")
    auto = getattr(transformers, head)
    model = auto.from_pretrained(name, trust_remote_code=True)
    assert torch.equal(model(**inputs).logits, wanted), name
    assert torch.equal(model.generate(prompt, max_new_tokens=4, do_sample=False), text), name
    AutoModel.from_pretrained(name, trust_remote_code=True)
    if head == "AutoModelForCausalLM":
        options = {"trust_remote_code": True, "num_labels": 3}
        classifier = AutoModelForSequenceClassification.from_pretrained(name, **options)
        assert classifier(inputs["input_ids"][:1]).logits.shape == (1, 3)
    model.save_pretrained(name + "-again")
    auto.from_pretrained(name + "-again", trust_remote_code=True)
print("loaded")
"""


def test_saved_folders_load_with_remote_code_in_an_environment_without_iiad(tokens, tmp_path):
    # An environment of its own with all packages of this one but iiad: folders that a .pth file names are searched,
    # but .pth files in them, as an editable installation has one, are not read.
    venv.create(tmp_path / "environment", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    prompt, names = torch.full((1, 17), 5), []
    causal = {name: VARIANTS[name] for name in ("history", "relaxed", "shared", "pcformer-rk2")}
    pairs = {f"pair-{name}": PAIR_VARIANTS[name] for name in ("plain", "pcformer-rk2")}
    for name, make in (causal | pairs).items():
        variant = make()
        save_checkpoint(variant, tmp_path / name)
        auto_map = json.loads((tmp_path / name / "config.json").read_text())["auto_map"]
        autos = PAIR_AUTO_MODELS if name in pairs else AUTO_MODELS
        assert set(auto_map) == {"AutoConfig", *(auto.__name__ for auto in autos)}
        inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if name in pairs else {})
        text = variant.generate(prompt, max_new_tokens=4, do_sample=False)
        wanted = (autos[1].__name__, inputs, variant(**inputs).logits.detach(), prompt, text)
        torch.save(wanted, tmp_path / name / "wanted.pt")
        names.append(name)
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [tmp_path / "environment" / "bin" / "python", "-c", WITHOUT_IIAD, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == "loaded", done.stderr[-2000:]


def test_a_teacher_loads_at_any_smaller_plan_by_the_stock_keyword(tokens, tmp_path):
    teacher = make_iiet(num_iterations=3)
    save_checkpoint(teacher, tmp_path / "teacher")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", num_iterations=[0, 2, 1])
    teacher.set_num_iterations([0, 2, 1])
    assert student.config.num_iterations == [0, 2, 1]
    assert torch.equal(student(tokens).logits, teacher(tokens).logits)


def test_relaxed_models_keep_all_their_relaxation_under_a_smaller_plan(tokens, tmp_path):
    teacher = make_iiet(num_iterations=3, history=False, relaxation=True)
    save_checkpoint(teacher, tmp_path / "teacher")
    student = load_model(tmp_path / "teacher", num_iterations=[1, 0, 2])
    save_checkpoint(student, tmp_path / "student")
    again = load_model(tmp_path / "student", num_iterations=3)
    assert torch.equal(again(tokens).logits, teacher(tokens).logits)


def test_num_hidden_layers_is_derived_and_not_written(tmp_path):
    model = make_iiet(num_iterations=[0, 2, 1])
    model.config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "num_hidden_layers" not in written
    assert written["num_layers"] == 3
    assert written["num_iterations"] == [0, 2, 1]
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 6


def test_a_fingerprint_follows_weights_and_not_the_plan():
    model = make_iiet(num_iterations=3)
    before = model_fingerprint(model)
    model.set_num_iterations([0, 1, 2])
    assert model_fingerprint(model) == before
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    assert model_fingerprint(model) != before


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "model"
    save_checkpoint(make_iiet(num_iterations=1), folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of a saved model, to be damaged."""
    return shutil.copytree(original, tmp_path / "model")


def refused(folder, **options):
    with pytest.raises(InputError) as error:
        load_model(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_config_or_weights_file_is_named(folder, tmp_path):
    assert "no such model folder" in refused(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    assert "got no weights" in refused(folder)
    torch.save({}, folder / "pytorch_model.bin")
    assert "got a pickle (pytorch_model.bin), which can run code when loaded" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["model.norm.weight"].fill_(float("nan")), "tensor model.norm.weight holds NaN"),
        (lambda w: w.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (lambda w: w.update({"model.extra": torch.ones(2)}), "tensor model.extra is not part of the model"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(31)}),
            "tensor model.norm.weight: expected shape (32,), got (31,)",
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_refused_by_name(folder, change, message):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert message in refused(folder)


def test_truncated_weights_are_refused(folder):
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    assert "model.safetensors: cannot be read as safetensors" in refused(folder)


def test_a_plan_above_the_checkpoints_maximum_is_refused(original):
    assert "num_iterations[0]: expected from 0 to 1" in refused(original, num_iterations=[2, 0, 0])


def test_saving_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    model = make_iiet(num_iterations=1)
    monkeypatch.setattr(
        type(model), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space"))
    )
    with pytest.raises(InputError, match=r"cannot be written: .*No space"):
        save_checkpoint(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
