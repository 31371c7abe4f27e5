"""Several models timed in turn, so that whatever slows the machine for a while slows all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from iiad.checkpoints import choose_device, choose_dtype, label_models
from iiad.conversion.quantization import check_kinds
from iiad.errors import InputError
from iiad.memory import memory_explained, weight_bytes
from iiad.planning import Plan
from iiad.planning.costs import compare_costs
from iiad.planning.plan import read_plan
from iiad.progress import progress

from .bench_artefact import Bench, BenchResult, BenchSettings, Breakdown, Phase, Spread
from .bench_rows import Row, check_room, grid_prompts, load_rows, measure_memory, require_free_memory
from .breakdown import WatchedCall, can_be_watched, summarise_calls, watch_run
from .compiled import require_compiler
from .machine import device_name
from .quality_artefact import Evaluation
from .timing import Timing, time_model

__all__ = ["bench_models", "check_counts"]

WATCHED_ROUNDS = 3
"""Extra runs in which parts are watched, fewer where fewer rounds are measured."""


@dataclass
class _Measured:
    """What was measured of one row at one point of the grid."""

    timings: list[Timing]
    watched: list[dict[str, WatchedCall]]
    peaks: tuple[int, int] = (0, 0)

    def breakdown(self, phase: str) -> Breakdown | None:
        """Where the time of a call goes, if that was watched."""
        return summarise_calls([run[phase] for run in self.watched]) if self.watched else None

    def seconds(self, phase: str) -> list[float]:
        """Of each round."""
        return [getattr(timing, f"{phase}_seconds") for timing in self.timings]


def bench_models(
    models: Sequence[str | Path],
    *,
    plan: Plan | str | Path | None = None,
    quantize: Sequence[str] = (),
    compiled: bool = False,
    evaluation: Evaluation | str | Path | None = None,
    batch_size: int | Sequence[int] = 1,
    prompt_tokens: int | Sequence[int] = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> Bench:
    """Prefill and decoding speed, memory, evaluations and cache of each model, compared with the first.

    All models are held in memory at once and timed in turn, round by round, after one round that warms up, at each
    batch size with each number of prompt tokens. Ratios are taken within a round. Memory and what the time goes to
    are measured in runs of their own. Prompts are random tokens: speed does not depend on what they say.

    Args:
        models: folders or hub names; the first is what the others are compared with.
        plan: a plan or its file: adds the first model truncated to it as the second row.
        quantize: kinds of weight-only quantization, "int8" or "int4": each adds the first model in it as a row.
        compiled: adds each row but the quantized ones again, decoding from a static cache through torch.compile.
        evaluation: an evaluation or its file, to take perplexity and accuracy from where it has the same model under
            the same plan and quantization.
        batch_size: sequences at a time, one number or several.
        prompt_tokens: tokens of each prompt, one number or several.
        new_tokens: decoding steps, one token of each sequence a step.
        repeats: measured rounds.
        seed: of the prompts.
        device: default: CUDA where there is one, else the CPU.
        dtype: of weights and cache, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.

    Raises:
        InputError: a model, a value or the plan cannot be used, or memory runs out. All that can be known without
            loading a model is checked first.
    """
    grid = {
        "batch_size": _grid_side("batch_size", batch_size),
        "prompt_tokens": _grid_side("prompt_tokens", prompt_tokens),
    }
    check_counts({"new_tokens": new_tokens, "repeats": repeats}, seed)
    labels = label_models(models)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    budget = read_plan(plan)
    kinds = check_kinds(quantize, device, dtype)
    scores = Evaluation.load(evaluation) if isinstance(evaluation, str | Path) else evaluation
    if compiled:
        require_compiler(device)
    for model in models:
        check_room(model, max(grid["prompt_tokens"]), new_tokens)
    settings = BenchSettings(
        **grid,
        new_tokens=new_tokens,
        repeats=repeats,
        seed=seed,
        dtype=dtype,
        device=device,
        device_name=device_name(device),
        num_threads=torch.get_num_threads(),
        torch_version=torch.__version__,
    )
    rows = load_rows(models, labels, budget, kinds, device, dtype, compiled)
    quality = [_quality(row, scores) for row in rows]
    if scores is not None and not any(quality):
        raise InputError("evaluation: holds none of these models under their plans; accepted: one that does")
    results: list[BenchResult] = []
    points = list(product(settings.batch_size, settings.prompt_tokens))
    for batch, context in points:  # all of them before hours are spent on the first
        require_free_memory(rows, batch, context + new_tokens)
    for point in points:
        measured = _measure_point(rows, *point, settings)
        results += [
            _describe(row, rows[0], own, measured[0], point).model_copy(update=score)
            for row, own, score in zip(rows, measured, quality, strict=True)
        ]
    return Bench(settings=settings, results=results)


def check_counts(counts: dict[str, int], seed: int) -> None:
    """Raise InputError for a count below 1 or a seed below 0."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name}: found {value}; accepted: at least 1")
    if seed < 0:
        raise InputError(f"seed: found {seed}; accepted: at least 0")


def _grid_side(name: str, values: int | Sequence[int]) -> list[int]:
    """One side of the grid, each number once. Raises InputError for none, or one below 1."""
    found = [values] if isinstance(values, int) else list(dict.fromkeys(values))
    if not found:
        raise InputError(f"{name}: found none; accepted: at least one number")
    for value in found:
        check_counts({name: value}, 0)
    return found


def _measure_point(
    rows: Sequence[Row], batch_size: int, prompt_tokens: int, settings: BenchSettings
) -> list[_Measured]:
    """For each row memory, its timings after a round that warms up, then watched runs."""
    steps, repeats = settings.new_tokens, settings.repeats
    prompts = grid_prompts(rows, batch_size, prompt_tokens, settings.seed)
    watched = min(WATCHED_ROUNDS, repeats)
    measured = [_Measured([], []) for _ in rows]
    decoders = [row.decoder(prompt_tokens + steps) for row in rows]
    torch.compiler.reset()  # of one function only so many versions are kept
    turns = list(zip(rows, prompts, measured, strict=True))
    title = f"batch {batch_size} x {prompt_tokens} tokens"
    with progress(title, (2 + repeats + watched) * len(rows), "runs") as advance:
        for row, given, own in turns:  # first: what does not fit shows at once
            with _explained(row, given, steps):
                own.peaks = measure_memory(row, given)
            advance(1)
        for _ in range(repeats + 1):
            for (row, given, own), decoder in zip(turns, decoders, strict=True):
                with _explained(row, given, steps):
                    own.timings.append(time_model(row.follow(), given, steps, decoder))
                advance(1)
        for _ in range(watched):
            for row, given, own in turns:
                if not row.compiled and can_be_watched(row.model):
                    own.watched.append(watch_run(row.follow(), given, steps))
                advance(1)
    for own in measured:
        del own.timings[0]
    return measured


def _quality(row: Row, scores: Evaluation | None) -> dict[str, float]:
    """What an evaluation says of the row's model under its plan, nothing where it has no such entry."""
    for result in scores.results if scores is not None else ():
        same = (result.model.fingerprint, result.model.num_iterations, result.quantization)
        if same == (row.identity.fingerprint, row.identity.num_iterations, row.quantization):
            return {"perplexity": result.perplexity, "accuracy": result.accuracy}
    return {}


@contextmanager
def _explained(row: Row, prompts: Tensor, num_steps: int) -> Iterator[None]:
    batch_size, num_tokens = prompts.shape
    where = f"{row.label} on {prompts.device}"
    with memory_explained(where, row.model, batch_size, num_tokens + num_steps):
        yield


def _describe(row: Row, first: Row, own: _Measured, other: _Measured, point: tuple[int, int]) -> BenchResult:
    """A row as it is written down: own timings, and those of the first row in the same rounds."""
    batch_size, prompt_tokens = point
    _, cut = compare_costs(row.identity, first.identity)
    cut = None if row.quantization or row.compiled else cut
    predicted = None if cut is None else 1 / (1 - cut)
    cache, first_cache = own.timings[-1].cache_bytes, other.timings[-1].cache_bytes
    num_new = own.timings[-1].tokens.shape[1] - 1
    return BenchResult(
        label=row.label,
        model=row.identity,
        quantization=row.quantization,
        compiled=row.compiled,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        prefill=_phase("prefill", batch_size * prompt_tokens, own, other, predicted),
        decode=_phase("decode", batch_size * num_new, own, other, predicted),
        predicted_speedup=predicted,
        evaluations_per_token=row.identity.num_evaluations,
        weight_bytes=weight_bytes(row.model),
        cache_bytes_per_token=row.identity.cache_bytes_per_token,
        cache_bytes=cache,
        cache_ratio=cache / first_cache,
    )


def _phase(phase: str, num_tokens: int, own: _Measured, other: _Measured, predicted: float | None) -> Phase:
    """One phase of a row, with what its speedup was predicted to be."""
    seconds = own.seconds(phase)
    speedup = Spread.of([base / mine for mine, base in zip(seconds, other.seconds(phase), strict=True)])
    whole = other.breakdown(phase)
    return Phase(
        tokens_per_second=Spread.of([num_tokens / mine for mine in seconds]),
        speedup=speedup,
        expected_speedup=None if predicted is None or whole is None else whole.expected_speedup(predicted),
        kept=None if predicted is None else speedup.median / predicted,
        peak_bytes=own.peaks[phase == "decode"],
        breakdown=own.breakdown(phase),
    )
