"""Model folders with a file cut, or any field of another type, missing or huge: refused in one line, or loaded."""

import copy
import json
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from iiad.checkpoints import identify_model, load_config, load_model
from iiad.data import load_tokenizer, pack, resolve_inputs
from iiad.errors import InputError
from iiad.generation.text import generate_text, load_generator
from tests.helpers import refused

FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
CUT = [*FILES, "model.safetensors", "model.safetensors.index.json"]
HUGE = [10**9, 10**30, float("inf"), float("nan")]
VALUES = [None, True, -1, 0, 2.5, *HUGE, "x", "", [], {}, [1, 2], ["x"], {"a": 1}, [[None]]]
MISSING = object()
UNDECLARED = """
num_iterations iterations num_labels sliding_window layer_types is_encoder_decoder output_hidden_states is_causal
text_config sub_configs attribute_map base_model_tp_plan return_dict __class__ per_layer_config id2label use_cache
""".split()


def use(folder):
    """Load a folder and generate with it; return how it was refused, if it was."""
    try:
        load_tokenizer(folder)  # first: it takes less time
        model, tokenizer = load_generator(folder, device="cpu")
        generate_text(model, tokenizer, "def push", max_new_tokens=2)
    except InputError as error:
        return str(error)
    return None


@pytest.fixture
def folder_of(folders, tmp_path):
    """Make a copy of a model folder, its weights in a shard with an index."""

    def make(name):
        folder = shutil.copytree(getattr(folders, name), tmp_path / "model")
        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


def places(fields, path=()):
    """Yield the path to each field at any depth, but for those of long lists and vocabularies."""
    for name, value in fields.items() if isinstance(fields, dict) else enumerate(fields):
        yield (*path, name)
        if isinstance(value, dict | list) and len(value) < 40:
            yield from places(value, (*path, name))


def changed(fields, path, value):
    """Return a copy of the fields with another value in one place, or without that."""
    result = place = copy.deepcopy(fields)
    *steps, last = path
    for step in steps:
        place = place[step]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return result


@pytest.mark.parametrize("file", CUT)
@pytest.mark.parametrize("number", [4, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_file_that_is_cut_anywhere_is_refused(file, number, folder_of):
    folder = folder_of("llama")
    path = folder / (file if file != "model.safetensors" else "model-1.safetensors")
    whole = path.read_bytes()
    ends = {0, 1, *random.Random(0).sample(range(len(whole) - 1), min(number, len(whole) - 1))}
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        assert use(folder) is not None, end
    path.write_bytes(whole)
    assert use(folder) is None


@pytest.mark.parametrize(("name", "file"), [("teacher", "config.json"), *(("llama", file) for file in FILES)])
@pytest.mark.parametrize("number", [1, pytest.param(len(VALUES) + 1, marks=pytest.mark.slow)])
def test_a_field_of_any_value_or_without_one_is_refused_or_loaded(name, file, number, folder_of):
    folder, draw = folder_of(name), random.Random(file)
    fields = json.loads((folder / file).read_text())
    found = []
    for path in places(fields):
        for value in draw.sample([*VALUES, MISSING], number):
            (folder / file).write_text(json.dumps(changed(fields, path, value)))
            found.append(use(folder))
    assert any(found)  # a word about one field at least


@pytest.mark.parametrize("name", ["teacher", "llama"])
@pytest.mark.parametrize("number", [1, pytest.param(len(VALUES), marks=pytest.mark.slow)])
def test_fields_that_a_model_does_not_declare_are_refused_or_loaded(name, number, folder_of):
    folder = folder_of(name)
    fields = json.loads((folder / "config.json").read_text())
    for field in UNDECLARED:
        for value in random.Random(field).sample(VALUES, number):
            (folder / "config.json").write_text(json.dumps({**fields, field: value}))
            use(folder)


def edit(path, **fields):
    """Set fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        (
            "llama",
            {"hidden_act": "x"},
            "config.json: hidden_act: expected a value that the model can take, got 'x'",
        ),
        ("llama", {"dtype": "x"}, "config.json: dtype: expected a value that the model can take, got 'x'"),
        (
            "llama",
            {"rope_parameters": [1]},
            "Field 'rope_parameters' with value [1]",
        ),
        ("llama", {"hidden_size": "x"}, "Field 'hidden_size' expected int, got str"),
        ("llama", {"vocab_size": True}, "Field 'vocab_size' expected int, got bool"),
        (
            "llama",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers: expected at most 4096",
        ),
        (
            "llama",
            {"text_config": {"n_layer": 10**9}},
            "n_layer: expected at most 4096",
        ),
        ("llama", {"num_labels": 10**9}, "num_labels: expected at most 4096"),
        ("llama", {"intermediate_size": 10**9}, "expected a model of the 35808 weights, got one of 288000"),
        ("llama", {"vocab_size": 10**30}, "vocab_size: expected a number of 64 bits, got 1000000"),
        (
            "llama",
            {"is_encoder_decoder": True},
            "expected a causal language model, got an encoder-decoder (llama)",
        ),
        ("llama", {"sliding_window": "x"}, "cannot be run"),
        ("teacher", {"num_iterations": 10**9, "max_num_iterations": 10**9}, "num_iterations: expected"),
        ("teacher", {"num_layers": 10**9}, "num_layers: expected at most 4096"),
    ],
    ids=str,
)
def test_a_configuration_is_refused_by_the_field_at_fault(name, fields, words, folder_of):
    folder = folder_of(name)
    edit(folder / "config.json", **fields)
    with refused(words):
        load_model(folder)


def test_a_setting_that_generate_would_loop_over_for_hours_is_refused(folder_of):
    folder = folder_of("teacher")
    edit(folder / "generation_config.json", encoder_no_repeat_ngram_size=10**9)
    with refused("generation_config.json: encoder_no_repeat_ngram_size: expected below"):
        load_model(folder)


def test_a_plan_for_a_model_without_iterations_is_refused(folders):
    with refused("expected a model with num_iterations, got a llama"):
        load_model(folders.llama, num_iterations=[0, 0, 0])


def test_a_model_without_heads_is_refused_where_its_cost_is_asked_for(folders):
    model = load_model(folders.llama)
    model.config = SimpleNamespace(model_type="heedless")
    with refused("model: expected a configuration with heads, layers and sizes, got a heedless: "):
        identify_model(model, "model")


def test_weights_whose_logits_are_not_finite_are_refused_when_they_are_loaded(folder_of):
    folder = folder_of("teacher")
    weights = {name: tensor * 1e30 for name, tensor in load_file(folder / "model-1.safetensors").items()}
    save_file(weights, folder / "model-1.safetensors", metadata={"format": "pt"})
    with refused("expected finite logits, got nan: its weights overflow"):
        load_model(folder)


@pytest.mark.parametrize("prefix", ["x", "ü", "##"])
@pytest.mark.parametrize("merges", [[["Ġ", "é"]], ["Ġ Ġ"], [[]], [3]])
def test_merges_on_which_the_tokenizers_library_would_abort_are_refused(prefix, merges, folder_of):
    folder = folder_of("llama")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edit(folder / "tokenizer.json", model={**model, "continuing_subword_prefix": prefix, "merges": merges})
    with refused("tokenizer.json: merges: expected parts with their prefix, got"):
        load_tokenizer(folder)


def test_a_panic_of_the_tokenizers_library_is_one_line(folder_of, folders, tmp_path):
    folder = folder_of("llama")
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "FixedLength", "length": 0})
    assert "prompt: cannot be encoded by the model's tokenizer" in use(folder)
    with refused("tokenizer: cannot encode a text: "):
        pack(resolve_inputs([str(folders.text)]), load_tokenizer(folder), cache_dir=tmp_path / "cache")
    edit(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with refused("cannot be loaded: "):
        load_tokenizer(folder)


def test_files_nested_as_deep_as_one_likes_are_refused(folder_of):
    folder = folder_of("llama")
    for depth, files in ((900, FILES), (100_000, FILES[:1])):
        nested = "[" * depth + "]" * depth
        for file in files:
            before = (folder / file).read_text()
            (folder / file).write_text(f'{before.rstrip().removesuffix("}")}, "x": {nested}}}')
            use(folder)
            (folder / file).write_text(before)


def test_loading_leaves_the_random_state_and_no_gradients(folders):
    state = torch.get_rng_state()
    model = load_model(folders.teacher)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert load_config(folders.teacher).num_iterations == model.config.num_iterations
