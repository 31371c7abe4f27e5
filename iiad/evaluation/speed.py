"""Several models timed in turn, so that whatever slows the machine for a while slows all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import torch

from iiad.checkpoints import choose_device, choose_dtype, label_models, require_one_kind
from iiad.conversion.quantization import check_kinds
from iiad.errors import InputError, require_least, require_seed
from iiad.memory import memory_explained, weight_bytes
from iiad.planning.binding import AnyPlan, read_plan
from iiad.planning.costs import phase_evaluations, predicted_speedups
from iiad.progress import progress

from .bench_artefact import Bench, BenchResult, BenchSettings, Breakdown, Phase, Spread
from .bench_rows import Row, load_rows, measure_evaluations, measure_peaks, require_free_memory
from .breakdown import can_be_profiled, median_breakdown, profile_run
from .quality_artefact import Evaluation
from .timing import (
    Timing,
    cached_tokens,
    compile_step,
    describe_machine,
    require_compiler,
    require_positions,
    time_model,
)

__all__ = ["bench_models"]

PROFILED_ROUNDS = 3
"""Extra runs under the profiler, fewer where fewer rounds are measured."""


@dataclass
class _Measured:
    """Measurements of one row at one point of the grid."""

    timings: list[Timing] = field(default_factory=list)
    profiled: list[dict[str, Breakdown]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    evaluations: dict[str, float] = field(default_factory=dict)

    def breakdown(self, phase: str) -> Breakdown | None:
        """Return the median over the profiled runs, None without any."""
        return median_breakdown([run[phase] for run in self.profiled]) if self.profiled else None

    def seconds(self, phase: str) -> list[float]:
        """Return the seconds of each round."""
        return [getattr(timing, f"{phase}_seconds") for timing in self.timings]


def bench_models(
    models: Sequence[str | Path],
    *,
    plan: AnyPlan | None = None,
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
    """Measure prefill and decoding speed, memory and cache of each model, compared with the first.

    All models are held in memory at once and timed in turn, round by round, after one round that warms up, at each
    batch size with each number of prompt tokens. Ratios are taken within a round. Memory and the breakdown are
    measured in runs of their own. Prompts are random tokens: speed does not depend on what they say.

    Args:
        models: folders or hub names, all causal or all encoder-decoders; the others are compared with the first.
        plan: a plan or its file: adds the first model truncated to it as the second row.
        quantize: kinds of weight-only quantization, "int8" or "int4": each adds the first model in it as a row.
        compiled: adds each row but the quantized ones again, decoding from a static cache through torch.compile.
        evaluation: an evaluation or its file: gives perplexity and accuracy to rows with the same model, plan and
            quantization.
        batch_size: sequences at a time, one number or several.
        prompt_tokens: tokens of each prompt, or source of an encoder-decoder, one number or several.
        new_tokens: decoding steps, one token of each sequence a step.
        repeats: measured rounds.
        seed: of the prompts.
        device: default: CUDA where there is one, else the CPU.
        dtype: of weights and cache, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.

    Raises:
        InputError: a model, a value or the plan cannot be used, or memory runs out. All that can be known without
            loading a model is checked first.
    """
    sizes = {"batch_size": batch_size, "prompt_tokens": prompt_tokens}
    grid = {name: _grid_side(name, values) for name, values in sizes.items()}
    require_least(1, new_tokens=new_tokens, repeats=repeats)
    require_seed(seed)
    labels = label_models(models)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    budget = read_plan(plan)
    kinds = check_kinds(quantize, device, dtype)
    scores = Evaluation.load(evaluation) if isinstance(evaluation, str | Path) else evaluation
    require_one_kind(models)
    for model in models:
        require_positions(model, max(grid["prompt_tokens"]), new_tokens)
    if compiled:
        require_compiler(device)
    settings = BenchSettings(
        **grid,
        new_tokens=new_tokens,
        repeats=repeats,
        seed=seed,
        dtype=dtype,
        **describe_machine(device),
    )
    rows = load_rows(models, labels, budget, kinds, device, dtype, compiled)
    quality = [_quality(row, scores) for row in rows]
    if scores is not None and not any(quality):
        raise InputError(
            "evaluation: expected one that has one of these models under its plan, got none of them"
        )
    points = list(product(settings.batch_size, settings.prompt_tokens))
    for batch, context in points:  # all of them before hours are spent on the first
        require_free_memory(rows, batch, context, new_tokens)
    results: list[BenchResult] = []
    for number, point in enumerate(points):
        # Of what is left, by the tokens of each point: a rough share.
        share = _num_tokens(point, settings) / sum(_num_tokens(other, settings) for other in points[number:])
        measured = _measure_point(rows, *point, settings, share)
        results += [
            _describe(row, rows[0], own, measured[0], point).model_copy(update=score)
            for row, own, score in zip(rows, measured, quality, strict=True)
        ]
    return Bench(settings=settings, results=results)


def _grid_side(name: str, values: int | Sequence[int]) -> list[int]:
    """Return one side of the grid, each number once. Raises InputError for none, or one below 1."""
    found = [values] if isinstance(values, int) else list(dict.fromkeys(values))
    if not found:
        raise InputError(f"{name}: expected at least one number, got none")
    require_least(1, **{name: min(found)})
    return found


def _quality(row: Row, scores: Evaluation | None) -> dict[str, float | None]:
    """Return the evaluation's perplexity and accuracy of the row's model under its plan, {} if it has none."""
    wanted = (row.identity.fingerprint, row.identity.num_iterations, row.quantization)
    for result in scores.results if scores is not None else ():
        if (result.model.fingerprint, result.model.num_iterations, result.quantization) == wanted:
            return {"perplexity": result.perplexity, "accuracy": result.accuracy}
    return {}


def _num_tokens(point: tuple[int, int], settings: BenchSettings) -> int:
    batch_size, prompt_tokens = point
    return batch_size * (prompt_tokens + settings.new_tokens)


def _measure_point(
    rows: Sequence[Row], batch_size: int, prompt_tokens: int, settings: BenchSettings, share: float
) -> list[_Measured]:
    """Measure each row's memory, its timings after a round that warms up, then its breakdown. share: of all work."""
    steps, repeats = settings.new_tokens, settings.repeats
    prompts = [row.prompts(batch_size, prompt_tokens, settings.seed) for row in rows]
    compiled = [compile_step(row.under_plan()) if row.compiled else None for row in rows]
    measured = [_Measured() for _ in rows]
    torch.compiler.reset()  # a function keeps only so many compiled versions
    num_profiled = min(PROFILED_ROUNDS, repeats)
    # Memory first: what does not fit shows at once.
    passes = ["memory", *["time"] * (repeats + 1), *["profile"] * num_profiled]
    title = f"batch {batch_size} x {prompt_tokens} tokens"
    with progress(title, len(passes) * len(rows), "runs", share) as advance:
        for step in passes:
            for row, given, decode, own in zip(rows, prompts, compiled, measured, strict=True):
                where = f"{row.label} on {given.device}"
                with memory_explained(
                    where, row.model, batch_size, cached_tokens(row.model, prompt_tokens, steps)
                ):
                    if step == "memory":
                        own.peaks = measure_peaks(row, given)
                        own.evaluations = measure_evaluations(row, given, steps)
                    elif step == "time":
                        own.timings.append(time_model(row.under_plan(), given, steps, decode))
                    elif not row.compiled and can_be_profiled(row.model):
                        own.profiled.append(profile_run(row.under_plan(), given, steps))
                advance(1)
    for own in measured:
        del own.timings[0]
    return measured


def _describe(row: Row, first: Row, own: _Measured, other: _Measured, point: tuple[int, int]) -> BenchResult:
    """Return the artefact's entry of a row. other: the first row's measurements in the same rounds."""
    batch_size, prompt_tokens = point
    speedups = predicted_speedups(row.identity, first.identity)
    if row.quantization or row.compiled:
        speedups = (None, None)
    phases = [
        partial(_phase, evaluations, predicted, own, other)
        for evaluations, predicted in zip(phase_evaluations(row.identity), speedups, strict=True)
    ]
    cache, first_cache = own.timings[-1].cache_bytes, other.timings[-1].cache_bytes
    num_new = own.timings[-1].tokens.shape[1] - 1
    return BenchResult(
        label=row.label,
        model=row.identity,
        quantization=row.quantization,
        compiled=row.compiled,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        prefill=phases[0]("prefill", batch_size * prompt_tokens),
        decode=phases[1]("decode", batch_size * num_new),
        weight_bytes=weight_bytes(row.model),
        cache_bytes_per_token=row.identity.cache_bytes_per_token,
        cache_bytes=cache,
        cache_ratio=cache / first_cache,
    )


def _phase(
    evaluations: int, predicted: float | None, own: _Measured, other: _Measured, phase: str, num_tokens: int
) -> Phase:
    """Return one phase of a row. num_tokens: read or decoded in it. other: the first row's measurements."""
    seconds, whole = own.seconds(phase), other.breakdown(phase)
    if predicted is not None:
        first = other.evaluations.get(phase, predicted * evaluations)
        predicted = first / own.evaluations.get(phase, evaluations)
    speedup = Spread.of([base / mine for mine, base in zip(seconds, other.seconds(phase), strict=True)])
    return Phase(
        evaluations_per_token=evaluations,
        mean_evaluations=own.evaluations.get(phase),
        predicted_speedup=predicted,
        tokens_per_second=Spread.of([num_tokens / mine for mine in seconds]),
        speedup=speedup,
        expected_speedup=None if predicted is None or whole is None else whole.expected_speedup(predicted),
        kept=None if predicted is None else speedup.median / predicted,
        peak_bytes=own.peaks[phase],
        breakdown=own.breakdown(phase),
    )
