"""Bytes of models and caches, free memory, and the error where memory runs out. All ours.

Legend: B sequences, T tokens of context.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .progress import BINARY_UNITS, format_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "cache_bytes",
    "describe_run",
    "free_bytes",
    "is_out_of_memory",
    "machine_bytes",
    "memory_explained",
    "tensor_bytes",
    "weight_bytes",
]

_SIGNS = (
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory: you tried to allocate",  # the same on Windows
    "bad_alloc",  # C++ behind torch, where no allocator of torch's was asked
    "could not create a memory object",  # oneDNN
    "out of memory",  # CUDA libraries beside torch's allocator
)
_REMEDIES = ("a smaller batch", "a shorter context", "bfloat16", "fewer iterations (a plan)")
_TRAINING_REMEDIES = (
    "a smaller batch",
    "a shorter block_size",
    "training.gradient_checkpointing=evaluation",
    "bf16",
)


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's numbers; of a quantized tensor, of the tensors that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(tensor_bytes(getattr(tensor, name)) for name in names)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters, shared ones once."""
    return sum(tensor_bytes(parameter.data) for parameter in model.parameters())


def cache_bytes(model: Any, batch_size: int, num_tokens: int) -> int:
    """Return the bytes of a cache: slots x B x T x 2 x key/value heads x head width x itemsize.

    Slots are `config.num_hidden_layers`. T is at most the configuration's sliding window, if it has one: a lower
    bound for a model that has layers without it.
    """
    config = model.config
    num_tokens = min(num_tokens, getattr(config, "sliding_window", None) or num_tokens)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slots = config.num_hidden_layers
    return slots * batch_size * num_tokens * 2 * heads * width * model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a device; on the CPU within the limit that a container sets."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available, limit = int(_virtual_memory().available), _container_limit()
    return available if limit is None else min(available, limit[0] - limit[1])


def machine_bytes() -> int:
    """Return the bytes of this machine's memory, within the limit that a container sets."""
    total, limit = int(_virtual_memory().total), _container_limit()
    return total if limit is None else min(total, limit[0])


def _virtual_memory() -> Any:
    import psutil

    return psutil.virtual_memory()


def _container_limit() -> tuple[int, int] | None:
    """Return the most bytes and the used ones of the container, if it has a limit."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return int(limit.read_text()), int(used.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation: CUDA's, the CPU allocator's or Python's."""
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in _SIGNS)
    return isinstance(error, MemoryError)


@contextmanager
def memory_explained(
    where: str,
    model: Any = None,
    batch_size: int | None = None,
    num_tokens: int | None = None,
    *,
    cached: bool = True,
    training: bool = False,
    remedies: Sequence[str] | None = None,
) -> Iterator[None]:
    """Turn running out of memory into an InputError of one line: where, the sizes, what to change.

    Args:
        where: the work, in the user's words.
        model: the model that ran, if any; its sizes are read only when memory has run out.
        batch_size, num_tokens: B and T of the run, generated tokens included.
        cached: keys and values are kept.
        training: the model was trained, for which other changes help.
        remedies: changes that help, instead of the usual ones.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # else it keeps all that the failed call held
        parts = [f"{where}: out of memory{_asked(error)}"]
        if model is not None:
            parts.append(describe_run(model, batch_size or 1, num_tokens or 1, cached and not training))
        *others, last = remedies or (_TRAINING_REMEDIES if training else _REMEDIES)
        helps = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{'; '.join(parts)}; what helps: {helps}") from error


def describe_run(model: Any, batch_size: int, num_tokens: int, cached: bool = True) -> str:
    """Return the sizes of a run in words: B x T, evaluations, slots and bytes of the cache, bytes of the weights."""
    config = model.config
    parts = [f"batch {batch_size} x {num_tokens} tokens"]
    evaluations = getattr(config, "num_evaluations", None)
    if evaluations is not None:
        parts.append(f"{evaluations} evaluations")
    if cached:
        size = format_size(cache_bytes(model, batch_size, num_tokens))
        parts.append(f"a cache of {size} in {config.num_hidden_layers} slots")
    parts.append(f"weights of {format_size(weight_bytes(model))}, {str(model.dtype).removeprefix('torch.')}")
    return ", ".join(parts)


def _asked(error: BaseException) -> str:
    """Return the size in the message as ", asked for 4.0 GiB more", or nothing."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|[KMG]iB)", str(error))
    if found is None:
        return ""
    number, unit = found.groups()
    return f", asked for {format_size(float(number) * BINARY_UNITS.get(unit, 1))} more"
