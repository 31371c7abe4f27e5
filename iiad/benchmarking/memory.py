"""The most memory that some work holds at once, counted and not timed: the same number every time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


def peak_bytes(work: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes of tensors that `work` made and that were alive at the same time, at most (ours).

    What was alive before is not counted, nor is what an operation uses inside itself (on the CPU; on CUDA it is, as
    the caching allocator's own peak is read). The result of `work` is dropped.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Allocations() as allocations:
        work()
    return allocations.peak


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
