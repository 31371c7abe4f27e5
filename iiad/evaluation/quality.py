"""Evaluate several models on one text and on tasks, one in memory at a time, each compared with the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iiad.checkpoints import (
    DTYPES,
    choose_device,
    choose_dtype,
    load_config,
    load_identified,
    read_limits,
    require_kind,
)
from iiad.conversion.quantization import check_kinds, quantized_copy
from iiad.data import (
    AnyCorpus,
    AnySource,
    PairCorpus,
    PairLimits,
    resolve_inputs,
)
from iiad.errors import InputError, require_least
from iiad.identities import DataIdentity, ModelIdentity
from iiad.planning.binding import AnyPlan, OwnPlan, identify_rows, read_plan
from iiad.planning.costs import compare_costs
from iiad.planning.plan import Plan

from .harness import Tasks, TaskSet
from .hypotheses import Hypotheses, Texts
from .quality_artefact import Evaluation, EvaluationResult, EvaluationSettings
from .text_scores import Reader, make_readers, score_text, windows_of

__all__ = ["evaluate_models"]

_DEFAULT_BLOCK = 512


def evaluate_models(
    models: Sequence[str | Path],
    data: Sequence[str] = (),
    *,
    tasks: Tasks | None = None,
    texts: Texts | None = None,
    plan: AnyPlan | None = None,
    quantize: Sequence[str] = (),
    text_field: str = "text",
    limits: PairLimits | None = None,
    block_size: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
) -> Evaluation:
    """Measure perplexity, bits per byte, accuracy, scores of tasks and cost of each model, compared with the first.

    Each model reads the text through its own tokenizer. Models are loaded one after another.

    Args:
        models: folders or hub names; the others are compared with the first.
        data: files, patterns, folders or `stdlib`, which here is its validation split; may be none beside tasks.
            Encoder-decoders read pairs of source and target, causal models all else.
        tasks: tasks of lm-evaluation-harness, and how to run them.
        texts: texts to make of the sources of pairs, and how to score them against the targets.
        plan: a plan or its file: adds the first model truncated to it, untrained, as the second row.
        quantize: kinds of weight-only quantization, "int8" or "int4": each adds the first model in it as a row; its
            quantized layers compute in `dtype`.
        text_field: the jsonl field or parquet column with the text.
        limits: of pairs: leave out longer ones, or cut their sources.
        block_size: most tokens of context; default: 512, or less where a model takes less.
        batch_size: windows, and requests of tasks, at a time.
        max_tokens: use only so many tokens of the text, from its start.
        device: default: CUDA where there is one, else the CPU.
        dtype: "float32" or "bfloat16" (autocast); default: float32 on the CPU, bfloat16 elsewhere.
        cache_dir: where tokenized text is kept; default: as `iiad.data.pack`.

    Raises:
        InputError: a model, a file, a task, a value or the plan cannot be used, or memory runs out. All that can be
            known without loading a model is checked first.
    """
    if not data and tasks is None:
        raise InputError("data: expected a text or tasks, got neither")
    require_least(1, block_size=block_size, batch_size=batch_size)
    require_least(2, max_tokens=max_tokens)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    budget = read_plan(plan)
    kinds = check_kinds(quantize, device, dtype)
    configs = [load_config(model) for model in models]
    for model, config in zip(models, configs, strict=True):
        require_kind(model, config, None if tasks is None else "causal")
    task_set = None if tasks is None else TaskSet(tasks)
    sources = resolve_inputs(data, "validation") if data else []
    options: dict[str, Any] = {"text_field": text_field, "cache_dir": cache_dir, "limits": limits}
    readers = make_readers(models, configs, sources, options)
    positions = {str(model): read_limits(model)[0] for model in models} if data else {}
    settings = EvaluationSettings(
        block_size=_choose_block(positions, block_size, readers[0].corpus) if data else None,
        batch_size=batch_size,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
    )
    corpora = [reader.corpus for reader in readers if reader.corpus is not None]
    for corpus in corpora:  # checks the values; reads nothing yet
        windows_of(corpus, settings)
    hypotheses = None if texts is None else _prepare_texts(texts, sources, corpora, max_tokens, positions)
    results = _measure(readers, budget, kinds, settings, task_set, hypotheses)
    if task_set is not None:
        settings = settings.model_copy(update=task_set.describe())
    if hypotheses is not None:
        of_texts, results = hypotheses.score(results)
        settings = settings.model_copy(update={"texts": of_texts})
    return Evaluation(settings=settings, data=_identify_data(corpora, max_tokens), results=results)


def _measure(
    readers: Sequence[Reader],
    plan: Plan | OwnPlan | None,
    kinds: Sequence[str],
    settings: EvaluationSettings,
    task_set: TaskSet | None,
    hypotheses: Hypotheses | None,
) -> list[EvaluationResult]:
    """Load and measure one model after another; the first also under the plan and in each kind of quantization."""
    results: list[EvaluationResult] = []
    num_rows = len(readers) + (plan is not None) + len(kinds)
    for reader in readers:
        loaded, identity = load_identified(
            reader.model, settings.device, settings.dtype, cast=False, kind=None
        )
        extra = () if results else kinds
        for name, runs, runner, kind in _runners(
            loaded, reader.label, identity, None if results else plan, extra, settings.dtype
        ):
            share = 1 / (num_rows - len(results))
            found = {} if reader.corpus is None else score_text(name, runner, reader, settings, share)
            if task_set is not None:
                found["tasks"] = task_set.run(runner, reader.tokenizer, name, settings, share)
            if hypotheses is not None:
                hypotheses.add(runner, reader.tokenizer, reader.corpus, name, settings, share)
            result = _describe(name, runs, kind, found)
            results.append(_compare(result, results[0] if results else result))
        del loaded, runner
    return results


def _runners(
    loaded: Any,
    label: str,
    identity: ModelIdentity,
    plan: Plan | OwnPlan | None,
    kinds: Sequence[str],
    dtype: str,
) -> Iterator[tuple[str, ModelIdentity, Any, str | None]]:
    """Yield each row of one model: label, identity under its plan, the model to run before the next, quantization."""
    for name, runs in identify_rows(label, identity, plan):
        if runs != identity:
            loaded.follow_plan(runs)
        yield name, runs, loaded, None
    if plan is not None and kinds:
        loaded.follow_plan(identity)
    for kind in kinds:
        yield f"{label}, {kind}", identity, quantized_copy(loaded, kind, DTYPES[dtype]), kind


def _choose_block(positions: Mapping[str, int], block_size: int | None, corpus: AnyCorpus | None) -> int:
    """Return a block size that every model can take; by default of pairs the most. positions: by model."""
    if block_size is None:
        return min(
            positions.values() if isinstance(corpus, PairCorpus) else (_DEFAULT_BLOCK, *positions.values())
        )
    for model, limit in positions.items():
        if block_size > limit:
            expected = f"at most {limit}, the max_position_embeddings of {model}"
            raise InputError(f"block_size: expected {expected}, got {block_size}")
    return block_size


def _prepare_texts(
    texts: Texts,
    sources: Sequence[AnySource],
    corpora: Sequence[Any],
    max_tokens: int | None,
    positions: Mapping[str, int],
) -> Hypotheses:
    """Read the pairs that all models make texts of. Raises InputError for anything but pairs."""
    if not all(isinstance(corpus, PairCorpus) for corpus in corpora):
        raise InputError("metrics: expected pairs of source and target to make texts of, got none")
    num_pairs = min(corpus.rows_within(max_tokens) for corpus in corpora)
    numbers = [corpus.numbers[:num_pairs] for corpus in corpora]
    if not all(np.array_equal(each, numbers[0]) for each in numbers):
        raise InputError(
            "max_source_tokens, max_target_tokens: expected limits that leave the same pairs by the tokenizer of "
            "every model, got limits that do not"
        )
    return Hypotheses(texts, sources, numbers[0], min(positions.values()))


def _identify_data(corpora: Sequence[AnyCorpus], max_tokens: int | None) -> list[DataIdentity]:
    """Identify each tokenization once, in order of first occurrence."""
    distinct = {corpus.fingerprint: corpus for corpus in corpora}
    return [
        DataIdentity(
            names=list(corpus.names),
            fingerprint=fingerprint,
            num_tokens=min(corpus.num_tokens, max_tokens or corpus.num_tokens),
        )
        for fingerprint, corpus in distinct.items()
    ]


def _describe(
    label: str, identity: ModelIdentity, quantization: str | None, found: dict[str, Any]
) -> EvaluationResult:
    """Return the entry of a model, not yet compared."""
    return EvaluationResult(
        label=label,
        model=identity,
        quantization=quantization,
        evaluations_per_token=identity.num_evaluations,
        cache_bytes_per_token=identity.cache_bytes_per_token,
        overhead_cut=None,
        compute_cut=None,
        retained=None,
        **found,
    )


def _compare(result: EvaluationResult, first: EvaluationResult) -> EvaluationResult:
    overhead_cut, compute_cut = compare_costs(result.model, first.model)
    retained = None
    if result.accuracy is not None and result.data == first.data and first.accuracy:
        retained = result.accuracy / first.accuracy
    if compute_cut is not None:
        compute_cut = 1 - result.evaluations / first.evaluations
    cuts = {"overhead_cut": overhead_cut, "compute_cut": compute_cut, "retained": retained}
    return result.model_copy(update=cuts)
