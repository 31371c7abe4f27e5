"""Several models timed in turn, so that whatever slows the machine for a while slows all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.errors import InputError
from iiad.evaluation.cost import Cost, block_shape, compute_cut
from iiad.loading import (
    choose_device,
    choose_dtype,
    identify_rows,
    label_models,
    load_identified,
    read_limits,
    read_plan,
)
from iiad.planning import Plan
from iiad.reporting.progress import progress, say

from .artefact import Bench, BenchResult, BenchSettings, Spread
from .machine import device_name
from .timing import Timing, random_prompts, time_model

__all__ = ["bench_models", "check_counts"]


@dataclass(frozen=True)
class _Row:
    """A model under one plan that is to be timed. Rows of one model share its weights."""

    label: str
    model: Any
    cost: Cost
    prompts: Tensor

    def run(self, num_steps: int) -> Timing:
        """One run; following the plan first is not timed."""
        if hasattr(self.model, "set_num_iterations"):
            self.model.set_num_iterations(self.cost.identity.num_iterations)
        return time_model(self.model, self.prompts, num_steps)


def bench_models(
    models: Sequence[str | Path],
    *,
    plan: Plan | str | Path | None = None,
    batch_size: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> Bench:
    """Prefill and decoding speed, evaluations and cache of each model, compared with the first.

    All models are held in memory at once and timed in turn, round by round, after one round that warms up.
    Ratios are taken within a round. Prompts are random tokens: speed does not depend on what they say.

    Args:
        models: folders or hub names; the first is what the others are compared with.
        plan: a plan or its file: adds the first model truncated to it as the second row.
        batch_size: sequences at a time.
        prompt_tokens: tokens of each prompt.
        new_tokens: decoding steps, one token of each sequence a step.
        repeats: measured rounds.
        seed: of the prompts.
        device: default: CUDA where there is one, else the CPU.
        dtype: of weights and cache, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.

    Raises:
        InputError: a model, a value or the plan cannot be used. All that can be known without loading a model
            is checked first.
    """
    counts = {"batch_size": batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    check_counts({**counts, "repeats": repeats}, seed)
    labels = label_models(models)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    budget = read_plan(plan)
    for model in models:
        _check_room(model, prompt_tokens, new_tokens)
    settings = BenchSettings(
        **counts,
        repeats=repeats,
        seed=seed,
        dtype=dtype,
        device=device,
        device_name=device_name(device),
        num_threads=torch.get_num_threads(),
        torch_version=torch.__version__,
    )
    rows = _load_rows(models, labels, budget, settings)
    timings = _run_rounds(rows, new_tokens, repeats)
    results = [
        _describe(row, rows[0], own, timings[0], settings) for row, own in zip(rows, timings, strict=True)
    ]
    return Bench(settings=settings, results=results)


def check_counts(counts: dict[str, int], seed: int) -> None:
    """Raise InputError for a count below 1 or a seed below 0."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name}: found {value}; accepted: at least 1")
    if seed < 0:
        raise InputError(f"seed: found {seed}; accepted: at least 0")


def _check_room(model: str | Path, prompt_tokens: int, new_tokens: int) -> None:
    limit, _ = read_limits(model)
    if prompt_tokens + new_tokens > limit:
        found = f"prompt_tokens + new_tokens: found {prompt_tokens} + {new_tokens}"
        raise InputError(
            f"{found}; accepted: at most {limit} together, the max_position_embeddings of {model}"
        )


def _load_rows(
    models: Sequence[str | Path], labels: Sequence[str], plan: Plan | None, settings: BenchSettings
) -> list[_Row]:
    """All models at once, the first also truncated where there is a plan."""
    rows: list[_Row] = []
    size = 0
    for model, label in zip(models, labels, strict=True):
        loaded, identity = load_identified(model, settings.device, settings.dtype, cast=True)
        size += sum(parameter.nbytes for parameter in loaded.parameters())
        vocab_size = loaded.get_input_embeddings().weight.shape[0]
        prompts = random_prompts(settings.batch_size, settings.prompt_tokens, vocab_size, settings.seed)
        cost_shape = block_shape(loaded.config)
        for name, runs in identify_rows(label, identity, None if rows else plan):
            rows.append(_Row(name, loaded, Cost(runs, cost_shape), prompts.to(settings.device)))
    say(f"models in memory at once: {len(models)}, {size / 2**20:.1f} MiB of weights")
    return rows


def _run_rounds(rows: Sequence[_Row], new_tokens: int, repeats: int) -> list[list[Timing]]:
    """For each row its timing in each round, the first round left out: it warms up."""
    timings: list[list[Timing]] = [[] for _ in rows]
    with progress("timing", (repeats + 1) * len(rows), "runs") as advance:
        for _ in range(repeats + 1):
            for row, own in zip(rows, timings, strict=True):
                own.append(row.run(new_tokens))
                advance(1)
    return [own[1:] for own in timings]


def _describe(
    row: _Row, first: _Row, own: Sequence[Timing], other: Sequence[Timing], settings: BenchSettings
) -> BenchResult:
    """A row as it is written down: own timings, and those of the first row in the same rounds."""
    prompt_total = settings.batch_size * settings.prompt_tokens
    new_total = settings.batch_size * settings.new_tokens
    rounds = list(zip(own, other, strict=True))
    cut = compute_cut(row.cost, first.cost)
    return BenchResult(
        label=row.label,
        model=row.cost.identity,
        prefill_tokens_per_second=Spread.of([prompt_total / run.prefill_seconds for run in own]),
        decode_tokens_per_second=Spread.of([new_total / run.decode_seconds for run in own]),
        prefill_speedup=Spread.of([base.prefill_seconds / run.prefill_seconds for run, base in rounds]),
        decode_speedup=Spread.of([base.decode_seconds / run.decode_seconds for run, base in rounds]),
        predicted_speedup=None if cut is None else 1 / (1 - cut),
        evaluations_per_token=row.cost.evaluations_per_token,
        cache_bytes_per_token=row.cost.cache_bytes_per_token,
        cache_bytes=own[-1].cache_bytes,
        cache_ratio=own[-1].cache_bytes / other[-1].cache_bytes,
    )
