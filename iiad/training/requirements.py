"""Checks of a recipe's training section against machine and model, before anything is written."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.tracking import get_available_trackers
from transformers import PreTrainedModel

from iiad.errors import InputError, one_line
from iiad.progress import print_status

from .estimates import find_excess
from .precision import decide_bf16
from .recipes import Recipe, shortened_fields
from .sections import OptimizationSection

__all__ = ["fit_recipe", "require_memory", "set_attention"]


def fit_recipe(recipe: Recipe, folder: str | Path) -> Recipe:
    """Return the recipe with bf16 decided for this machine and for the run in the folder. Collective.

    Notes what is cut short or idle. Raises InputError for bf16, a tracker or a compiler that is not here.
    """
    require_memory(recipe)
    bf16 = decide_bf16(recipe.training.bf16, Path(folder))
    fitted = recipe.model_copy(update={"training": recipe.training.model_copy(update={"bf16": bf16})})
    for line in shortened_fields(fitted):
        print_status(line)
    _check_machine(fitted.training)
    return fitted


def require_memory(recipe: Recipe, vocab_size: int | None = None) -> None:
    """Raise InputError for a new model that this machine's memory cannot hold; on a CPU, not while it learns."""
    if excess := find_excess(recipe, vocab_size, states=not torch.cuda.is_available()):
        raise InputError(excess)


def _check_machine(optimization: OptimizationSection) -> None:
    if optimization.fsdp and PartialState().num_processes == 1:
        print_status("training.fsdp: there is one process, so nothing is sharded")
    if optimization.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError("training.bf16: expected false on this GPU, which has no bfloat16, got true")
    trackers = [str(tracker) for tracker in get_available_trackers()]
    for tracker in optimization.report_to:
        _require_installed("report_to", tracker, trackers)
    if optimization.torch_compile:  # not otherwise: to look for backends takes seconds
        backends = sorted(torch.compiler.list_backends(exclude_tags=()))
        _require_installed("torch_compile_backend", optimization.torch_compile_backend, backends)


def _require_installed(field: str, wanted: str, installed: list[str]) -> None:
    if wanted not in installed:
        known = ", ".join(installed) or "none"
        raise InputError(f"training.{field}: expected one that is installed here ({known}), got {wanted!r}")


def set_attention(model: PreTrainedModel, optimization: OptimizationSection) -> None:
    """Have the model attend as the recipe says. Raises InputError for an attention that is not installed."""
    wanted = optimization.attn_implementation
    try:
        if wanted is not None:
            model.set_attn_implementation(wanted)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"training.attn_implementation: expected one that runs here, got {wanted!r}: {one_line(error)}"
        ) from None
