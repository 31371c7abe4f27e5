"""Upcycle a model of the Llama family from a GGUF file (the extra `gguf`), through transformers' own loader.

Weights are unpacked to float32, which holds every quantized value exactly. What the loader does not read and may
change the computation (scaled rotary embeddings, say) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from iiad.checkpoints import build_empty, require_size, require_whole, save_checkpoint
from iiad.errors import InputError, one_line, shorten
from iiad.folders import require_gguf
from iiad.memory import memory_explained
from iiad.progress import format_duration, format_size, print_status, silenced

from .upcycling import FAMILIES, find_other_attention, upcycled_model

__all__ = ["upcycle_gguf"]

_SECONDS, _PER_SECOND = 10, 1e7
"""Roughly, on two cores: for the tokenizer and the rest, and parameters a second."""
# Fields of an architecture that transformers' loader reads, or that are checked here.
_FIELDS = """
block_count context_length embedding_length feed_forward_length vocab_size rope.dimension_count rope.freq_base
attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon attention.key_length
attention.value_length
""".split()
_WIDTHS = ("rope.dimension_count", "attention.key_length", "attention.value_length")
"""Fields that must be the width of a head."""
_TENSORS = re.compile(r"(token_embd|output_norm|output|blk\.\d+\.(attn|ffn)_\w+)\.(weight|bias)")


def upcycle_gguf(source: Path, destination: Path, num_iterations: int) -> str:
    """Write a plain IIET with relaxation 0 that gives the logits of the model in a GGUF file.

    Its tokenizer comes along. num_iterations: r_t of every layer, 0 or more. Returns a line for people. Raises
    InputError; nothing is written then.
    """
    require_gguf(source)
    try:
        with silenced(), memory_explained(f"{source}: unpacking", remedies=["a smaller model"]):
            original, tokenizer = _load(source)
    except InputError:
        raise
    except Exception as error:  # gguf and transformers raise many kinds; each is the user's file
        raise InputError(f"{source}: cannot be loaded: {one_line(error)}") from error
    for problem in find_other_attention(original.config):
        raise InputError(f"{source}: {problem}")
    model, kind = upcycled_model(source, original.config, original.state_dict(), num_iterations)
    save_checkpoint(model, destination, tokenizer=tokenizer)
    return f"{source} ({kind}) -> {destination} (plain IIET, {num_iterations} iterations, relaxation 0)"


def _load(source: Path) -> tuple[Any, Any]:
    """Load model and tokenizer. Raises InputError for what the loader would pass over, and what it raises itself."""
    from gguf import GGUFReader

    print_status(f"{source}: reading {format_size(source.stat().st_size)}")
    reader = GGUFReader(source)
    for problem in _find_unread(reader):
        raise InputError(f"{source}: {problem}")
    shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
    num_parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    print_status(
        f"{source}: unpacking {num_parameters:,} parameters to {format_size(4 * num_parameters)}, "
        f"about {format_duration(_SECONDS + num_parameters / _PER_SECOND)}"
    )
    # In a folder of its own: transformers would read other files beside it.
    with TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(source.resolve())
        config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf", trust_remote_code=False)
        require_size(str(source), build_empty(config), shapes)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            gguf_file="model.gguf",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf", trust_remote_code=False)
    require_whole(source, info)
    used = len(model.state_dict()) - bool(config.tie_word_embeddings)
    if used != len(shapes):
        kind = f"a {config.model_type} of {config.num_hidden_layers} layers"
        raise InputError(f"{source}: expected the {used} tensors of {kind}, got {len(shapes)}")
    for field in _WIDTHS:
        width = _value(reader, f"{_value(reader, 'general.architecture')}.{field}")
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if width not in (None, head):
            raise InputError(f"{source}: {field}: expected {head}, the width of a head, got {width}")
    return model, tokenizer


def _find_unread(reader: Any) -> Iterator[str]:
    """Yield what the loader passes over, or takes memory for before it looks at the tensors."""
    family = _value(reader, "general.architecture")
    if family not in FAMILIES:
        yield f"general.architecture: expected {', '.join(FAMILIES)}, got {shorten(family)}"
    for name in reader.fields:
        prefix, _, field = name.partition(".")
        value = _value(reader, name) if prefix == family and field not in _FIELDS else None
        if value not in (None, "none", False, 0):
            yield f"{name}: expected a field that transformers reads, got {shorten(value)}"
    for tensor in reader.tensors:
        if not _TENSORS.fullmatch(tensor.name):
            yield f"tensor {shorten(tensor.name)}: expected one that transformers reads"
    layers, most = _value(reader, f"{family}.block_count"), len(reader.tensors)
    if not isinstance(layers, int) or not 0 < layers <= most:
        yield f"{family}.block_count: expected from 1 to {most}, the number of tensors, got {shorten(layers)}"


def _value(reader: Any, name: str) -> Any:
    """Return a field of the header, None without it."""
    field = reader.get_field(name)
    return None if field is None else field.contents()
