"""Bytes that work holds at once or saves for backward: counted, so the same every time. All ours."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes", "peaks_in_turn", "saved_bytes"]


def peak_bytes(work: Callable[[], Any], device: str = "cpu") -> int:
    """Return the most bytes of tensors made by `work` that were alive at once. Its result is dropped.

    Tensors from before are not counted. Memory inside an operation counts on CUDA, by the caching allocator's own
    peak, and not on the CPU.
    """
    return peaks_in_turn([work], device)[0]


def peaks_in_turn(works: Sequence[Callable[[], Any]], device: str = "cpu") -> list[int]:
    """Return `peak_bytes` of works done one after another: tensors that one leaves alive count for the next.

    On the CPU an operation is what torch dispatches as one: under torch.inference_mode() all of
    scaled_dot_product_attention, with its copy of a mask; under torch.no_grad() its kernel alone.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        return [_cuda_peak(work, device) - before for work in works]
    peaks = []
    with _Allocations() as allocations:
        for work in works:
            allocations.peak = allocations.held
            work()
            peaks.append(allocations.peak)
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
        tensor.untyped_storage()._cdata
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not _is_weight(tensor) and storage._cdata not in owned:
            saved[storage._cdata] = storage
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


class _Allocations(TorchDispatchMode):
    """Follow every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # address -> bytes
        self.held = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage(), known)
        return result

    def _follow(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in known or address in self.alive or not size:
            return
        self.alive[address] = size
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        self.held -= self.alive.pop(address, 0)
