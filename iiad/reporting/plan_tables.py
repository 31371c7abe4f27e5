"""Tables of plans: the budget of each layer as marks, costs beside the teacher's, and the trade-off curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.planning.costs import LOSS_UNITS, PlanCost, count_evaluations, overhead_cut
from iiad.planning.curve import CurvePoint, FrontPoint, TradeOff, thin
from iiad.planning.family import Family
from iiad.planning.latency import LatencyTable
from iiad.planning.plan import Plan
from iiad.progress import print_status

from .tables import format_coefficients, format_number

__all__ = ["CurveReport", "PlanReport", "draw_trade_off", "family_table"]

MOST_ROWS = 40


class PlanReport:
    """Rich renderable: the budgets, how they came about, and what they cost beside the teacher.

    costs: of the teacher and of the plan, see `Plan.costs`.
    frequencies: of `keep_frequency`: adds how often resamples of the text keep each iteration.
    latency: the table that the costs' seconds are from: adds its own error.
    """

    def __init__(
        self,
        plan: Plan,
        costs: tuple[PlanCost, PlanCost],
        frequencies: list[list[float]] | None = None,
        latency: LatencyTable | None = None,
    ):
        self.plan, self.frequencies, self.latency = plan, frequencies, latency
        self.whole, self.cost = costs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._budgets(*(("#", ".") if options.ascii_only else ("■", "□")))
        yield Text(self._caption() + "\n", style="dim")
        yield self._costs("->" if options.ascii_only else "→")
        for remark in self._remarks("+-" if options.ascii_only else "±"):
            yield Text(remark, style="dim")

    def _budgets(self, kept: str, dropped: str) -> Table:
        plan, frequencies = self.plan, self.frequencies
        table = Table(title="plan: iterations per layer", title_justify="left")
        table.add_column("layer", justify="right")
        table.add_column("budget")
        table.add_column("iterations", justify="right")
        if frequencies:
            table.add_column("each kept in")
        if plan.extrapolation:
            table.add_column("extrapolated by", justify="right")
        if plan.expected_evaluations:
            table.add_column("evaluations expected", justify="right")
        if plan.tolerance:
            table.add_column("tolerance", justify="right")
        labels, whole = plan.teacher.layer_labels(), plan.teacher.num_iterations
        for t, (r, most) in enumerate(zip(plan.num_iterations, whole, strict=True)):
            marks = Text(kept * r, style="green") + Text(dropped * (most - r), style="dim")
            shares = [" ".join(f"{share:4.0%}" for share in frequencies[t])] if frequencies else []
            by = [format_coefficients(plan.extrapolation[t])] if plan.extrapolation else []
            run = [f"{plan.expected_evaluations[t]:.2f}"] if plan.expected_evaluations else []
            at = [format_number(plan.tolerance[t], ".3g")] if plan.tolerance else []
            table.add_row(labels[t], marks, f"{r} of {most}", *shares, *by, *run, *at)
        return table

    def _caption(self) -> str:
        plan = self.plan
        teacher = f"teacher {plan.teacher.name}"
        if plan.origin == "explicit":
            return f"Written by hand for {teacher}."
        if plan.explanation is None:  # a file of an early version
            return f"By threshold {plan.threshold:.4g} on the influence by {plan.metric}, for {teacher}."
        kept = " Each kept in: share of the resamples of the profile's text in which the rule keeps it."
        return f"For {teacher}: {plan.explanation}." + (kept if self.frequencies else "")

    def _costs(self, arrow: str) -> Table:
        table = Table(title="cost", title_justify="left")
        table.add_column("")
        table.add_column(f"teacher {arrow} plan", justify="right")
        table.add_column("cut")
        for name, before, after, cut in (*self._counts(), *self._predictions()):
            table.add_row(name, f"{before} {arrow} {after}", cut)
        return table

    def _counts(self) -> Iterator[tuple[str, object, object, str]]:
        """Rows of what is counted: name, of the teacher, of the plan, cut."""
        plan, whole, cost = self.plan, self.whole, self.cost
        yield "iterations", whole.num_iterations, cost.num_iterations, f"{plan.overhead_cut:.1%} overhead cut"
        cut = f"{plan.compute_cut:.1%} compute cut"
        yield "block evaluations", whole.num_evaluations, cost.num_evaluations, cut
        if plan.expected_evaluations:
            mean = sum(plan.expected_evaluations)
            yield (
                "evaluations expected",
                whole.num_evaluations,
                f"{mean:.2f}",
                f"{1 - mean / whole.num_evaluations:.1%} compute cut",
            )
        target = "" if cost.target_tokens is None else " target"
        for side, before, after in zip(
            ("source", "target"), whole.phase_evaluations, cost.phase_evaluations, strict=True
        ):
            if target:
                yield f"evaluations a {side} token", before, after, f"{1 - after / before:.1%} of them"
        before, after = whole.cache_bytes_per_token, cost.cache_bytes_per_token
        yield (
            f"cache bytes a{target} token",
            f"{before:,}",
            f"{after:,}",
            f"{1 - after / before:.1%} of the cache",
        )
        yield "whole cache", _scaled(whole.cache_bytes, "B"), _scaled(cost.cache_bytes, "B"), ""
        for name, flops, kept in (
            ("prefill FLOPs", whole.prefill_flops, cost.prefill_flops),
            ("decode FLOPs", whole.decode_flops, cost.decode_flops),
            ("sentence FLOPs", whole.sentence_flops, cost.sentence_flops),
        ):
            if flops is not None and kept is not None:
                yield name, _scaled(flops), _scaled(kept), f"{1 - kept / flops:.1%} of FLOPs"

    def _predictions(self) -> Iterator[tuple[str, object, object, str]]:
        """Rows of the seconds that the latency table predicts."""
        if self.latency is None:
            return
        for phase in self.latency.phases:
            before, after = (cost.seconds[phase] for cost in (self.whole, self.cost))
            error = self.latency.phase(phase).largest_error
            times = f"{before / after:.2f}x, " if after else ""
            milliseconds = (f"{1000 * before:.4g}", f"{1000 * after:.4g} ms")
            yield f"{phase}, predicted", *milliseconds, f"{times}table off by up to {error:.1%}"

    def _remarks(self, sign: str) -> Iterator[str]:
        plan, cost = self.plan, self.cost
        plural = "" if cost.batch_size == 1 else "s"
        if cost.target_tokens is None:
            size = f"{cost.batch_size} sequence{plural} of {cost.context:,} tokens"
            yield f"Counted for {size}; decode: one step after them."
        else:
            size = f"{cost.batch_size} sentence{plural} of {cost.context:,} source"
            size += f" and {cost.target_tokens:,} target tokens"
            yield f"Counted for {size}; prefill: up to the first of these; decode: one step in their middle."
        if self.latency is not None:
            settings = self.latency.settings
            machine = f"{settings.device} ({settings.device_name}), {settings.dtype}"
            yield f"Seconds predicted by a table measured on {machine}; its error is that of its own checks."
        if plan.tolerance is not None:
            yield "A token stops in a layer once |z(i) - z(i-1)| <= tolerance |z(i-1)|, or after its budget."
        if plan.predicted_loss is not None and plan.metric is not None:
            text = f"Predicted loss by {plan.metric}: {plan.predicted_loss:.4g}"
            if plan.predicted_loss_error is not None:
                text += f" {sign} {plan.predicted_loss_error:.2g}"
            yield f"{text} {LOSS_UNITS[plan.metric]}, if the layers add up."
        if cost.unused_parameters:
            yield f"{cost.unused_parameters:,} parameters of the teacher are unused under the plan."


class CurveReport:
    """Rich renderable: every best trade of evaluations for predicted loss, beside what thresholds give.

    latency: adds the predicted milliseconds of the best plans, of one call of `phase`. details: all rows.
    """

    def __init__(
        self,
        curves: TradeOff,
        latency: LatencyTable | None = None,
        phase: str = "decode",
        details: bool = False,
    ):
        self.curves, self.name, self.details = curves, phase, details
        self.phase = latency.phase(phase) if latency is not None else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        curves, mark = self.curves, "<" if options.ascii_only else "◄"
        best = {sum(point.num_iterations): point for point in curves.front}
        ruled = {sum(point.num_iterations): point for point in curves.thresholds}
        counts = sorted({*best, *ruled}, reverse=True)
        knees = {sum(knee.num_iterations) for knee in (curves.front_knee, curves.threshold_knee)}
        shown = counts if self.details else _thinned(counts, knees)
        table = Table(title=f"trade-off by {curves.metric}", title_justify="left")
        milliseconds = [f"{self.name} ms"] if self.phase is not None else []
        for name in ("evaluations", "overhead cut", "least loss", *milliseconds, "by threshold", "its loss"):
            table.add_column(name, justify="right")
        for count in shown:
            table.add_row(*self._row(count, best.get(count), ruled.get(count), mark))
        yield table
        yield Text(self._caption(len(shown), len(counts), mark), style="dim")

    def _row(self, count: int, best: FrontPoint | None, ruled: CurvePoint | None, mark: str) -> list[str]:
        teacher = self.curves.teacher
        row = [
            str(count_evaluations(teacher, [count])),
            f"{overhead_cut([count], teacher.num_iterations):.1%}",
            "",
        ]
        if best is not None:
            row[-1] = f"{best.predicted_loss:.3g}" + (f" {mark}" if best is self.curves.front_knee else "")
        if self.phase is not None:
            row.append(f"{1000 * self.phase.seconds(best.num_iterations):.4g}" if best is not None else "")
        if ruled is None:
            return [*row, "", ""]
        here = f" {mark}" if ruled is self.curves.threshold_knee else ""
        return [*row, f"{ruled.threshold:.16g}{here}", f"{ruled.predicted_loss:.3g}"]

    def _caption(self, num_shown: int, num_rows: int, mark: str) -> str:
        curves = self.curves
        best, ruled = curves.front_knee, curves.threshold_knee
        share = "" if curves.normalize == "none" else f" --normalize {curves.normalize}"
        lines = [
            f"Loss: predicted, {LOSS_UNITS[curves.metric]}, if the layers add up. {mark} the knees:",
            f"of all plans, --max-evaluations {best.num_evaluations}: {best.overhead_cut:.1%} overhead cut "
            f"for {best.predicted_loss:.3g};",
            f"of thresholds, --threshold {ruled.threshold:.16g}{share}: {ruled.overhead_cut:.1%} "
            f"for {ruled.predicted_loss:.3g}.",
        ]
        if self.phase is not None:
            lines.append(
                f"Milliseconds predicted by the latency table, off by up to {self.phase.largest_error:.1%}."
            )
        if num_shown < num_rows:
            lines.append(f"Thinned: {num_shown} of {num_rows} rows are shown (--details: all).")
        return "\n".join(lines)


def family_table(family: Family) -> Table:
    """Return the plans of a family: cut, evaluations, predicted loss and the budgets, one a line."""
    table = Table(title="family: nested plans", title_justify="left")
    for name in ("plan", "overhead cut", "evaluations", "predicted loss", "iterations per layer"):
        table.add_column(name, justify="left" if name.startswith(("plan", "iter")) else "right")
    adaptive = any(each.tolerance for each in family.plans)
    if adaptive:
        table.add_column("tolerance per layer")
    start, whole = count_evaluations(family.teacher, []), sum(family.teacher.num_iterations)
    for each in family.plans:
        evaluations = f"{start + (1 - each.cut) * whole:.4g}"
        loss = "" if each.predicted_loss is None else f"{each.predicted_loss:.3g}"
        budgets = " ".join(map(str, each.num_iterations))
        stops = [" ".join(format_number(at, ".3g") for at in each.tolerance or [])] if adaptive else []
        table.add_row(each.name, f"{each.cut:.1%}", evaluations, loss, budgets, *stops)
    if family.metric is not None:
        table.caption = f"Loss: predicted, {LOSS_UNITS[family.metric]}, if the layers add up."
    return table


def draw_trade_off(curves: TradeOff, folder: str | Path) -> list[Path]:
    """Draw the Pareto front with its knee beside what thresholds give. Errors as of `draw_curve`."""
    from .pictures import draw_curve

    knee = curves.front_knee
    paths = draw_curve(
        {
            "Pareto front": [(point.overhead_cut, point.predicted_loss) for point in curves.front],
            "by threshold": [(point.overhead_cut, point.predicted_loss) for point in curves.thresholds],
        },
        folder,
        knee=(knee.overhead_cut, knee.predicted_loss),
        unit=LOSS_UNITS[curves.metric],
    )
    print_status(f"drawn: {', '.join(map(str, paths))}")
    return paths


def _thinned(counts: Sequence[int], wanted: set[int]) -> list[int]:
    """At most MOST_ROWS of them, those wanted among them."""
    kept = wanted | set(thin([count for count in counts if count not in wanted], MOST_ROWS - len(wanted)))
    return [count for count in counts if count in kept]


def _scaled(value: float, unit: str = "") -> str:
    """As in "1.5 M" and "12.6 GB": three digits and a decimal prefix."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()
