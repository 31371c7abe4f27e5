"""Checks of a recipe's training section against model, text and machine, before anything is written."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.tracking import get_available_trackers
from transformers import PreTrainedModel

from iiad.errors import InputError, one_line
from iiad.progress import print_status

from .batches import Blocks, blocks_per_step
from .sections import OptimizationSection

__all__ = ["announce", "check_stage"]


def announce(optimization: OptimizationSection) -> None:
    """Say what of a recipe will have no effect."""
    if optimization.fsdp and PartialState().num_processes == 1:
        print_status("training.fsdp: there is one process, so nothing is sharded")


def check_stage(model: PreTrainedModel, blocks: Blocks, optimization: OptimizationSection) -> None:
    """Raise InputError for what would stop `run_stage` at its start; set the model's attention.

    That is: fewer blocks than one step needs, bf16 on a GPU without it, an attention, a tracker or a compiler that is
    not installed.
    """
    batch = blocks_per_step(optimization)
    if len(blocks) < batch:
        raise InputError(
            f"data.train has {len(blocks)} blocks; one step needs {batch} "
            "(per_device_train_batch_size x gradient_accumulation_steps x processes)"
        )
    if optimization.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError("training.bf16: this GPU has no bfloat16; accepted here: false")
    if optimization.attn_implementation is not None:
        try:
            model.set_attn_implementation(optimization.attn_implementation)
        except (ImportError, ValueError) as error:
            wanted = optimization.attn_implementation
            raise InputError(f"training.attn_implementation: {wanted}: {one_line(error)}") from None
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in optimization.report_to:
        if tracker not in installed:
            known = ", ".join(installed) or "none"
            raise InputError(f"training.report_to: {tracker!r} is not installed; installed here: {known}")
    if optimization.torch_compile:  # not otherwise: to look for backends takes seconds
        backends = torch.compiler.list_backends(exclude_tags=())
        if optimization.torch_compile_backend not in backends:
            raise InputError(
                f"training.torch_compile_backend: found {optimization.torch_compile_backend!r}; accepted here: "
                f"{', '.join(sorted(backends))}"
            )
