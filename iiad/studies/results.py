"""From the evaluations of a study's models to its result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iiad.evaluation.quality_artefact import Evaluation, EvaluationResult
from iiad.training.estimates import count_parameters, training_flops
from iiad.training.run_status import LOG, read_log
from iiad.training.runs import RunRecord

from .definition import Study
from .estimation import Estimate, estimate, paired_difference
from .study_artefact import ArmResult, PlanKind, SeedFigures, StudentResult, StudyResult

__all__ = ["Model", "answer", "collect", "estimate_texts", "student_name"]


@dataclass(frozen=True)
class Model:
    """A model that was evaluated. From `cut` on the fields are a student's; teacher: its teacher's evaluation."""

    arm: str
    seed: int
    run: Path
    evaluation: Path
    cut: float | None = None
    plan_kind: PlanKind = "influence"
    training: Literal["none", "distilled", "from scratch"] = "none"
    plan: Path | None = None
    teacher: Path | None = None

    @property
    def figures(self) -> EvaluationResult:
        """Its row; an untrained student's stands below its teacher's."""
        results = Evaluation.load(self.evaluation).results
        return (
            results[1]
            if self.cut is not None and self.training == "none" and len(results) > 1
            else results[0]
        )

    @property
    def seconds(self) -> float | None:
        """Seconds of training: tokens over the median of the logged tokens per second."""
        if self.training == "none" and self.cut is not None:
            return 0.0
        found = [entry.get("tokens_per_second") for entry in read_log(self.run / LOG)]
        rates = [rate for rate in found if isinstance(rate, float) and rate > 0]
        tokens = RunRecord.load(self.run / "run.json").results.get("tokens")
        return float(tokens) / statistics.median(rates) if rates and isinstance(tokens, int) else None


def student_name(teacher: str, cut: float, kind: str) -> str:
    """Return the name that the files of one plan share."""
    return f"{teacher}-cut{cut:g}{'' if kind == 'influence' else f'-{kind}'}"


def collect(
    study: Study,
    rates: Mapping[str, float | None],
    tried: Mapping[str, dict[str, float]],
    models: Sequence[Model],
    failed: Mapping[str, str],
    num_runs: int,
    version: str,
) -> StudyResult:
    """Put the figures of all models together."""
    of_arms = {arm: [m for m in models if m.arm == arm and m.cut is None] for arm in study.arms}
    figures = {arm: [_seed_figures(model) for model in found] for arm, found in of_arms.items() if found}
    arms = [_arm_result(study, arm, rates.get(arm), tried[arm], of_arms[arm], figures) for arm in figures]
    rows: dict[tuple[float, PlanKind, str], list[Model]] = {}
    for model in models:
        if model.cut is not None:
            rows.setdefault((model.cut, model.plan_kind, model.training), []).append(model)
    students = [
        _student_result(found, rows.get((cut, "influence", training), []) if kind != "influence" else [])
        for (cut, kind, training), found in rows.items()
    ]
    return StudyResult(
        definition=study.model_dump(mode="json", exclude_unset=True),
        iiad_version=version,
        reference=study.reference,
        arms=arms,
        students=students,
        failed=dict(failed),
        answer=answer(study.reference, arms),
        num_runs=max(1, num_runs),
    )


def _seed_figures(model: Model) -> SeedFigures:
    return _figures_of(model.figures, model.seed, model.seconds)


def _figures_of(row: EvaluationResult, seed: int, seconds: float | None = None) -> SeedFigures:
    nll, accuracy = row.on_text
    texts = {name: score.value for name, score in row.text_metrics.items()}
    return SeedFigures(seed=seed, nll=nll, accuracy=accuracy, seconds=seconds, texts=texts)


def estimate_texts(
    runs: Sequence[SeedFigures], others: Sequence[SeedFigures]
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Return the estimate of each score of texts, and that of its difference to others, paired by seed."""
    by_seed = [{run.seed: run.texts for run in side} for side in (runs, others)]
    means, differences = {}, {}
    for name in runs[0].texts:
        means[name] = estimate([run.texts[name] for run in runs])
        own, other = (
            {seed: texts[name] for seed, texts in side.items() if name in texts} for side in by_seed
        )
        difference = paired_difference(own, other)
        if difference is not None:
            differences[name] = difference
    return means, differences


def _arm_result(
    study: Study,
    arm: str,
    rate: float | None,
    tried: dict[str, float],
    models: Sequence[Model],
    figures: Mapping[str, Sequence[SeedFigures]],
) -> ArmResult:
    recipe, row = study.recipe_of(arm, study.seeds[0], rate), models[0].figures
    vocab_size = row.model.shape.vocab_size if row.model.shape else recipe.vocab_size or 0
    from_new = recipe.model.path is None
    tokens: Any = RunRecord.load(models[0].run / "run.json").results["tokens"]

    def difference(name: str) -> Estimate | None:
        if arm == study.reference or study.reference not in figures:
            return None
        by_seed = [
            {one.seed: getattr(one, name) for one in figures[which]} for which in (arm, study.reference)
        ]
        return paired_difference(*by_seed)

    reference = [] if arm == study.reference else figures.get(study.reference, [])
    texts, text_differences = estimate_texts(figures[arm], reference)
    return ArmResult(
        name=arm,
        learning_rate=recipe.training.learning_rate,
        tried=tried,
        parameters=count_parameters(recipe.model, vocab_size) if from_new else 0,
        evaluations_per_token=row.evaluations_per_token,
        tokens=tokens,
        training_flops=training_flops(recipe.model, recipe.training, vocab_size, recipe.batch)
        if from_new
        else 0,
        runs=list(figures[arm]),
        nll=estimate([one.nll for one in figures[arm]]),
        accuracy=estimate([one.accuracy for one in figures[arm]]),
        nll_difference=difference("nll"),
        accuracy_difference=difference("accuracy"),
        texts=texts,
        text_differences=text_differences,
    )


def _student_result(models: Sequence[Model], by_influence: Sequence[Model]) -> StudentResult:
    """Put the models of one plan and training together. by_influence: those to compare with, by seed."""
    first, rows = models[0], [model.figures for model in models]
    teachers = [Evaluation.load(model.teacher).results[0] for model in models if model.teacher is not None]
    runs = [_seed_figures(model) for model in models]
    taught = [_figures_of(row, model.seed) for row, model in zip(teachers, models, strict=True)]
    texts, text_differences = estimate_texts(runs, taught)
    cuts = [
        1 - sum(row.model.num_iterations) / sum(teacher.model.num_iterations)
        for row, teacher in zip(rows, teachers, strict=True)
    ]
    of_teachers = [teacher.on_text.accuracy for teacher in teachers]
    kept = [row.on_text.accuracy / of for row, of in zip(rows, of_teachers, strict=True) if of]
    assert first.cut is not None
    return StudentResult(
        cut=first.cut,
        plan=first.plan_kind,
        training=first.training,
        overhead_cut=sum(cuts) / len(cuts),
        evaluations_per_token=sum(row.evaluations_per_token for row in rows) / len(rows),
        runs=runs,
        texts=texts,
        text_differences=text_differences,
        nll=estimate([row.on_text.nll for row in rows]),
        accuracy=estimate([row.on_text.accuracy for row in rows]),
        retained=estimate(kept) if kept else None,
        to_influence=paired_difference(*map(_accuracies, (models, by_influence))),
    )


def _accuracies(models: Sequence[Model]) -> dict[int, float]:
    return {model.seed: model.figures.on_text.accuracy for model in models}


def answer(reference: str, arms: Sequence[ArmResult]) -> str:
    """Say in one sentence which arms differ from the reference in accuracy, no stronger than the intervals allow."""
    others = [(arm.name, arm.accuracy_difference) for arm in arms if arm.accuracy_difference is not None]
    if not others:
        return f"Nothing to compare {reference} with."
    if all(found.low is None for _, found in others):
        listed = ", ".join(f"{name} {100 * found.mean:+.1f}" for name, found in others)
        return f"One seed, so no interval and no claim; points of accuracy against {reference}: {listed}."
    seeds = max(found.num_seeds for _, found in others)
    parts = []
    for sign, words in ((1, "more accurate than"), (-1, "less accurate than")):
        named = [f"{name} ({_points(found)})" for name, found in others if found.sign == sign]
        if named:
            parts.append(f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'} {words} {reference}")
    unclear = [f"{name} ({_points(found)})" for name, found in others if not found.sign]
    if unclear:
        verb = "differs" if len(unclear) == 1 else "differ"
        parts.append(f"no evidence that {' or '.join(unclear)} {verb} from {reference}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}: points of accuracy with 95 % intervals, {seeds} seeds."


def _points(found: Estimate) -> str:
    mean = f"{100 * found.mean:+.1f}"
    if found.low is None or found.high is None:
        return mean
    return f"{mean}, {100 * found.low:+.1f} to {100 * found.high:+.1f}"
