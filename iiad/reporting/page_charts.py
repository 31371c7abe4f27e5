"""The charts of a page: what each artefact shows as points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from iiad.evaluation.bench_artefact import Bench, BenchResult, Phase
from iiad.evaluation.quality_artefact import Evaluation, EvaluationResult
from iiad.planning.costs import LOSS_UNITS
from iiad.planning.curve import Point as PlanPoint
from iiad.planning.curve import TradeOff
from iiad.planning.plan import Plan
from iiad.planning.verification import Verification
from iiad.studies.estimation import Estimate
from iiad.studies.study_artefact import ArmResult, StudentResult, StudyResult

from .charts import Point, Series, draw_chart
from .page_parts import Chart
from .verification_tables import KINDS

__all__ = [
    "bench_chart",
    "curve_chart",
    "evaluation_charts",
    "loss_chart",
    "study_charts",
    "verification_chart",
]

MOST_CHARTS = 8
"""Of an evaluation."""
Bar = tuple[float, float] | None
"""Ends of a value's bar."""


def curve_chart(name: str, curves: TradeOff, plans: Sequence[tuple[str, Plan]]) -> Chart:
    """Predicted loss over overhead cut: the Pareto front, what thresholds give, and the plans by this metric."""

    def point(each: PlanPoint | Plan, loss: float, label: str = "") -> Point:
        budget = " ".join(map(str, each.num_iterations))
        tip = f"{label or 'plan'} {budget}: {100 * each.overhead_cut:.1f} % cut for {loss:.3g} {unit}"
        return Point(100 * each.overhead_cut, loss, tip)

    unit = LOSS_UNITS[curves.metric]
    made = [
        Series(label, [point(plan, plan.predicted_loss, label)])
        for label, plan in plans
        if plan.metric == curves.metric and plan.predicted_loss is not None
    ]
    knee = curves.front_knee
    series = [
        Series("Pareto front", [point(each, each.predicted_loss) for each in curves.front], line=True),
        Series("by threshold", [point(each, each.predicted_loss) for each in curves.thresholds]),
        *(made or [Series("knee of the front", [point(knee, knee.predicted_loss, "knee")])]),
    ]
    text = (
        f"Predicted loss by {curves.metric} over overhead cut. The knee of the front cuts "
        f"{100 * knee.overhead_cut:.1f} % for {knee.predicted_loss:.3g} {unit}."
    )
    axes = ("overhead cut (%)", f"predicted loss ({unit})")
    return draw_chart(name, f"Trade-off by {curves.metric}", text, axes, series)


def verification_chart(name: str, verification: Verification) -> Chart:
    """Predicted against true loss of every plan, by where it comes from."""
    unit = LOSS_UNITS[verification.metric]
    error = "loss_error" if verification.metric in ("loss", "taylor") else "kl_error"
    groups: dict[str, list[Point]] = {KINDS[plan.kind][0]: [] for plan in reversed(verification.plans)}
    for plan in verification.plans:
        true, half = verification.true_loss(plan), getattr(plan, error) or 0.0
        budget = " ".join(map(str, plan.num_iterations))
        tip = f"{plan.name} ({budget}): predicted {plan.predicted:.4g}, true {true:.4g}"
        bar = (true - half, true + half) if half else (None, None)
        groups[KINDS[plan.kind][0]].append(Point(plan.predicted, true, tip, *bar))
    series = [Series(label, points) for label, points in groups.items()]
    text = "True against predicted loss of plans on the untrained teacher; on the dashed line they are equal."
    axes = (f"predicted loss ({unit})", f"true loss ({unit})")
    return draw_chart(name, "Predicted against true loss", text, axes, series, diagonal=True)


def loss_chart(name: str, title: str, logs: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> Chart:
    """Training and validation loss over steps; the steps of later stages follow those of earlier ones."""
    series = []
    for label, log in logs:
        start, stage = 0, None
        lines: dict[str, list[Point]] = {}
        last = 0
        for entry in log:
            if entry.get("stage") != stage:
                start, stage = start + last, entry.get("stage")
            last = entry["step"]
            for figure, words in (("loss", ""), ("eval_loss", ", validation")):
                value = entry.get(figure)
                if isinstance(value, int | float) and abs(value) < 1e100:
                    line = f"{label}{stage}{words}"
                    tip = f"{line}: step {last:,}, {value:.4f}"
                    lines.setdefault(line, []).append(Point(start + last, value, tip))
        series += [Series(line, points, line=True) for line, points in lines.items()]
    text = "Loss over steps, of the batches and of the validation data."
    return draw_chart(name, title, text, ("step", "loss"), series)


def evaluation_charts(name: str, evaluation: Evaluation) -> list[Chart]:
    """Quality against cost, a mark a model: on the text, by metrics of generated texts, and by task."""
    charts: dict[tuple[str, str], list[Series]] = {}
    found = list(_qualities(evaluation))
    for title, axis, result, value, bar in found:
        low, high = bar or (None, None)
        between = "" if bar is None else f" ({low:.4g} to {high:.4g})"
        tip = f"{result.label}: {result.evaluations_per_token} evaluations per token, {axis} {value:.4g}{between}"
        mark = Series(result.label, [Point(result.evaluations_per_token, value, tip, low, high)])
        charts.setdefault((title, axis), []).append(mark)
    bars = {
        title: " Bars: 95 % intervals, or standard errors of tasks." for title, _, _, _, bar in found if bar
    }
    return [
        draw_chart(
            f"{name}-{number}",
            title,
            f"To the left is cheaper.{bars.get(title, '')}",
            ("block evaluations per token", axis),
            series,
        )
        for number, ((title, axis), series) in enumerate(list(charts.items())[:MOST_CHARTS])
    ]


def _qualities(evaluation: Evaluation) -> Iterator[tuple[str, str, EvaluationResult, float, Bar]]:
    """Yield title, axis, model, value and bar of all figures of quality: of a task the first one."""
    read = [result for result in evaluation.results if result.nll is not None]
    asked = all(result.bits_per_byte is None and result.accuracy is not None for result in read)
    for result in read:
        if asked:
            yield "Accuracy against cost", "accuracy (%)", result, 100 * (result.accuracy or 0), None
        else:
            yield "Loss against cost", "nats per token", result, result.nll or 0, None
    for result in evaluation.results:
        for metric, found in result.text_metrics.items():
            bar = (found.low, found.high)
            yield f"Texts by {metric} against cost", "score, 0 to 100", result, found.value, bar
    for result in evaluation.results:
        for task, scores in result.tasks.items():
            for metric, score in list(scores.metrics.items())[:1]:
                if score.value is not None:
                    error = score.standard_error
                    ends = None if error is None else (score.value - error, score.value + error)
                    yield f"{task}, {metric}, against cost", "score", result, score.value, ends


def bench_chart(name: str, bench: Bench) -> Chart | None:
    """Measured against predicted speedup of both phases, over the whole grid; None without predictions."""
    first = bench.results[0].model
    others = [result for at in bench.points for result in bench.at(*at)[1:]]
    series = [
        Series(label, [point for result in others for point in _speedup(result, phase, label)])
        for phase, label in (
            ("decode", "decoding"),
            ("prefill", "encoder" if first.num_encoder_layers else "prefill"),
        )
    ]
    if not any(one.points for one in series):
        return None
    text = "Measured speedup over that of the evaluations; bars: slowest to fastest round; on the dashed line equal."
    axes = ("predicted speedup", "measured speedup")
    return draw_chart(name, "Speedup, measured against predicted", text, axes, series, diagonal=True)


def _speedup(result: BenchResult, phase: str, label: str) -> Iterator[Point]:
    found: Phase = getattr(result, phase)
    spread, predicted = found.speedup, found.predicted_speedup
    if predicted is not None:
        tip = (
            f"{result.label}, {label}, batch {result.batch_size}, {result.prompt_tokens} prompt tokens: "
            f"{spread.median:.2f}x, predicted {predicted:.2f}x"
        )
        yield Point(predicted, spread.median, tip, spread.low, spread.high)


def study_charts(name: str, result: StudyResult) -> list[Chart]:
    """Accuracy and scores of texts against cost: arms, and students by plan and training, with intervals."""
    seeds = max((len(arm.runs) for arm in result.arms), default=0)
    bars = f"Bars: 95 % intervals over {seeds} seeds." if seeds > 1 else "One seed, so no intervals."
    text = f"To the left is cheaper. {bars}"
    axes = ("block evaluations per token", "accuracy (%)")
    charts = [draw_chart(f"{name}-0", "Accuracy against cost", text, axes, _of_study(result, None))]
    metrics = dict.fromkeys(metric for arm in result.arms for metric in arm.texts)
    axes = ("block evaluations per token", "score, 0 to 100")
    for number, metric in enumerate(list(metrics)[:MOST_CHARTS], 1):
        title = f"Texts by {metric} against cost"
        charts.append(draw_chart(f"{name}-{number}", title, text, axes, _of_study(result, metric)))
    return charts


def _of_study(result: StudyResult, metric: str | None) -> list[Series]:
    """Return accuracy, or the scores of texts by a metric: a series an arm, and one a kind of student."""
    groups: dict[str, list[Point]] = {}
    for label, words, row in _rows(result):
        found = row.accuracy if metric is None else row.texts.get(metric)
        if found is not None:
            point = _estimate(words, row.evaluations_per_token, found, 100 if metric is None else 1)
            groups.setdefault(label, []).append(point)
    return [Series(label, points, line=len(points) > 1) for label, points in groups.items()]


def _rows(result: StudyResult) -> Iterator[tuple[str, str, ArmResult | StudentResult]]:
    """Yield arms and students, each with its series and its own name."""
    for arm in result.arms:
        yield arm.name, arm.name, arm
    for student in sorted(result.students, key=lambda student: student.evaluations_per_token):
        label = f"cut by {student.plan}, {'untrained' if student.training == 'none' else student.training}"
        yield label, f"{100 * student.cut:.0f} % {label}", student


def _estimate(words: str, cost: float, found: Estimate, scale: float) -> Point:
    low, high = (None if end is None else scale * end for end in (found.low, found.high))
    between = "" if low is None or high is None else f" ({low:.1f} to {high:.1f})"
    tip = f"{words}: {cost:.3g} evaluations per token, {scale * found.mean:.1f}{between}"
    return Point(cost, scale * found.mean, tip, low, high)
