"""Settings, prompts and weights that generation cannot use: one line that names them, with a draft and without."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from iiad.checkpoints import load_model
from iiad.data import load_tokenizer
from iiad.generation.drafts import Draft, self_draft
from iiad.generation.text import generate_text
from tests.helpers import refused

FOLLOWED = [
    {"stop_strings": ["self"]},
    {"return_dict_in_generate": True, "output_scores": True},
    {"num_beams": 10**6},
    {"repetition_penalty": 1.3},
    {"eos_token_id": [0, -5]},
    {"suppress_tokens": [5]},
    {"max_length": 2},
]
REFUSED = [
    ({"eos_token_id": "x"}, "generation_config: eos_token_id: expected token ids, got 'x'"),
    ({"eos_token_id": [None]}, "generation_config: eos_token_id: expected token ids, got [None]"),
    ({"eos_token_id": True}, "generation_config: eos_token_id: expected token ids, got True"),
    ({"repetition_penalty": -1}, "got {'repetition_penalty': -1}: `penalty` has to be"),
    ({"forced_eos_token_id": "x"}, "got {'forced_eos_token_id': 'x'}"),
    ({"sequence_bias": [[[1], "x"]]}, "got {'sequence_bias': "),
    ({"penalty_alpha": 0.5}, "got {'penalty_alpha': 0.5}: Contrastive Search"),
    ({"constraints": [1]}, "got {'constraints': [1]}"),
    ({"cache_implementation": "quantized"}, "got {'cache_implementation': 'quantized'}"),
    ({"pad_token_id": "x"}, "generation_config.json: pad_token_id: expected"),
    ({"watermarking_config": {"x": 1}}, "generation_config.json: watermarking_config: expected"),
    ({"num_return_sequences": 5}, "generation_config.json: num_return_sequences: expected"),
]


def generate_with(settings, folders, tmp_path, **options):
    """Generate by a copy of the teacher with these settings in its generation_config.json."""
    folder = shutil.copytree(folders.teacher, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    draft = Draft(self_draft(model), 2) if options.pop("drafted", False) else None
    return generate_text(model, tokenizer, "def push(self", max_new_tokens=4, draft=draft, **options)


@pytest.mark.parametrize("settings", FOLLOWED, ids=str)
def test_settings_of_the_folder_that_generate_can_follow_are_followed(settings, folders, tmp_path):
    found = generate_with(settings, folders, tmp_path)
    assert found.texts[0].startswith("def push(self")
    assert 1 <= found.num_new_tokens <= 4


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=str)
def test_settings_that_generate_cannot_follow_are_named_in_one_line(settings, words, folders, tmp_path):
    with refused(words):
        generate_with(settings, folders, tmp_path)


@pytest.mark.parametrize("settings", [settings for settings, _ in REFUSED[:6]], ids=str)
def test_settings_that_cannot_be_followed_are_refused_with_a_draft_too(settings, folders, tmp_path):
    with refused("generation_config", *settings):
        generate_with(settings, folders, tmp_path, drafted=True)


def test_a_fault_in_generate_is_not_blamed_on_a_folder_without_settings(loaded, monkeypatch):
    monkeypatch.setattr(loaded[0], "prepare_inputs_for_generation", None)
    with pytest.raises(TypeError):
        generate_text(*loaded, "def", max_new_tokens=2)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"draft": True}], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(options, value, loaded, monkeypatch):
    model, _ = loaded
    head = model.get_output_embeddings().forward
    monkeypatch.setattr(model.get_output_embeddings(), "forward", lambda states: head(states) * value)
    options = {"draft": Draft(self_draft(model), 2)} if "draft" in options else options
    with refused("model: expected finite logits, got"):
        generate_text(*loaded, "def", max_new_tokens=4, **options)
    assert not model._forward_hooks


def test_tokens_that_a_model_rules_out_by_minus_infinity_are_left_to_it(loaded, monkeypatch):
    head = loaded[0].get_output_embeddings()

    def forward(states):
        logits = torch.nn.functional.linear(states, head.weight)
        logits[..., :3] = -torch.inf
        return logits

    monkeypatch.setattr(head, "forward", forward)
    assert generate_text(*loaded, "def", max_new_tokens=4).num_new_tokens == 4


@pytest.mark.parametrize("command", ["generate", "evaluate", "profile", "capture"])
def test_weights_that_overflow_are_said_to_in_one_line(command, folders, iiad, tmp_path, monkeypatch):
    monkeypatch.setenv("IIAD_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(folders.teacher, tmp_path / "model")
    weights = {name: tensor * 1e30 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    options = {
        "generate": ["--max-new-tokens", 4],
        "evaluate": ["--data", folders.text],
        "profile": [
            "--data",
            folders.text,
            "--output",
            tmp_path / "out",
            "--max-tokens",
            64,
            "--block-size",
            16,
        ],
        "capture": ["--data", folders.text, "--output", tmp_path / "out"],
    }
    code, out, err = iiad(command, folder, *options[command])
    lines = [line for line in err.splitlines() if line.startswith("iiad: ")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert "expected finite" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["a\ud800b", "\udcff"])
def test_a_prompt_that_utf8_cannot_hold_is_refused(text, loaded):
    with refused("prompt: expected UTF-8, got"):
        generate_text(*loaded, text, max_new_tokens=2)


def test_a_prompt_that_the_tokenizer_fails_on_is_refused(loaded, folders, tmp_path):
    folder = shutil.copytree(folders.teacher, tmp_path / "model")
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["model"] = {"type": "WordLevel", "vocab": {"def": 1, "<|endoftext|>": 0}, "unk_token": "gone"}
    path.write_text(json.dumps(fields))
    with refused("prompt: cannot be encoded by the model's tokenizer"):
        generate_text(loaded[0], load_tokenizer(folder), "something else", max_new_tokens=2)
