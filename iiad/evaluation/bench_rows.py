"""The rows of a bench: models under plans, quantized or compiled, all in memory at once.

Legend: B sequences, T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.checkpoints import DTYPES, load_identified
from iiad.conversion.quantization import quantized_copy
from iiad.conversion.weights import copy_sharing_tensors
from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.memory import cache_bytes, describe_run, free_bytes, memory_explained, weight_bytes
from iiad.models import count_evaluations
from iiad.planning.binding import OwnPlan, identify_rows
from iiad.planning.plan import Plan
from iiad.progress import format_size, print_status

from .activation_memory import peaks_in_turn
from .timing import cached_tokens, new_cache, random_prompts, run_calls

__all__ = ["Row", "load_rows", "measure_evaluations", "measure_peaks", "require_free_memory"]


@dataclass(frozen=True)
class Row:
    """A model to be timed under one plan. Rows of one model share its weights."""

    label: str
    model: Any
    identity: ModelIdentity  # with the plan that the row runs
    quantization: str | None = None
    compiled: bool = False

    def under_plan(self) -> Any:
        """Return the model after setting the row's plan."""
        if hasattr(self.model, "follow_plan"):
            wanted, config = self.identity, self.model.config
            runs = (config.iterations, config.stop_extrapolation, config.tolerances)
            stops = wanted.tolerance or [None] * wanted.num_layers
            # Setting the same plan again would have a compiled model compiled again.
            if runs != (wanted.num_iterations, wanted.coefficients, stops):
                self.model.follow_plan(wanted)
        return self.model

    def prompts(self, batch_size: int, num_tokens: int, seed: int) -> Tensor:
        """Return random prompts (B, T) of the model's vocabulary, on its device."""
        vocab_size = self.model.get_input_embeddings().weight.shape[0]
        return random_prompts(batch_size, num_tokens, vocab_size, seed).to(self.model.device)


def load_rows(
    models: Sequence[str | Path],
    labels: Sequence[str],
    plan: Plan | OwnPlan | None,
    kinds: Sequence[str],
    device: str,
    dtype: str,
    compiled: bool = False,
) -> list[Row]:
    """Load all models; add the first truncated to the plan, and quantized in each of the kinds.

    compiled: add each row but the quantized ones again, compiled. Raises InputError as
    `iiad.checkpoints.load_identified` does, and where memory runs out.
    """
    rows: list[Row] = []
    for model, label in zip(models, labels, strict=True):
        remedies = ("bfloat16", "fewer models at a time")
        with memory_explained(f"loading {model} on {device} in {dtype}", remedies=remedies):
            loaded, identity = load_identified(model, device, dtype, cast=True, kind=None)
            first = not rows
            for name, runs in identify_rows(label, identity, plan if first else None):
                rows.append(Row(name, loaded, runs))
                if compiled:
                    # Own modules: another row's plan would have them compiled again.
                    own = copy_sharing_tensors(loaded)
                    rows.append(Row(f"{name}, compiled", own, runs, compiled=True))
            for kind in kinds if first else ():
                other = quantized_copy(loaded, kind, DTYPES[dtype])
                rows.append(Row(f"{label}, {kind}", other, identity, kind))
    held = {id(row.model): weight_bytes(row.model) for row in rows if not row.compiled}
    print_status(f"models in memory at once: {len(held)}, {format_size(sum(held.values()))} of weights")
    return rows


def require_free_memory(rows: Sequence[Row], batch_size: int, prompt_tokens: int, new_tokens: int) -> None:
    """Raise InputError where a row's cache is larger than the free memory of the CPU.

    Linux grants memory before it has it and kills the process that then uses it, without an error.
    """
    for row in rows:
        model = row.under_plan()
        num_tokens, free = cached_tokens(model, prompt_tokens, new_tokens), free_bytes(model.device)
        if model.device.type == "cpu" and cache_bytes(model, batch_size, num_tokens) > free:
            raise InputError(
                f"{row.label}: expected to fit into {format_size(free)} of free memory, got "
                f"{describe_run(model, batch_size, num_tokens)}; what helps: a smaller batch, a shorter context, "
                "bfloat16 or fewer iterations (a plan)"
            )


@torch.inference_mode()
def measure_evaluations(row: Row, prompts: Tensor, num_steps: int) -> dict[str, float]:
    """Return the mean evaluations of a token in "prefill" and in "decode"; none where all tokens run all iterations.

    Of an encoder-decoder those of its encoder and of its decoder.
    """
    model = row.under_plan()
    if getattr(model.config, "tolerance", None) is None:
        return {}
    calls = run_calls(model, prompts, new_cache(model))
    with count_evaluations(model) as counts:
        for _ in range(num_steps + 1):
            next(calls)
    encoder = row.identity.num_encoder_layers
    read = [each[0] for each in counts.calls[: encoder or None]]
    decoded = [torch.cat(each[0 if encoder else 1 :], 1) for each in counts.calls[encoder:]]
    parts = {"prefill": read, "decode": decoded}
    return {phase: sum(float(each.double().mean()) for each in part) for phase, part in parts.items()}


@torch.inference_mode()
def measure_peaks(row: Row, prompts: Tensor) -> dict[str, int]:
    """Return the most bytes alive at once beside the weights, the cache included, in "prefill" and a "decode" step.

    A compiled row runs eager on its static cache.
    """
    model = row.under_plan()
    calls = run_calls(model, prompts, new_cache(model, (prompts.shape[1], 1) if row.compiled else None))
    prefill, decode = peaks_in_turn([lambda: next(calls)] * 2, str(model.device))
    return {"prefill": prefill, "decode": decode}
