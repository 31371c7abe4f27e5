"""Weight-only quantization of a model's blocks by torchao, the extra `quantize`. What is left alone is ours to say.

Importing this loads neither torch nor torchao. What runs where (torchao 0.18, torch 2.13):

    kind  device  torchao's configuration                       weights in a block
    int8  any     Int8WeightOnlyConfig, a scale for each row    1 byte
    int4  cpu     PrototypeInt4WeightOnlyConfig, groups of 32   1/2 byte, and a scale and zero for each group
    int4  cuda    Int4WeightOnlyConfig, tile_packed_to_4d       the same; bfloat16 only

On the CPU none of it is there for speed: int8 is widened at every call, and int4 has a fast kernel for bfloat16 alone
(in float32 a prefill of the demo's teacher takes fifty times as long). What is saved everywhere is memory.

Only the linear layers of blocks are quantized: they are what an evaluation reads, and what is run several times.
Head and embeddings stay, as they are one tensor in most of our models, of which an embedding needs the rows. Both
are read once a token, whatever the plan.
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
"""Inputs that share a scale in int4: the smallest group that the kernels take, because small models lose most."""
TILE = 16
"""What the output width must be a multiple of for the CPU's int4 kernel."""


def check_kinds(kinds: str | Iterable[str], device: str, dtype: str) -> list[str]:
    """The kinds of quantization asked for, each once, in order.

    Raises InputError: an unknown kind, one given twice, one that cannot run on the device in the dtype, or no
    torchao.
    """
    found = [kinds] if isinstance(kinds, str) else list(kinds)
    for number, kind in enumerate(found):
        if kind not in KINDS:
            raise InputError(f"quantize: found {kind!r}; accepted: {', '.join(KINDS)}")
        if kind in found[:number]:
            raise InputError(f"quantize: found {kind} twice; accepted: each once")
        _require_runnable(kind, device.partition(":")[0], dtype)
    if found:
        _import_torchao()
    return found


def quantize(model: Any, kind: str, dtype: torch.dtype | None = None) -> int:
    """Quantize the weights of the linear layers of a model's blocks, in place, to be run and not to be saved.

    A model to be saved quantized is loaded with transformers' TorchAoConfig, which leaves the head as well.
    Activations, norms, history, embeddings, head and cache keep their type. Where int4 is asked for, layers that its
    kernels do not take (an input width that is no multiple of 32, an output width that is none of 16) become int8.

    Args:
        model: a causal language model of transformers, on the device and in the dtype in which it is to run.
        kind: "int8" or "int4".
        dtype: in which the quantized layers compute, whatever comes in; default: the model's.

    Returns the number of layers that are of that kind.

    Raises InputError: an unknown kind, one that cannot run on the device or in the dtype, no torchao, or blocks
    that hold no linear layers or quantized ones.
    """
    device, dtype = model.device.type, dtype or model.dtype
    check_kinds(kind, device, str(dtype).removeprefix("torch."))
    from torchao.quantization import quantize_

    linears = dict(_block_linears(model))
    if any(hasattr(linear.weight, "__tensor_flatten__") for linear in linears.values()):
        raise InputError("quantize: found a model that is quantized already; accepted: whole weights")
    if not linears:
        raise InputError(f"quantize: found no linear layers in the blocks of a {model.config.model_type}")
    for linear in linears.values():
        linear.to(dtype)
        # Autocast does not know the kernels: what comes in from it, or from wider layers, must be made to fit.
        linear.register_forward_pre_hook(lambda _, given: (given[0].to(dtype), *given[1:]))
    fitting = {name for name, linear in linears.items() if kind == "int8" or _fits_int4(linear)}
    for names, chosen in ((fitting, kind), (linears.keys() - fitting, "int8")):
        if names:
            quantize_(model, _config(chosen, device), filter_fn=lambda _, name, names=names: name in names)
    return len(fitting)


def quantized_copy(model: Any, kind: str, dtype: torch.dtype | None = None) -> Any:
    """A copy, quantized, that shares all but the blocks' linear layers with the model.

    Raises InputError as `quantize` does.
    """
    from .weights import copy_sharing_tensors

    own = {id(tensor) for _, linear in _block_linears(model) for tensor in linear.parameters()}
    other = copy_sharing_tensors(model, except_for=own)
    quantize(other, kind, dtype)
    return other


def hide_load_remarks() -> None:
    """Drop what torchao says while it is loaded, which transformers does wherever it is installed.

    Its CUDA kernels, of which none is needed here, do not load without CUDA; and it registers two of its own enums
    with torch in a way that is about to go. Neither is anything that a user could mend. Everything else that the
    two say is left as it is.
    """
    for name, sign in (("torchao", "Failed to load "), ("torch.utils._pytree", "is an Enum subclass")):
        logging.getLogger(name).addFilter(partial(_lacks, sign))


def _lacks(sign: str, record: logging.LogRecord) -> bool:
    return sign not in record.getMessage()


def _block_linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Each linear layer with its name in the model, but those outside of the blocks (the head)."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            yield name, module


def _fits_int4(linear: nn.Linear) -> bool:
    return linear.in_features % GROUP_SIZE == 0 and linear.out_features % TILE == 0


def _require_runnable(kind: str, device: str, dtype: str) -> None:
    if device not in ("cpu", "cuda"):
        raise InputError(f"quantize: found {kind} on {device}; accepted: on cpu or cuda")
    if kind == "int4" and device == "cuda" and dtype != "bfloat16":
        raise InputError(f"quantize: found int4 in {dtype} on cuda; accepted: --dtype bfloat16")


def _import_torchao() -> None:
    try:
        import torchao.quantization  # noqa: F401  (only whether it is there)
    except ImportError as error:
        raise InputError(
            f"quantize: needs torchao ({one_line(error)}): pip install 'iiad[quantize]'"
        ) from None


def _config(kind: str, device: str) -> Any:
    """torchao's configuration. None sets up inductor, which would change what else is compiled."""
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
            f"quantize: int4 on the CPU needs torchao 0.18 or newer: {one_line(error)}"
        ) from None
    return PrototypeInt4WeightOnlyConfig(group_size=GROUP_SIZE, set_inductor_config=False)
