"""Several processes that train one model, on accelerate's state: torchrun or `accelerate launch` starts them.

With one process every function here is its trivial case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from iiad.outputs import lock_folder

__all__ = [
    "any_process",
    "assign",
    "first_process_first",
    "from_first_process",
    "gather",
    "gather_full",
    "join_processes",
    "lock_run",
    "mean_over_processes",
    "place_like",
]

Made = TypeVar("Made")


def join_processes() -> None:
    """Join the processes that the environment names: nccl on GPUs, gloo on CPUs."""
    PartialState(cpu=not torch.cuda.is_available())


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the block in the first process, then in the others, who find its work done (in a cache) or fail alike."""
    first = PartialState().is_main_process
    if not first:
        PartialState().wait_for_everyone()
    try:
        yield
    finally:
        if first:
            PartialState().wait_for_everyone()


def from_first_process(make: Callable[[], Made]) -> Made:
    """Run `make` in the first process; return its result, or raise its error, in all. Both must pickle."""
    if PartialState().num_processes == 1:
        return make()
    box: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            box[0] = make()
        except Exception as error:  # raised below, in every process
            box[1] = error
    broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


@contextmanager
def lock_run(folder: str | Path) -> Iterator[None]:
    """Have the first process lock a run's folder while the block runs. Raises InputError, in all, if it cannot."""
    with ExitStack() as held:
        from_first_process(lambda: held.enter_context(lock_folder(folder)))
        yield


def any_process(flag: bool) -> bool:
    """True in all processes if the flag is set in any. Collective."""
    return bool(reduce(torch.tensor(int(flag), device=PartialState().device), "sum"))


def mean_over_processes(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of scalars over all processes, by name. Collective."""
    return {name: value.item() for name, value in reduce(dict(values), "mean").items()}


def gather_full(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; return any other as it is. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors, one by one, on the first process (CPU); the others get {}. Collective."""
    gathered = {}
    for name, tensor in tensors.items():
        value = gather_full(tensor)
        if PartialState().is_main_process:
            gathered[name] = value.cpu()
    return gathered


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """Move a whole value to another tensor's device, sharded as that one is."""
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter, sharded or not, to a whole value of its shape."""
    parameter.copy_(place_like(value, parameter))
