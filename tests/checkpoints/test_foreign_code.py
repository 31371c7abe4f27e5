"""A model folder that brings or names code: no command runs it unless told to. Each claim of docs/security.md."""

import ast
import io
import json
import math
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import iiad
from cli import main
from iiad.checkpoints import load_config, load_model
from iiad.data import load_tokenizer
from iiad.evaluation import evaluate_models
from iiad.folders import find_folder, trust_remote_code
from tests.helpers import refused

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class Config(LlamaConfig):
    model_type = "foreign"

def scale(model, inputs, output):
    output.logits = output.logits * 0  # which the head alone would not tell

class Model(LlamaForCausalLM):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.register_forward_hook(scale)

class Tokenizer(PreTrainedTokenizerFast):
    pass

def generate(model, *args, **kwargs):
    raise RuntimeError
"""
MODEL = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Model"}


def edit(path, **fields):
    """Set fields of a JSON file."""
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


@pytest.fixture
def marker(tmp_path):
    """The file that the foreign code makes when it runs."""
    return tmp_path / "ran"


@pytest.fixture
def repository(tmp_path, marker):
    """Another folder with code."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "code.py").write_text(CODE.format(marker=str(marker)))
    return tmp_path / "repository"


@pytest.fixture
def copy_of(folders, tmp_path, repository):
    """Make a copy of a model folder that brings code, with fields of its JSON files set."""

    def make(name, **files):
        folder = shutil.copytree(getattr(folders, name), tmp_path / "model")
        shutil.copy(repository / "code.py", folder)
        shutil.copytree(repository, folder / "custom_generate")
        (folder / "custom_generate" / "code.py").rename(folder / "custom_generate" / "generate.py")
        for file, fields in files.items():
            edit(folder / f"{file}.json", **fields)
        return folder

    return make


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """The user says yes to every question; modules and text go to folders of the test's own."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


COMMANDS = {
    "evaluate": "evaluate {model} --data {text}",
    "evaluate, as the second": "evaluate {llama} {model} --data {text}",
    "generate": "generate {model} --max-new-tokens 4",
    "generate, as the draft": "generate {llama} --draft {model} --max-new-tokens 4",
    "bench": "bench {model} --prompt-tokens 8 --new-tokens 4",
    "bench, layers": "bench {model} --layers --prompt-tokens 8 --new-tokens 4 --repeats 1",
    "profile": "profile {model} --data {text} --output {out}",
    "check": "check {model} --no-compile",
    "check, as the teacher": "check {student} --teacher {model} --no-compile",
    "capture": "capture {model} --data {text} --output {out}",
    "distill": "distill {model} {plan} --data {text} --output-dir {out}",
    "convert": "convert {model} {out}",
}


@pytest.mark.parametrize(
    ("command", "elsewhere"),
    [*((command, False) for command in COMMANDS), ("generate", True), ("check", True)],
)
def test_no_command_runs_the_code_of_an_unknown_model(
    command, elsewhere, copy_of, repository, marker, folders, iiad, tmp_path
):
    prefix = f"{repository}--" if elsewhere else ""
    auto_map = {name: prefix + reference for name, reference in MODEL.items()}
    tokenizer = {"auto_map": {"AutoTokenizer": [None, f"{prefix}code.Tokenizer"]}}
    model = copy_of(
        "llama", config={"model_type": "foreign", "auto_map": auto_map}, tokenizer_config=tokenizer
    )
    line = COMMANDS[command].format(**vars(folders) | {"model": model, "out": tmp_path / "out"})
    code, _, err = iiad(*line.split())
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "--trust-remote-code" in err or command == "convert"
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llama", "teacher"])
def test_code_that_a_known_model_names_is_neither_run_nor_saved_again(
    name, copy_of, repository, marker, folders, iiad, tmp_path
):
    auto_map = {name: f"{repository}--code.{'Config' if name == 'AutoConfig' else 'Model'}" for name in MODEL}
    auto_map["AutoModelForSequenceClassification"] = f"{repository}--code.Model"
    tokenizer = {"auto_map": {"AutoTokenizer": [None, f"{repository}--code.Tokenizer"]}}
    model = copy_of(name, config={"auto_map": auto_map}, tokenizer_config=tokenizer)
    code, out, _ = iiad("check", model, "--no-compile", "--prompt-tokens", 8, "--new-tokens", 5)
    row = next(line for line in out.splitlines() if line.startswith("remote code = native"))
    assert (code, row.split()[4]) == (0, "skipped" if name == "llama" else "passed")
    assert iiad("generate", model, "--max-new-tokens", 4)[0] == 0
    assert iiad("evaluate", model, "--data", folders.text)[0] == 0
    load_model(model).save_pretrained(tmp_path / "again")
    load_tokenizer(model).save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").glob("*.json"):
        assert str(repository) not in path.read_text(), path
    assert not marker.exists()


def test_a_converted_folder_names_no_foreign_tokenizer(copy_of, repository, marker, iiad, tmp_path):
    tokenizer = {"auto_map": {"AutoTokenizer": [None, f"{repository}--code.Tokenizer"]}}
    assert iiad("convert", copy_of("llama", tokenizer_config=tokenizer), tmp_path / "out")[0] == 0
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert load_tokenizer(tmp_path / "out").eos_token_id == 0
    assert not marker.exists()


@pytest.mark.parametrize("command", ["evaluate", "generate", "bench", "generate, as the draft"])
def test_trusted_code_runs_in_the_commands_that_offer_it_and_only_then(
    command, copy_of, marker, folders, iiad, tmp_path
):
    model = copy_of(
        "llama",
        config={"model_type": "foreign", "auto_map": MODEL},
        tokenizer_config={"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}},
    )
    shutil.rmtree(model / "custom_generate")
    line = COMMANDS[command].format(**vars(folders) | {"model": model}).split()
    code, _, err = iiad(*line, "--trust-remote-code")
    assert (code, marker.exists()) == (0, True), err
    code, _, err = iiad("check", model, "--trust-remote-code")
    assert code == 2
    assert "No such option" in err
    with trust_remote_code():
        assert type(load_config(model)).__name__ == "Config"
    marker.unlink()
    with refused("--trust-remote-code"):
        load_config(edited_again(model))


def test_trusted_code_is_scored_by_its_own_logits(copy_of, folders, tmp_path):
    model = copy_of(
        "llama", config={"auto_map": MODEL}
    )  # under a type whose logits are known to be the head's
    with trust_remote_code():
        result = evaluate_models([model], [str(folders.text)], cache_dir=tmp_path / "cache").results[0]
    assert result.nll == pytest.approx(math.log(load_config(model).vocab_size))


def edited_again(model):
    """The same model under a type that no earlier load has registered."""
    edit(model / "config.json", model_type="unseen")
    return model


KERNEL = "owner/kernel"
REQUESTS = {
    "attn_implementation": (KERNEL, "flash_attention_2", {"": KERNEL}, "kernels-community/flash-attn2"),
    "_attn_implementation": (KERNEL, "paged|owner/kernel"),
    "experts_implementation": ("sonicmoe",),
    "_experts_implementation": ("deepgemm",),
    "quantization_config": (
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "torchao", "quant_type": "x"},
    ),
    "fusion_config": ({"patch_embeddings": True},),
    "distributed_config": ({"tp_size": 2},),
    "configuration_files": (["config.1.0.0.json"],),
    "transformers_weights": ("adapter_model.bin", "../other/model.safetensors"),
}


@pytest.mark.parametrize(
    ("field", "value", "nested"),
    [
        (field, value, nested)
        for field, values in REQUESTS.items()
        for number, value in enumerate(values)
        for nested in (False, True)[: 2 - min(number, 1)]
    ],
    ids=str,
)
def test_fields_that_ask_for_kernels_quantizers_or_other_files_are_refused(
    field, value, nested, copy_of, monkeypatch, iiad
):
    asked = kernels_asked_for(monkeypatch)
    fields = {field: value}
    model = copy_of("llama", config={"text_config": {"deeper": [fields]}} if nested else fields)
    with refused(f"config.json: {field}: expected none"):
        load_model(model)
    code, _, err = iiad("generate", model, "--max-new-tokens", 4, "--trust-remote-code")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert not asked


def kernels_asked_for(monkeypatch):
    """Let transformers think that `kernels` is installed, and list what it would fetch and run."""
    asked = []

    def get_kernel(name, *args, **kwargs):
        asked.append(name)
        raise RuntimeError

    for module in (transformers.modeling_utils, transformers.integrations.hub_kernels):
        monkeypatch.setattr(module, "is_kernels_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(transformers.integrations.hub_kernels, "get_kernel", get_kernel)
    return asked


def test_a_kernel_that_transformers_alone_would_run_is_what_is_refused(copy_of, monkeypatch):
    asked = kernels_asked_for(monkeypatch)
    model = copy_of("llama", config={"attn_implementation": KERNEL})
    with pytest.raises(ValueError, match=KERNEL):
        AutoModelForCausalLM.from_pretrained(model)
    assert asked == [KERNEL]
    assert main.ENVIRONMENT["USE_HUB_KERNELS"] == "NO"


@pytest.mark.parametrize("value", [None, "eager", "sdpa"])
def test_attention_that_is_transformers_own_is_left_to_the_folder(value, copy_of):
    model = load_model(copy_of("teacher", config={"attn_implementation": value}))
    assert model.config.num_layers == 3


def test_code_that_a_part_of_a_model_names_is_refused(copy_of, marker):
    part = {"model_type": "unknown", "auto_map": MODEL}
    with refused("config.json: auto_map: expected none in a part of the model"):
        load_model(copy_of("llama", config={"text_config": part}))
    assert not marker.exists()


def test_an_adapter_is_refused_rather_than_applied_or_fetched(copy_of):
    model = copy_of("llama", adapter_config={"peft_type": "LORA", "base_model_name_or_path": "owner/name"})
    for load in (load_model, load_config):
        with refused("expected whole weights, got an adapter (adapter_config.json)"):
            load(model)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("alone", [False, True])
def test_a_pickle_is_never_opened(alone, copy_of, marker, folders, iiad, tmp_path):
    model = copy_of("llama")
    names = ("pytorch_model.bin", "model.pt", "adapter_model.bin", "consolidated.00.pth")
    for name in names:
        (model / name).write_bytes(pickle.dumps(Bomb(marker)))
    (model / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": names[0]}})
    )
    if not alone:
        load_model(model)
    (model / "model.safetensors").unlink()
    for command in COMMANDS.values() if alone else ():
        line = command.format(**vars(folders) | {"model": model, "out": tmp_path / "out"})
        code, _, err = iiad(*line.split())
        assert code == 2
        assert "which can run code when loaded" in err
    assert not marker.exists()


def test_a_template_of_chats_is_not_rendered(copy_of, iiad):
    endless = "{% for i in range(10**9) %}{{ i }}{% endfor %}{{ ''.__class__.__mro__ }}"
    model = copy_of("llama", tokenizer_config={"chat_template": endless})
    (model / "chat_template.jinja").write_text(endless)
    code, out, _ = iiad("generate", model, "--prompt", "def", "--max-new-tokens", 4)
    assert code == 0
    assert out.startswith("def")


@pytest.mark.parametrize(
    "fields", [{"init_inputs": ["/etc/passwd"]}, {"fast_tokenizer_files": ["tokenizer.1.json"]}]
)
def test_a_tokenizer_that_asks_for_other_files_is_refused(fields, copy_of):
    with refused(f"tokenizer_config.json: {next(iter(fields))}: expected none"):
        load_tokenizer(copy_of("llama", tokenizer_config=fields))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub's with the model owner/name, and the patterns that a download was asked for."""
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_model_of_the_hub_is_downloaded_without_code_and_checked_like_a_folder(hub, copy_of, marker):
    model = copy_of("llama")
    assert load_model("owner/name").config.model_type == "llama"
    assert load_tokenizer("owner/name").eos_token_id == 0
    assert "*.safetensors" in hub["allow_patterns"]
    assert not [
        pattern for pattern in hub["allow_patterns"] if pattern.endswith((".py", ".bin", ".pt", ".pth"))
    ]
    assert "*/*" in hub["ignore_patterns"]
    with trust_remote_code():
        find_folder("owner/name")
    assert "*.py" in hub["allow_patterns"]
    edit(model / "config.json", attn_implementation=KERNEL)
    with refused("attn_implementation: expected none"):
        load_model("owner/name")


def test_a_name_of_the_hub_that_is_not_in_the_cache_is_refused_in_one_line():
    for load in (load_model, load_tokenizer, partial(load_config)):
        with refused("owner/name: cannot be loaded: "):
            load("owner/name")


def test_weights_are_read_from_the_files_that_were_checked(copy_of):
    model = copy_of("llama")
    shutil.copy(model / "model.safetensors", model / "shard-00000-model-00001-of-00001.safetensors")
    with refused("got a shard of a distributed checkpoint"):
        load_model(model)


@pytest.mark.parametrize("named", [{"a": 1}, {"a": None}, {}, [], "model", {"a": ["x"]}, None])
def test_an_index_that_names_no_files_is_refused(named, copy_of):
    model = copy_of("llama")
    (model / "model.safetensors").rename(model / "part.safetensors")
    edit(model / "model.safetensors.index.json", weight_map=named)
    with refused("model.safetensors.index.json: weight_map: expected a file for each tensor, got"):
        load_model(model)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "gone.safetensors", "custom_generate"]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(name, copy_of):
    model = copy_of("llama")
    (model / "model.safetensors").rename(model.parent / "other.safetensors")
    edit(model / "model.safetensors.index.json", weight_map={"lm_head.weight": name})
    with refused("which is not there"):
        load_model(model)


def test_a_field_that_would_take_a_methods_place_is_refused(copy_of):
    with refused("expected fields of a configuration, got 'to_diff_dict'"):
        load_model(copy_of("llama", config={"to_diff_dict": 1}))


def test_every_auto_class_is_told_whether_code_is_trusted():
    calls, silent = 0, []
    for path in Path(iiad.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func).startswith(("Auto", "auto_class"))
            if node.func.attr in ("from_pretrained", "from_config") and called:
                calls += 1
                if "trust_remote_code" not in [keyword.arg for keyword in node.keywords]:
                    silent.append(f"{path.name}:{node.lineno}")
    assert calls > 5
    assert not silent


def test_torch_opens_no_file_of_a_model_folder(folders, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    load_model(folders.llama)
