"""Several processes that train one model: who this one is, and what they do together.

torchrun or accelerate starts them. Where there is one process, every function here is its own trivial case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = [
    "any_process",
    "assign",
    "barrier",
    "first_process_first",
    "from_first_process",
    "gather",
    "is_first_process",
    "join_processes",
    "mean_over_processes",
    "num_processes",
    "whole",
]


Made = TypeVar("Made")


def join_processes() -> None:
    """Find the other processes, if the environment says that there are some: nccl on GPUs, gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available())


def num_processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_process() -> bool:
    """Whether this is the one that writes files."""
    return num_processes() == 1 or dist.get_rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if num_processes() > 1:
        dist.barrier()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do something, and then the others, who find it done (in a cache, say) or fail alike."""
    if not is_first_process():
        barrier()
    try:
        yield
    finally:
        if is_first_process():
            barrier()


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of each process's tensor of that shape; the same on all."""
    if num_processes() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / num_processes()


def any_process(flag: bool) -> bool:
    """Whether the flag is raised in any process; the same answer in all."""
    if num_processes() == 1:
        return flag
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    raised = torch.tensor(int(flag), device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, any other as it is. All processes must call it alike."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors made whole, one after the other, in the first process's main memory; the others get nothing.

    All processes must call it alike.
    """
    gathered = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if is_first_process():
            gathered[name] = value.cpu()
    return gathered


def from_first_process(make: Callable[[], Made]) -> Made:
    """What the first process makes, or the error that it raises, in all of them. It must pickle."""
    if num_processes() == 1:
        return make()
    box: list[Any] = [None, None]
    if is_first_process():
        try:
            box[0] = make()
        except Exception as error:  # raised below, in every process
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter, sharded or not, to a whole value of its shape."""
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)
