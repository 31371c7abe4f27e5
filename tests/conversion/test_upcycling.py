"""Llama-family checkpoints as plain IIETs: the same logits to the last bit, ready to be trained on, or refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from iiad import InputError
from iiad.checkpoints import identify_model, load_model, model_fingerprint, read_weights, save_checkpoint
from iiad.conversion.released import convert
from iiad.data import Window
from iiad.models import IIETConfig, IIETForCausalLM
from iiad.models.compatibility import cache_argument
from iiad.training.scoring import evaluate_model
from tests.helpers import SHAPE, make_iiet, make_seq2seq, stir

REFERENCE = Path(__file__).parents[1] / "reference"
SIZES = {name: value for name, value in SHAPE.items() if name != "num_layers"} | {"num_hidden_layers": 2}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-biased": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": (LlamaForCausalLM, LlamaConfig, {"head_dim": 12, "tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-wide-window": (MistralForCausalLM, MistralConfig, {"sliding_window": 128}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"hidden_act": "gelu"}),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16, "rms_norm_eps": 1e-5}),
    "qwen3-biased": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8, "attention_bias": True}),
}
SHORT = {"original_max_position_embeddings": 16}  # contexts above 16 tokens are long ones
ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": SHORT | {"factor": 4.0},
    "llama3": SHORT | {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": SHORT
    | {"factor": 8.0, "short_factor": [1, 1.1, 1.2, 1.3], "long_factor": [2, 2.1, 2.2, 2.3]},
}


def make_original(family, dtype=torch.float32, **fields):
    """A small model of transformers' own class, all of its biases and norm weights away from where they start."""
    model, config, own = FAMILIES[family]
    return stir(model(config(**{**SIZES, **own, **fields}))).to(dtype)


def upcycle(original, folder, num_iterations=2, change=lambda folder: None):
    """The original, as transformers loads it from a folder, changed or not, and what became of it."""
    original.save_pretrained(folder / "original")
    change(folder / "original")
    convert(folder / "original", folder / "converted", num_iterations)
    return AutoModelForCausalLM.from_pretrained(folder / "original"), load_model(folder / "converted")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An original of a family and what became of it, made when it is first asked for."""
    made = {}

    def get(family, dtype=torch.float32):
        if (family, dtype) not in made:
            made[family, dtype] = upcycle(make_original(family, dtype), tmp_path_factory.mktemp(family))
        return made[family, dtype]

    return get


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in FAMILIES]
    + [(family, torch.bfloat16) for family in ("llama", "mistral", "qwen2", "qwen3")],
)
@torch.no_grad()
def test_logits_losses_and_hidden_states_are_the_originals_bit_for_bit(family, dtype, tokens, pair):
    original, converted = pair(family, dtype)
    assert type(converted) is IIETForCausalLM
    assert converted.dtype == dtype
    assert converted.config.num_iterations == [2, 2]
    for implementation in ("eager", "sdpa"):
        original.set_attn_implementation(implementation)
        converted.set_attn_implementation(implementation)
        wanted = original(tokens, labels=tokens, output_hidden_states=True)
        found = converted(tokens, labels=tokens, output_hidden_states=True)
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.loss, wanted.loss)
        assert len(found.hidden_states) == len(wanted.hidden_states)
        assert all(map(torch.equal, found.hidden_states, wanted.hidden_states))


@pytest.mark.parametrize("family", ["llama", "mistral-wide-window", "qwen2-tied", "qwen3-biased"])
@torch.no_grad()
def test_cached_decoding_of_a_left_padded_batch_is_the_originals_bit_for_bit(family, tokens, pair):
    original, converted = pair(family)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), tokens], 1)
    mask = (padded != 0).long()
    mask[1, :5] = 1  # one row is shorter than the other
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def run(model):
        cache, logits = DynamicCache(config=model.config), []
        for part in (slice(0, 9), slice(9, 10), slice(10, 16), slice(16, 22)):
            inputs = {"attention_mask": mask[:, : part.stop], "position_ids": positions[:, part]}
            inputs |= {cache_argument(model): cache, "use_cache": True}
            logits.append(model(padded[:, part], **inputs).logits)
        return torch.cat(logits, 1), model(padded, attention_mask=mask, position_ids=positions).logits

    assert all(map(torch.equal, run(converted), run(original)))
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    wanted, found = original.generate(padded, **options), converted.generate(padded, **options)
    assert torch.equal(found.sequences, wanted.sequences)
    assert all(map(torch.equal, found.logits, wanted.logits))


@pytest.mark.parametrize("rope", ROPES)
@torch.no_grad()
def test_every_kind_of_rotary_embedding_is_kept(rope, tokens, pair, tmp_path):
    kind = {"rope_theta": 5000.0, "rope_type": rope, **ROPES[rope]}
    fields = {"max_position_embeddings": 16} if rope == "dynamic" else {}
    original, converted = upcycle(make_original("llama", rope_parameters=kind, **fields), tmp_path)
    assert not torch.equal(original(tokens).logits, pair("llama")[0](tokens).logits)  # the plain kind
    longer = torch.cat([tokens, tokens], 1)  # the frequencies of some kinds follow the length seen last
    for inputs in (tokens, longer, tokens):
        assert torch.equal(converted(inputs).logits, original(inputs).logits)


def keep_frequencies(folder):
    path = folder / "model.safetensors"
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(load_file(path) | frequencies, path, metadata={"format": "pt"})


OLD_ROPE = {"rope_parameters": None, "rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 3.0}}


@pytest.mark.parametrize(
    "change",
    [
        keep_frequencies,
        lambda folder: rewrite(folder, **OLD_ROPE),
        lambda folder: rewrite(folder, torch_dtype="float32", dtype=None),
        lambda folder: rewrite(folder, dtype="bfloat16"),  # another one than the weights'
    ],
)
@torch.no_grad()
def test_older_and_other_ways_of_writing_a_checkpoint_are_read_as_transformers_does(change, tokens, tmp_path):
    rope = {"rope_theta": 700.0, "rope_type": "linear", "factor": 3.0}
    original, converted = upcycle(make_original("mistral", rope_parameters=rope), tmp_path, None, change)
    assert converted.config.num_iterations == [3, 3]  # the default
    assert converted.dtype == original.dtype
    assert torch.equal(converted(tokens).logits, original(tokens).logits)


@settings(max_examples=8)
@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    bias=st.booleans(),
    num_key_value_heads=st.sampled_from([1, 2, 4]),
    tie_word_embeddings=st.booleans(),
    head_dim=st.sampled_from([4, 8, 14]),
    hidden_size=st.sampled_from([32, 34]),  # 34 is no multiple of 4 heads
    num_iterations=st.integers(0, 3),
)
def test_any_shape_converts_exactly(family, bias, num_iterations, tmp_path_factory, **fields):
    if family == "llama":  # which itself wants a multiple
        fields["hidden_size"] = 32
    if family in ("llama", "qwen3"):
        fields["attention_bias"] = bias
    folder = tmp_path_factory.mktemp("shape")
    original, converted = upcycle(make_original(family, **fields), folder, num_iterations)
    tokens = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(fields["head_dim"]))
    with torch.no_grad():
        assert torch.equal(converted(tokens).logits, original(tokens).logits)
    written = read_weights(converted.config.name_or_path)
    assert ("lm_head.weight" in written) is not fields["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def test_a_relaxation_of_zero_keeps_the_iterate_however_large_the_step(dtype, tokens, tmp_path):
    original = make_original("qwen2", dtype)
    for layer in original.model.layers:
        layer.self_attn.o_proj.weight *= 1e15
        layer.mlp.down_proj.weight *= 1e15
    original, converted = upcycle(original, tmp_path)
    wanted = original(tokens, output_hidden_states=True)
    assert wanted.hidden_states[1].abs().max() > 1e13
    assert wanted.logits.isfinite().all()
    assert torch.equal(converted(tokens).logits, wanted.logits)


@pytest.mark.parametrize("family", ["llama-biased", "mistral", "qwen2", "qwen3"])
def test_training_goes_on_from_the_converted_model(family, tokens, tmp_path):
    converted = upcycle(make_original(family), tmp_path)[1].train()
    before = converted(tokens, labels=tokens).loss
    before.backward()
    for name, parameter in converted.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        if "relaxation" in name:
            assert parameter.grad.all(), name
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter -= 1e-3 * parameter.grad
    after = converted(tokens, labels=tokens).loss
    assert after < before
    assert any(layer.corrector.relaxation.abs().sum() > 0 for layer in converted.model.layers)


@pytest.mark.usefixtures("norms_in_float64")
def test_the_gradient_to_the_relaxation_is_that_of_finite_differences(tokens, tmp_path):
    converted = upcycle(make_original("qwen3"), tmp_path)[1].double()
    relaxation = converted.model.layers[0].corrector.relaxation

    def loss():
        return cross_entropy(converted(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())

    loss().backward()
    losses = []
    for a in (1e-5, -1e-5):
        with torch.no_grad():
            relaxation[1] = a
            losses.append(loss().item())
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(relaxation.grad[1].item(), rel=1e-6)


def test_companions_travel_and_shards_are_read(tokens, tmp_path):
    original, folder, companions = (
        make_original("qwen2"),
        tmp_path / "original",
        ("merges.txt", "README.md", "LICENSE"),
    )
    original.generation_config = GenerationConfig(eos_token_id=[2, 7], do_sample=True, temperature=0.6)
    original.save_pretrained(folder, max_shard_size="30KB")
    assert (folder / "model.safetensors.index.json").exists()
    for name in companions:
        (folder / name).write_text(name)
    save_file({"foreign": torch.ones(2)}, folder / "consolidated.safetensors")  # Mistral's own format
    assert "qwen2, 2 layers, float32" in convert(folder, tmp_path / "converted", 1)
    converted = load_model(tmp_path / "converted")
    assert torch.equal(converted(tokens).logits, original(tokens).logits)
    assert converted.generation_config.eos_token_id == [2, 7]
    assert converted.generation_config.temperature == 0.6
    for name in companions:
        assert (tmp_path / "converted" / name).read_text() == name
    next(folder.glob("model-0*.safetensors")).unlink()
    with pytest.raises(InputError, match="which is not there"):
        convert(folder, tmp_path / "again")


@torch.no_grad()
def test_the_model_is_identified_scored_and_planned_like_any_iiet(tokens, tmp_path):
    original, converted = upcycle(make_original("qwen3"), tmp_path)
    ours, theirs = identify_model(converted, "a"), identify_model(original, "b")
    assert ours.num_iterations == [2, 2]
    assert ours.shape == theirs.shape.model_copy(update={"relaxation": True})
    assert evaluate_model(converted, [Window.of(tokens)]) == evaluate_model(original, [Window.of(tokens)])
    converted.set_num_iterations([0, 1])
    save_checkpoint(converted, tmp_path / "student")
    assert torch.equal(load_model(tmp_path / "student")(tokens).logits, original(tokens).logits)
    with pytest.raises(InputError, match="history: expected True for a form in the released code, got False"):
        convert(tmp_path / "converted", tmp_path / "back")


def test_a_transformer_of_the_released_code_is_upcycled_too(tmp_path):
    convert(REFERENCE / "transformer", tmp_path / "converted", 2)
    outputs = np.load(REFERENCE / "transformer" / "outputs.npz")
    with torch.no_grad():
        logits = load_model(tmp_path / "converted")(torch.tensor(outputs["input_ids"])).logits
    np.testing.assert_allclose(logits.numpy(), outputs["logits"], atol=2e-6, rtol=0)


def test_models_without_the_new_parts_are_what_they_were():
    model = make_iiet(num_iterations=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # As when the configuration had no such fields: profiles of then know their teacher.
    assert model_fingerprint(model).startswith("50f075ace9bb3682")
    names = IIETForCausalLM(IIETConfig(**SHAPE, attention_bias=True)).state_dict().keys()
    assert "model.layers.0.self_attn.o_proj.bias" in names  # attention_bias alone means what it does in Llama
    assert not any("q_norm" in name for name in names)
    with_norms = IIETForCausalLM(IIETConfig(**SHAPE, qk_norm=True))
    assert model_fingerprint(with_norms) != model_fingerprint(model)


def rewrite(folder, **fields):
    """Change fields of a config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


UNKNOWN = "expected a field of llama that we know, got"
REFUSALS = [
    ("llama", {"model_type": "gemma2"}, "model_type: expected llama, mistral, qwen2, qwen3, or"),
    ("llama", {"model_type": None}, "got None"),
    ("llama", {"model_type": "gpt2"}, "got 'gpt2'"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config: expected none"),
    ("llama", {"auto_map": {"AutoModel": "m.M"}}, "auto_map: expected transformers' own model, got code"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp: expected none or 1, got 2"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected none or 1, got 0.5"),
    ("llama", {"residual_multiplier": 0.22}, f"residual_multiplier: {UNKNOWN} 0.22"),
    ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, f"per_layer_config: {UNKNOWN}"),
    ("llama", {"is_causal": False}, "is_causal: expected true, got false"),
    ("llama", {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "mrope"),
    ("llama", {"hidden_act": "sillu"}, "sillu"),
    ("llama", {"hidden_size": "wide"}, "hidden_size"),
    ("llama", {"intermediate_size": 57}, "expected shape (32, 57), got (32, 56)"),
    ("llama", {"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
    ("llama", {"num_hidden_layers": 1}, "is not part of the model"),
    ("llama", {"tie_word_embeddings": True}, "lm_head.weight differs"),
    ("llama", {"dtype": "int8"}, "dtype"),
    ("mistral", {"attention_bias": True}, "attention_bias: expected a field of mistral"),
    ("mistral", {"sliding_window": 64}, "at least max_position_embeddings (128), got 64"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window: expected false, got true"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "got 'sliding_attention'"),
]


def refused(source, destination):
    with pytest.raises(InputError) as error:
        convert(source, destination)
    assert "\n" not in str(error.value)
    assert str(source) in str(error.value)
    assert not destination.exists()
    assert not list(destination.parent.glob(".*"))  # nor anything half-written beside it
    return str(error.value)


@pytest.fixture
def source_of(pair, tmp_path):
    """Make a folder like an original's, with fields of its configuration and tensors changed."""

    def make(family, tensors=None, **fields):
        folder = shutil.copytree(pair(family)[0].config.name_or_path, tmp_path / "source", dirs_exist_ok=True)
        if tensors:
            weights = load_file(folder / "model.safetensors") | tensors
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        rewrite(folder, **fields)
        return folder

    return make


@pytest.mark.parametrize(
    ("family", "fields", "message"), REFUSALS, ids=[str(case[1])[:40] for case in REFUSALS]
)
def test_what_would_not_compute_the_same_is_refused_in_one_line(family, fields, message, source_of, tmp_path):
    assert message in refused(source_of(family, **fields), tmp_path / "converted")


def test_fields_that_change_no_logit_are_passed_over(source_of, tmp_path):
    fields = {
        "unsloth_fixed": True,
        "use_mrope": False,
        "temperature": 0.7,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    assert "plain IIET, 3 iterations" in convert(source_of("qwen2", **fields), tmp_path / "converted")


def test_other_dtypes_adapters_and_nan_are_refused(source_of, tmp_path):
    name, there = "model.norm.weight", tmp_path / "converted"
    int8 = source_of("llama", {name: torch.ones(32, dtype=torch.int8)})
    assert f"tensor {name}: expected floating point, got torch.int8" in refused(int8, there)
    assert "holds NaN" in refused(source_of("llama", {name: torch.full((32,), float("nan"))}), there)
    adapted = source_of("llama")
    (adapted / "adapter_config.json").write_text("{}")
    assert "expected whole weights, got an adapter" in refused(adapted, there)


def test_for_an_encoder_decoder_there_is_nothing_to_convert(tmp_path):
    save_checkpoint(make_seq2seq(), tmp_path / "model")
    assert "nothing to convert: it is an encoder-decoder" in refused(
        tmp_path / "model", tmp_path / "converted"
    )
