"""Bytes that work holds at once or saves for backward: counted, so the same every time. All ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import record_function

from .tracing import traced_events

__all__ = ["peak_bytes", "peaks_in_turn", "saved_bytes"]

_WORK = "iiad.work"


def peak_bytes(work: Callable[[], Any], device: str = "cpu") -> int:
    """Return the most bytes of tensors made by `work` that were alive at once. Its result is dropped.

    Tensors from before are not counted; what an operation takes meanwhile from torch's allocator is.
    """
    return peaks_in_turn([work], device)[0]


def peaks_in_turn(works: Sequence[Callable[[], Any]], device: str = "cpu") -> list[int]:
    """Return `peak_bytes` of works done one after another: tensors that one leaves alive count for the next."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        return [_cuda_peak(work, device) - before for work in works]

    def run() -> None:
        for work in works:
            with record_function(_WORK):
                work()

    alive: dict[int, int] = {}  # address -> bytes
    held, peaks = 0, []
    for event in traced_events(run, memory=True):
        if event["name"] == _WORK:
            peaks.append(held)
        elif event["name"] == "[memory]" and peaks:
            address, size = event["args"]["Addr"], event["args"]["Bytes"]
            if size > 0:
                alive[address] = size
            held += size if size > 0 else -alive.pop(address, 0)  # not known: a tensor from before
            peaks[-1] = max(peaks[-1], held)
    return peaks


def _cuda_peak(work: Callable[[], Any], device: str) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def saved_bytes(work: Callable[[], Any], *modules: nn.Module) -> int:
    """Return the bytes of activations that autograd saves for the backward pass while `work` runs.

    Every storage counts once and whole, however many of its views are saved. Weights do not count: parameters (leaves
    that require a gradient), their copies by autocast, and all tensors of `modules`. Of recomputed work only the
    inputs count. The result of `work` is dropped.
    """
    owned = {
        tensor.untyped_storage().data_ptr()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not _is_weight(tensor) and storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage
        return tensor.detach()  # the tensor itself, if it is an output, would keep its own graph alive

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in saved.values())


def _is_weight(tensor: Tensor) -> bool:
    """Return whether it is a leaf that requires a gradient, or such a leaf's view or copy in another type."""
    if tensor.is_leaf:
        return tensor.requires_grad
    node: Any = tensor.grad_fn
    while node is not None and node.name() in _WEIGHT_COPIES:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "torch::autograd::AccumulateGrad"


_WEIGHT_COPIES = ("ToCopyBackward0", "TBackward0", "TransposeBackward0")
