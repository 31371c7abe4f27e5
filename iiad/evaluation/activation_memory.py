"""Memory that some work holds at once or saves for backward, counted and not timed: the same number every time."""

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
    """Bytes of tensors that `work` made and that were alive at the same time, at most (ours).

    What was alive before is not counted, nor is what an operation uses inside itself (on the CPU; on CUDA it is, as
    the caching allocator's own peak is read). The result of `work` is dropped.
    """
    return peaks_in_turn([work], device)[0]


def peaks_in_turn(works: Sequence[Callable[[], Any]], device: str = "cpu") -> list[int]:
    """`peak_bytes` of each of several works, done one after another: what one leaves alive counts for the next.

    On the CPU inside an operation is inside what torch runs as one: under torch.inference_mode() that is all of
    scaled_dot_product_attention, with the copy that it makes of a mask; under torch.no_grad() it is its kernel.
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
    """Bytes of the activations that autograd saves for the backward pass while `work` runs (ours).

    Every storage is counted once and whole, however many tensors and views of it are saved. Weights are no
    activations: parameters (leaves that require a gradient), their copies in another type, which autocast makes, and
    all that belongs to `modules` are left out. What is saved only until a recomputation is not counted either, but
    the inputs of what will be recomputed are. The result of `work` is dropped.
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
    """Whether it is a leaf that requires a gradient, or such a leaf's view or copy in another type."""
    if tensor.is_leaf:
        return tensor.requires_grad
    node: Any = tensor.grad_fn
    while node is not None and node.name() in _WEIGHT_COPIES:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "torch::autograd::AccumulateGrad"


_WEIGHT_COPIES = ("ToCopyBackward0", "TBackward0", "TransposeBackward0")


class _Allocations(TorchDispatchMode):
    """Follows every storage that an operation makes, until it is freed."""

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
