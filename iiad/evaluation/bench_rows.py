"""The rows of a bench: models under plans, quantized or not, all in memory at once, and one point of the grid.

Legend: B sequences, T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from iiad.artefacts import ModelIdentity
from iiad.checkpoints import DTYPES, load_identified, read_limits
from iiad.conversion.quantization import quantized_copy
from iiad.conversion.weights import copy_sharing_tensors
from iiad.errors import InputError
from iiad.memory import cache_bytes, describe_run, format_size, memory_explained, weight_bytes
from iiad.planning import Plan
from iiad.planning.plan import identify_rows
from iiad.progress import print_status

from .activation_memory import peaks_in_turn
from .compiled import CompiledDecoder
from .timing import random_prompts, run_calls

__all__ = ["Row", "check_room", "grid_prompts", "load_rows", "measure_memory", "require_free_memory"]


@dataclass(frozen=True)
class Row:
    """A model under one plan that is to be timed. Rows of one model share its weights."""

    label: str
    model: Any
    identity: ModelIdentity  # under the plan that the row runs
    quantization: str | None = None
    compiled: bool = False

    def follow(self) -> Any:
        """The model, now running the row's plan."""
        plan = self.identity.num_iterations
        # What is compiled stays so as long as nothing is set anew.
        if getattr(self.model.config, "num_iterations", plan) != plan:
            self.model.set_num_iterations(plan)
        return self.model

    def decoder(self, num_tokens: int) -> CompiledDecoder | None:
        """What decodes sequences of that length, prompt included, where the row is a compiled one."""
        return CompiledDecoder(self.follow(), num_tokens) if self.compiled else None


def check_room(model: str | Path, prompt_tokens: int, new_tokens: int) -> None:
    """Raise InputError for more tokens than the model has positions for, before it is loaded."""
    limit, _ = read_limits(model)
    if prompt_tokens + new_tokens > limit:
        found = f"prompt_tokens + new_tokens: found {prompt_tokens} + {new_tokens}"
        raise InputError(
            f"{found}; accepted: at most {limit} together, the max_position_embeddings of {model}"
        )


def load_rows(
    models: Sequence[str | Path],
    labels: Sequence[str],
    plan: Plan | None,
    kinds: Sequence[str],
    device: str,
    dtype: str,
    compiled: bool = False,
) -> list[Row]:
    """All models at once; the first also truncated where there is a plan, and quantized in each of the kinds.

    compiled: each row also compiled, right after it, but not the quantized ones. Raises InputError as
    `iiad.checkpoints.load_identified`, and where memory runs out.
    """
    rows: list[Row] = []
    for model, label in zip(models, labels, strict=True):
        remedies = ("bfloat16", "fewer models at a time")
        with memory_explained(f"loading {model} on {device} in {dtype}", remedies=remedies):
            loaded, identity = load_identified(model, device, dtype, cast=True)
            first = not rows
            for name, runs in identify_rows(label, identity, plan if first else None):
                rows.append(Row(name, loaded, runs))
                if compiled:
                    # Of its own modules: another row's plan would have them compiled again.
                    own = copy_sharing_tensors(loaded)
                    rows.append(Row(f"{name}, compiled", own, runs, compiled=True))
            for kind in kinds if first else ():
                other = quantized_copy(loaded, kind, DTYPES[dtype])
                rows.append(Row(f"{label}, {kind}", other, identity, kind))
    held = {id(row.model): weight_bytes(row.model) for row in rows if not row.compiled}
    print_status(f"models in memory at once: {len(held)}, {format_size(sum(held.values()))} of weights")
    return rows


def grid_prompts(rows: Sequence[Row], batch_size: int, num_tokens: int, seed: int) -> list[Tensor]:
    """For each row random prompts (B, T) of its vocabulary, on its device."""
    sizes = [row.model.get_input_embeddings().weight.shape[0] for row in rows]
    return [
        random_prompts(batch_size, num_tokens, size, seed).to(row.model.device)
        for row, size in zip(rows, sizes, strict=True)
    ]


def require_free_memory(rows: Sequence[Row], batch_size: int, num_tokens: int) -> None:
    """Raise InputError where not even the largest cache fits on the CPU.

    Linux gives memory away before it has it and ends, without a word, who then uses it: no error would come.
    """
    from iiad.memory import free_bytes

    for row in rows:
        model = row.follow()
        needed = cache_bytes(model, batch_size, num_tokens)
        if model.device.type == "cpu" and needed > free_bytes(model.device):
            free = format_size(free_bytes(model.device))
            raise InputError(
                f"{row.label}: found {describe_run(model, batch_size, num_tokens)}, and {free} free; what helps: "
                "a smaller batch, a shorter context, bfloat16 or fewer iterations (a plan)"
            )


@torch.no_grad()
def measure_memory(row: Row, prompts: Tensor) -> tuple[int, int]:
    """Most bytes alive at once beside the weights, in a prefill and in a decoding step after it (ours).

    The cache counts in both. A compiled row's are those of its static cache, not compiled. Not under inference mode,
    where on the CPU attention would hide what it makes.
    """
    model, decoder = row.follow(), row.decoder(prompts.shape[1] + 1)
    calls = run_calls(
        model, prompts, DynamicCache(config=model.config) if decoder is None else decoder.new_cache()
    )
    prefill, decode = peaks_in_turn([lambda: next(calls)] * 2, str(model.device))
    return prefill, decode
