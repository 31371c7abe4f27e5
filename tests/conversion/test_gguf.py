"""A Llama-family model in a GGUF file as a plain IIET: the same logits, its tokenizer, or refused in one line."""

import random
import sys

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from iiad import InputError
from iiad.checkpoints import load_model
from iiad.conversion import convert
from iiad.data import load_tokenizer
from tests.helpers import make_model

gguf = pytest.importorskip("gguf")

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 128}),
}
WORDS = [*sorted(ByteLevel.alphabet()), "Ġt", "he", "Ġthe", "<|end|>"]
MERGES = ["Ġ t", "h e", "Ġt he"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads",
    "head_count_kv": "num_key_value_heads",
    "layer_norm_rms_eps": "rms_norm_eps",
}


def make_original(family):
    """A small model, whose matrices are such as Q8_0 holds exactly."""
    kind, config, own = FAMILIES[family]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 48, "tie_word_embeddings": False}
    model = make_model(kind, config(vocab_size=len(WORDS), **{**sizes, **own}))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            packed = gguf.quantize(parameter.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
            parameter.data = torch.tensor(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))
    return model


def write_gguf(model, path, family="llama", change=lambda writer: None, leave_out=(), **fields):
    """Write a model as llama.cpp's converter does: matrices in Q8_0, queries and keys of a Llama in its order."""
    config, writer = model.config, gguf.GGUFWriter(path, family)
    for name, ours in FIELDS.items():
        getattr(writer, f"add_{name}")(fields.get(name, getattr(config, ours)))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(getattr(config, "head_dim", None) or config.hidden_size // 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(len(WORDS) - 1)
    change(writer)
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        stored = f"blk.{layer}.{NAMES[part]}.{kind}" if layer.isdigit() else f"{NAMES[stem]}.{kind}"
        if stored in leave_out or (stem == "lm_head" and config.tie_word_embeddings):
            continue
        values = tensor.numpy()
        if family == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_" in part else config.num_key_value_heads
            halves = values.reshape(heads, 2, -1, config.hidden_size)
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        if values.ndim == 2:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(stored, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_in_the_file_before_and_after_iterations(family, tmp_path, iiad):
    original = make_original(family)
    path = write_gguf(original, tmp_path / "model.gguf", family.partition("-")[0])
    code, out, _ = iiad("convert", path, tmp_path / "converted", "--iterations", 2)
    assert code == 0
    assert f"({original.config.model_type}, 2 layers, float32)" in out
    converted = load_model(tmp_path / "converted")
    assert converted.config.num_iterations == [2, 2]
    tokens = torch.randint(0, len(WORDS), (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(converted(tokens).logits, original(tokens).logits)
        converted.set_num_iterations([0, 1])
        assert torch.equal(converted(tokens).logits, original(tokens).logits)
    tokenizer = load_tokenizer(tmp_path / "converted")
    assert tokenizer.tokenize("of the") == ["o", "f", "Ġthe"]
    assert tokenizer.eos_token == "<|end|>"


@pytest.fixture(scope="module")
def llama():
    return make_original("llama")


def add_tensor(writer):
    writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))


BAD = {
    "another architecture": ({"family": "gemma2"},
                             "general.architecture: expected llama, mistral, qwen2, qwen3, got 'gemma2'"),
    "scaled rotary embeddings": ({"change": lambda writer: writer.add_rope_scaling_factor(8.0)},
                                 "llama.rope.scaling.factor: expected a field that transformers reads, got 8.0"),
    "rotary factors": ({"change": add_tensor}, "tensor 'rope_freqs.weight': expected one that transformers reads"),
    "half of a head turned": ({"change": lambda writer: writer.add_key_length(8)},
                              "attention.key_length: expected 16, the width of a head, got 8"),
    "more layers than tensors": ({"block_count": 2**31}, "llama.block_count: expected from 1 to 21"),
    "a layer less": ({"block_count": 3}, "tensor model.layers.2.input_layernorm.weight is missing"),
    "a layer more": ({"block_count": 1}, "expected the 12 tensors of a llama of 1 layers, got 21"),
    "a bias": ({"change": lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(64, dtype=np.float32))},
               "expected the 21 tensors of a llama of 2 layers, got 22"),
    "a tensor less": ({"leave_out": ["blk.1.ffn_up.weight"]}, "tensor model.layers.1.mlp.up_proj.weight is missing"),
    "another width": ({"feed_forward_length": 128}, "down_proj.weight: expected shape (64, 128), got (64, 96)"),
    "a huge width": ({"embedding_length": 2**30}, "expected a model of the"),
    "another number of heads": ({"head_count": 0}, "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_read_whole_is_one_line(case, llama, tmp_path, iiad):
    options, words = BAD[case]
    path = write_gguf(llama, tmp_path / "model.gguf", **options)
    code, out, err = iiad("convert", path, tmp_path / "converted", "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err
    assert words in err
    assert sorted(tmp_path.iterdir()) == [path]


def test_other_files_and_a_missing_extra_are_one_line(llama, tmp_path, iiad, monkeypatch):
    (tmp_path / "text.gguf").write_text("GGU")
    code, _, err = iiad("convert", tmp_path / "text.gguf", tmp_path / "converted")
    assert code == 2
    assert "text.gguf: expected a model folder or a GGUF file, got another file" in err
    code, _, err = iiad("convert", tmp_path / "missing.gguf", tmp_path / "converted")
    assert code == 2
    assert "missing.gguf: no such model folder" in err
    path = write_gguf(llama, tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, _, err = iiad("convert", path, tmp_path / "converted")
    assert code == 2
    assert "expected gguf (pip install 'iiad[gguf]'), got" in err


def test_damaged_files_are_refused_or_read_and_nothing_is_left_behind(llama, tmp_path):
    path = write_gguf(llama, tmp_path / "model.gguf")
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for number in range(30):
        data = bytearray(whole[: rng.randrange(4, len(whole))] if number % 3 == 0 else whole)
        for _ in range(rng.randrange(4)):
            data[rng.randrange(4, min(len(data), 6000))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            convert(path, tmp_path / str(number), 1)
        except InputError:
            refused += 1
            assert not (tmp_path / str(number)).exists()
    assert refused > 10
