"""Convert Llama-family checkpoints to plain IIETs that compute the same, to be trained on (upcycling).

The layer of a plain IIET starts at z(0) = x + f(x), which is the Llama layer, and its relaxed iteration
z(i) = (1 - a) z(i-1) + a (x + f(z(i-1))) leaves that as it is while a = 0: `torch.lerp(z, step, 0)` is z to the last
bit wherever step - z is finite (in float16 it may not be: keep such a model in float32 or bfloat16). So the converted
model computes what the original did, and the gradient to `a` is the inner product of the gradient to z with
(step - z), which is not zero. All here is ours.

The original is what transformers computes for a checkpoint. An unknown field of its config, which may change the
computation, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from iiad.checkpoints import load_config, save_checkpoint
from iiad.errors import InputError
from iiad.folders import read_config
from iiad.models import IIETForCausalLM

from .weights import assign_weights, build_model

__all__ = ["FAMILIES", "SHARED_FIELDS", "find_other_attention", "upcycle", "upcycled_model"]

# Families whose block ours can be, and the fields of ours that their configs leave out as always so.
FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {"attention_bias": False, "mlp_bias": False},
    "qwen2": {"attention_bias": True, "attention_output_bias": False, "mlp_bias": False},
    "qwen3": {"qk_norm": True, "mlp_bias": False},
}
_OWN_FIELDS = {
    "llama": {"attention_bias", "mlp_bias", "pretraining_tp"},
    "mistral": {"sliding_window"},
    "qwen2": {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"},
    "qwen3": {"attention_bias", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types"},
}

# Fields that the families and ours mean alike. The default of each is the family's: transformers knows it.
SHARED_FIELDS = """
vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim hidden_act
max_position_embeddings initializer_range rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id
tie_word_embeddings attention_dropout rope_parameters
""".split()

# Fields that no logit depends on, of this or earlier versions of transformers or of common tools, beside those of
# generation (temperature and the like), which had their place in a model's config once.
_HARMLESS_FIELDS = {
    *"architectures model_type transformers_version dtype torch_dtype name_or_path _name_or_path".split(),
    *"output_hidden_states output_attentions return_dict chunk_size_feed_forward torchscript use_bfloat16".split(),
    *"id2label label2id num_labels problem_type finetuning_task task_specific_params prefix".split(),
    *"tokenizer_class sep_token_id decoder_start_token_id model_max_length max_sequence_length".split(),
    *"_flash_attn_2_enabled _attn_implementation _attn_implementation_autoset _commit_hash".split(),
    *"unsloth_fixed unsloth_version is_llama_config transformers.js_config".split(),
}
_NEUTRAL: tuple[object, ...] = (None, False, "", [], {})
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def upcycle(
    source: str | Path, destination: str | Path, weights: dict[str, Tensor], num_iterations: int
) -> str:
    """Write a plain IIET with relaxation 0 that gives the logits of a Llama, Mistral, Qwen2 or Qwen3 folder.

    weights: the source's tensors, as `read_weights` gives them: mapped from its files, and not copied here unless
        its config names another dtype, to which transformers would convert them too. Their names stay.
    num_iterations: r_t of every layer, 0 or more.
    Returns a line for people. Raises InputError; nothing is written then.
    """
    model, kind = upcycled_model(source, _read_original(source), weights, num_iterations)
    save_checkpoint(model, destination, files_from=source)
    return f"{source} ({kind}) -> {destination} (plain IIET, {num_iterations} iterations, relaxation 0)"


def upcycled_model(
    source: str | Path, original: Any, weights: dict[str, Tensor], num_iterations: int
) -> tuple[IIETForCausalLM, str]:
    """Return the plain IIET that computes what the model of a configuration and tensors does, and what that was.

    Raises InputError, which names the source, for tensors that do not fit.
    """
    fields = {"num_iterations": num_iterations, "history": False, "relaxation": True}
    model = build_model(IIETForCausalLM, source, _block_fields(original) | fields)
    dtype = _find_dtype(source, original, weights)
    # Old checkpoints keep the rotary frequencies, which the config says anyway.
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    num_layers = original.num_hidden_layers
    for layer in range(num_layers):
        weights[f"model.layers.{layer}.corrector.relaxation"] = torch.zeros(num_iterations, dtype=dtype)
    assign_weights(model, weights, source, dtype)
    return model, f"{original.model_type}, {num_layers} layers, {str(dtype).removeprefix('torch.')}"


def _read_original(source: str | Path) -> Any:
    """Read the source's config with its family's defaults. Raises InputError unless our block can be its block."""
    written = read_config(source)
    for problem in _unknown_fields(written):
        raise InputError(f"{source}: config.json: {problem}")
    original = load_config(source)
    for problem in find_other_attention(original):
        raise InputError(f"{source}: config.json: {problem}")
    return original


def _block_fields(original: Any) -> dict[str, Any]:
    """The fields of IIETConfig that make its block the original's."""
    fields = {name: getattr(original, name) for name in SHARED_FIELDS if hasattr(original, name)}
    fields["num_layers"] = original.num_hidden_layers
    fields["attention_dropout"] = fields.get("attention_dropout") or 0.0  # a Llama's may be null
    biases = {name: getattr(original, name, False) for name in ("attention_bias", "mlp_bias")}
    return fields | biases | FAMILIES[original.model_type]


def _unknown_fields(written: dict[str, Any]) -> Iterator[str]:
    """Yield the fields that say, or may say, that this is not its family's plain block."""
    family = written.get("model_type")
    if family not in FAMILIES:
        accepted = f"{', '.join(FAMILIES)}, or a released IIET or PCformer"
        yield f"model_type: expected {accepted}, got {family!r}"
        return
    if written.get("auto_map"):
        yield "auto_map: expected transformers' own model, got code, which may compute anything"
    for name in written.get("architectures") or ():
        if str(name).lower() != f"{family}forcausallm":
            yield f"architectures: expected the causal language model of {family}, got {name}"
    if written.get("pretraining_tp") not in (None, 1):
        yield f"pretraining_tp: expected none or 1, got {written['pretraining_tp']!r}"
    if written.get("is_causal") is False:
        yield "is_causal: expected true, got false"
    known = {*SHARED_FIELDS, *_OWN_FIELDS[family], *_HARMLESS_FIELDS, *vars(GenerationConfig())}
    known |= {"num_hidden_layers", "rope_theta", "rope_scaling", "partial_rotary_factor", "is_causal"}
    for name, value in written.items():
        if name not in known and value not in _NEUTRAL:
            yield (
                f"{name}: expected a field of {family} that we know, got {value!r}, which may change what the model "
                "computes; remove it if it does not"
            )


def find_other_attention(original: Any) -> Iterator[str]:
    """Yield the fields that ask for other attention than ours: rotary embeddings or a sliding window."""
    rope, context = original.rope_parameters or {}, original.max_position_embeddings
    accepted = ("default", *ROPE_INIT_FUNCTIONS)
    if rope.get("rope_type") not in accepted:
        yield f"RoPE type: expected {', '.join(accepted)}, got {rope.get('rope_type')!r}"
    if rope.get("partial_rotary_factor") not in (None, 1):
        yield f"partial_rotary_factor: expected none or 1, got {rope['partial_rotary_factor']!r}"
    if getattr(original, "use_sliding_window", False):
        yield "use_sliding_window: expected false, got true"
    for layer_type in getattr(original, "layer_types", None) or ():
        if layer_type != "full_attention":
            yield f"layer_types: expected 'full_attention' alone, got {layer_type!r}"
    window = getattr(original, "sliding_window", None)
    if window is not None and window < context:
        yield f"sliding_window: expected null or at least max_position_embeddings ({context}), got {window}"


def _find_dtype(source: str | Path, original: Any, weights: dict[str, Tensor]) -> torch.dtype:
    """Return the dtype in which transformers loads the source: its config's or, without one, its weights'."""
    for name, tensor in weights.items():
        if tensor.dtype not in _DTYPES:
            raise InputError(f"{source}: tensor {name}: expected floating point, got {tensor.dtype}")
    dtype = original.dtype or next(iter(weights.values())).dtype
    if dtype not in _DTYPES:
        raise InputError(f"{source}: config.json: dtype: expected float32, bfloat16 or float16, got {dtype}")
    return dtype
