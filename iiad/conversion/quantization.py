"""Weight-only quantization of a model's blocks by torchao (the extra `quantize`); head and embeddings stay (ours).

Importing this loads neither torch nor torchao. Kinds and devices (torchao 0.18, torch 2.13):

    kind  device  torchao's configuration                       weights in a block
    int8  any     Int8WeightOnlyConfig, a scale for each row    1 byte
    int4  cpu     PrototypeInt4WeightOnlyConfig, groups of 32   1/2 byte, and a scale and zero for each group
    int4  cuda    Int4WeightOnlyConfig, tile_packed_to_4d       the same; bfloat16 only

It saves memory, not time, on the CPU: int8 is widened at every call, and int4 has a fast kernel for bfloat16 alone
(in float32 a prefill of the demo's teacher takes fifty times as long).

Only the linear layers of blocks are quantized: every evaluation reads them. Head and embeddings, one tensor in most
models, are read once a token, whatever the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from iiad.errors import InputError, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["GROUP_SIZE", "KINDS", "check_kinds", "hide_load_remarks", "quantize", "quantized_copy"]

KINDS = ("int8", "int4")
GROUP_SIZE = 32
"""Inputs that share a scale in int4: the smallest group of the kernels, which costs small models least."""
TILE = 16
"""Output widths must be its multiples for the CPU's int4 kernel."""


def check_kinds(kinds: str | Iterable[str], device: str, dtype: str) -> list[str]:
    """Return the kinds of quantization, each once, in order.

    Raises InputError: an unknown kind, one given twice, one that cannot run on the device in the dtype, or no
    torchao.
    """
    found = [kinds] if isinstance(kinds, str) else list(kinds)
    for number, kind in enumerate(found):
        if kind not in KINDS:
            raise InputError(f"quantize: expected {' or '.join(KINDS)}, got {kind!r}")
        if kind in found[:number]:
            raise InputError(f"quantize: expected each kind once, got {kind} twice")
        _require_runnable(kind, device.partition(":")[0], dtype)
    if found:
        _import_torchao()
    return found


def quantize(model: Any, kind: str, dtype: torch.dtype | None = None) -> int:
    """Quantize the weights of the linear layers of a model's blocks, in place, to be run and not to be saved.

    To save a quantized model, load it with transformers' TorchAoConfig, which leaves the head as well. Activations,
    norms, history, embeddings, head and cache keep their type. Layers that the int4 kernels do not take (an input
    width that is no multiple of 32, an output width that is none of 16) become int8.

    Args:
        model: a causal language model of transformers, on the device and in the dtype in which it is to run.
        kind: "int8" or "int4".
        dtype: in which the quantized layers compute, whatever comes in; default: the model's.

    Returns the number of layers of that kind.

    Raises InputError: an unknown kind, one that cannot run on the device or in the dtype, no torchao, or blocks
    that hold no linear layers or quantized ones.
    """
    device, dtype = model.device.type, dtype or model.dtype
    check_kinds(kind, device, str(dtype).removeprefix("torch."))
    from torchao.quantization import quantize_

    linears = dict(_block_linears(model))
    if any(hasattr(linear.weight, "__tensor_flatten__") for linear in linears.values()):
        raise InputError("quantize: expected whole weights, got a model that is quantized already")
    if not linears:
        raise InputError(
            f"quantize: expected linear layers in the blocks, got none in a {model.config.model_type}"
        )
    for linear in linears.values():
        linear.to(dtype)
        # Autocast does not know the kernels: inputs from it, or from wider layers, are cast.
        linear.register_forward_pre_hook(lambda _, given: (given[0].to(dtype), *given[1:]))
    fitting = {name for name, linear in linears.items() if kind == "int8" or _fits_int4(linear)}
    for names, chosen in ((fitting, kind), (linears.keys() - fitting, "int8")):
        if names:
            quantize_(model, _config(chosen, device), filter_fn=lambda _, name, names=names: name in names)
    return len(fitting)


def quantized_copy(model: Any, kind: str, dtype: torch.dtype | None = None) -> Any:
    """Return a quantized copy that shares all but the blocks' linear layers with the model.

    Raises InputError as `quantize` does.
    """
    from .weights import copy_sharing_tensors

    own = {id(tensor) for _, linear in _block_linears(model) for tensor in linear.parameters()}
    other = copy_sharing_tensors(model, except_for=own)
    quantize(other, kind, dtype)
    return other


def hide_load_remarks() -> None:
    """Hide two remarks of torchao when transformers loads it: no CUDA kernels, an enum registered the old way."""
    for name, sign in (("torchao", "Failed to load "), ("torch.utils._pytree", "is an Enum subclass")):
        logging.getLogger(name).addFilter(partial(_lacks, sign))


def _lacks(sign: str, record: logging.LogRecord) -> bool:
    return sign not in record.getMessage()


def _block_linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield each linear layer of the blocks with its name in the model."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            yield name, module


def _fits_int4(linear: nn.Linear) -> bool:
    return linear.in_features % GROUP_SIZE == 0 and linear.out_features % TILE == 0


def _require_runnable(kind: str, device: str, dtype: str) -> None:
    if device not in ("cpu", "cuda"):
        raise InputError(f"quantize: expected cpu or cuda, got {kind} on {device}")
    if kind == "int4" and device == "cuda" and dtype != "bfloat16":
        raise InputError(f"quantize: expected --dtype bfloat16 for int4 on cuda, got {dtype}")


def _import_torchao() -> None:
    try:
        import torchao.quantization  # noqa: F401  (only whether it is there)
    except ImportError as error:
        raise InputError(
            f"quantize: expected torchao (pip install 'iiad[quantize]'), got {one_line(error)}"
        ) from None


def _config(kind: str, device: str) -> Any:
    """Return torchao's configuration, none of which sets up inductor, which would change other compiled code."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if kind == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if device == "cuda":
        return Int4WeightOnlyConfig(
            group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    try:  # the packing that the CPU has a kernel for is still among torchao's prototypes
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError as error:
        raise InputError(
            f"quantize: expected torchao 0.18 or newer for int4 on the CPU, got {one_line(error)}"
        ) from None
    return PrototypeInt4WeightOnlyConfig(group_size=GROUP_SIZE, set_inductor_config=False)
