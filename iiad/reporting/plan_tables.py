"""Plans as tables: the budget of each layer as marks, its cost beside the teacher's, and the trade-off curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.influence.profile import Profile
from iiad.planning.bounds import Bounds
from iiad.planning.costs import cost_of
from iiad.planning.curve import (
    CurvePoint,
    FrontPoint,
    find_knee,
    pareto_front,
    shortest_threshold,
    threshold_curve,
)
from iiad.planning.latency import LatencyTable
from iiad.planning.plan import Plan
from iiad.planning.prediction import LOSS_UNITS

__all__ = ["CurveReport", "PlanReport", "draw_trade_off"]

MOST_ROWS = 40


class PlanReport:
    """Rich renderable: the budgets, how they came about, and what they cost beside the teacher.

    profile: the one that the plan was made from: adds how often resamples of its text keep each iteration.
    latency: a table of the teacher: adds predicted seconds, with the table's own error.
    context, batch_size: what FLOPs and cache are counted for. Default: the table's, else 1024 and 1.
    """

    def __init__(
        self,
        plan: Plan,
        profile: Profile | None = None,
        latency: LatencyTable | None = None,
        context: int | None = None,
        batch_size: int | None = None,
    ):
        self.plan, self.latency = plan, latency
        self.frequencies = _keep_frequencies(plan, profile)
        self.whole, self.cost = (
            cost_of(plan.teacher, budget, context, batch_size, latency)
            for budget in (plan.teacher.num_iterations, plan.num_iterations)
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._budgets(*(("#", ".") if options.ascii_only else ("■", "□")))
        yield Text(self._caption() + "\n", style="dim")
        yield self._costs("->" if options.ascii_only else "→")
        for remark in self._remarks("+-" if options.ascii_only else "±"):
            yield Text(remark, style="dim")

    def _budgets(self, kept: str, dropped: str) -> Table:
        plan = self.plan
        frequencies = self.frequencies
        table = Table(title="plan: iterations per layer", title_justify="left")
        table.add_column("layer", justify="right")
        table.add_column("budget")
        table.add_column("iterations", justify="right")
        if frequencies:
            table.add_column("each kept in")
        for t, (r, most) in enumerate(zip(plan.num_iterations, plan.teacher.num_iterations, strict=True), 1):
            drawn = Text(kept * r, style="green") + Text(dropped * (most - r), style="dim")
            shares = [" ".join(f"{share:4.0%}" for share in frequencies[t - 1])] if frequencies else []
            table.add_row(str(t), drawn, f"{r} of {most}", *shares)
        return table

    def _caption(self) -> str:
        plan = self.plan
        teacher = f"teacher {plan.teacher.name}"
        if plan.origin == "explicit":
            return f"Written by hand for {teacher}."
        if plan.explanation is None:  # written before plans explained themselves
            return f"By threshold {plan.threshold:.4g} on the influence by {plan.metric}, for {teacher}."
        kept = " Each kept in: the share of resamples of the profile's text in which the rule keeps it."
        return f"For {teacher}: {plan.explanation}." + (kept if self.frequencies else "")

    def _costs(self, arrow: str) -> Table:
        plan, whole, cost = self.plan, self.whole, self.cost
        table = Table(title="cost", title_justify="left")
        table.add_column("")
        table.add_column(f"teacher {arrow} plan", justify="right")
        table.add_column("cut")

        def row(name: str, before: str, after: str, cut: str) -> None:
            table.add_row(name, f"{before} {arrow} {after}", cut)

        row(
            "iterations",
            str(whole.num_iterations),
            str(cost.num_iterations),
            f"{plan.overhead_cut:.1%} overhead cut",
        )
        row(
            "block evaluations",
            str(whole.num_evaluations),
            str(cost.num_evaluations),
            f"{plan.compute_cut:.1%} compute cut",
        )
        row(
            "cache bytes a token",
            f"{whole.cache_bytes_per_token:,}",
            f"{cost.cache_bytes_per_token:,}",
            f"{1 - cost.cache_bytes_per_token / whole.cache_bytes_per_token:.1%} of the cache",
        )
        for name, before, after, cut in self._counts():
            row(name, before, after, cut)
        return table

    def _counts(self) -> Iterator[tuple[str, str, str, str]]:
        """What is counted for a context: name, of the teacher, of the plan, cut; rows that are known."""
        whole, cost = self.whole, self.cost
        yield "whole cache", _scaled(whole.cache_bytes, "B"), _scaled(cost.cache_bytes, "B"), ""
        for phase in ("prefill", "decode"):
            before, after = (getattr(one, f"{phase}_flops") for one in (whole, cost))
            if before is not None:
                yield f"{phase} FLOPs", _scaled(before), _scaled(after), f"{1 - after / before:.1%} of FLOPs"
        for phase in ("prefill", "decode"):
            before, after = (getattr(one, f"{phase}_seconds") for one in (whole, cost))
            if before is not None and self.latency is not None:
                error = getattr(self.latency, phase).largest_error
                times = f"{before / after:.2f}x, " if after else ""
                yield (
                    f"{phase}, predicted",
                    f"{1000 * before:.4g}",
                    f"{1000 * after:.4g} ms",
                    f"{times}table off by up to {error:.1%}",
                )

    def _remarks(self, sign: str) -> Iterator[str]:
        plan, cost = self.plan, self.cost
        sequences = f"{cost.batch_size} sequence{'' if cost.batch_size == 1 else 's'}"
        yield f"Counted for {sequences} of {cost.context:,} tokens; decode: one step after them."
        if self.latency is not None:
            settings = self.latency.settings
            where = f"{settings.device} ({settings.device_name}), {settings.dtype}"
            yield f"Seconds as a table measured on {where} predicts them; its error is that of its own checks."
        if plan.predicted_loss is not None and plan.metric is not None:
            text = f"Predicted loss by {plan.metric}: {plan.predicted_loss:.4g}"
            if plan.predicted_loss_error is not None:
                text += f" {sign} {plan.predicted_loss_error:.2g}"
            yield f"{text} {LOSS_UNITS[plan.metric]}, if the layers add up."
        if cost.unused_parameters:
            yield f"{cost.unused_parameters:,} parameters of the teacher have no use under the plan."


class CurveReport:
    """Rich renderable: every best trade of evaluations for predicted loss, beside what thresholds give.

    normalize, bounds: as for `plan_by_threshold`; bounds hold for both. latency: adds the predicted
    milliseconds of the best plans, of one call of `phase`.
    """

    def __init__(
        self,
        profile: Profile,
        metric: str = "kl",
        normalize: str = "none",
        bounds: Bounds | None = None,
        latency: LatencyTable | None = None,
        phase: str = "decode",
    ):
        self.profile, self.metric, self.normalize = profile, metric, normalize
        self.front = pareto_front(profile, metric, bounds)
        self.thresholds = threshold_curve(profile, metric, normalize, bounds)
        self.best_knee, self.threshold_knee = find_knee(self.front), find_knee(self.thresholds)
        self.latency, self.phase = latency, phase

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        mark = "<" if options.ascii_only else "◄"
        best = {sum(point.num_iterations): point for point in self.front}
        ruled = {sum(point.num_iterations): point for point in self.thresholds}
        counts = sorted({*best, *ruled}, reverse=True)
        knees = {sum(self.best_knee.num_iterations), sum(self.threshold_knee.num_iterations)}
        shown = _thinned(counts, knees)
        table = self._table()
        for count in shown:
            table.add_row(*self._row(count, best.get(count), ruled.get(count), mark))
        yield table
        yield Text(self._caption(len(shown), len(counts), mark), style="dim")

    def _table(self) -> Table:
        table = Table(title=f"trade-off by {self.metric}", title_justify="left")
        milliseconds = [f"{self.phase} ms"] if self.latency is not None else []
        for name in ("evaluations", "overhead cut", "least loss", *milliseconds, "by threshold", "its loss"):
            table.add_column(name, justify="right")
        return table

    def _row(self, count: int, best: FrontPoint | None, ruled: CurvePoint | None, mark: str) -> list[str]:
        teacher = self.profile.model
        whole = sum(teacher.num_iterations)
        evaluations = count + teacher.num_start_evaluations * teacher.num_layers
        row = [str(evaluations), f"{(whole - count) / whole:.1%}", ""]
        if best is not None:
            row[-1] = f"{best.predicted_loss:.3g}" + (f" {mark}" if best is self.best_knee else "")
        if self.latency is not None:
            phase = getattr(self.latency, self.phase)
            row.append(f"{1000 * phase.seconds(best.num_iterations):.4g}" if best is not None else "")
        if ruled is None:
            return [*row, "", ""]
        here = f" {mark}" if ruled is self.threshold_knee else ""
        return [*row, f"{shortest_threshold(ruled)}{here}", f"{ruled.predicted_loss:.3g}"]

    def _caption(self, num_shown: int, num_rows: int, mark: str) -> str:
        best, ruled = self.best_knee, self.threshold_knee
        share = "" if self.normalize == "none" else f" --normalize {self.normalize}"
        lines = [
            f"Loss: predicted, {LOSS_UNITS[self.metric]}, if the layers add up. {mark} the knees:",
            f"of all plans, --max-evaluations {best.num_evaluations}: {best.overhead_cut:.1%} overhead cut "
            f"for {best.predicted_loss:.3g};",
            f"of thresholds, --threshold {shortest_threshold(ruled)}{share}: {ruled.overhead_cut:.1%} "
            f"for {ruled.predicted_loss:.3g}.",
        ]
        if self.latency is not None:
            error = getattr(self.latency, self.phase).largest_error
            lines.append(f"Milliseconds as the latency table predicts them, off by up to {error:.1%}.")
        if num_shown < num_rows:
            lines.append(f"Thinned: {num_shown} of {num_rows} rows are shown.")
        return "\n".join(lines)


def _keep_frequencies(plan: Plan, profile: Profile | None) -> list[list[float]] | None:
    """Of a threshold plan, within its bounds; None where the profile is not at hand or has one batch."""
    if plan.origin != "threshold" or profile is None or len(profile.batches) < 2:
        return None
    from iiad.planning.stability import keep_frequency

    assert plan.metric is not None
    assert plan.threshold is not None
    shares = keep_frequency(profile, plan.metric, plan.threshold, plan.normalize or "none")
    if shares is None:
        return None
    limits = (plan.bounds or Bounds()).limits(plan.teacher)
    return [
        [1.0 if i <= least else 0.0 if i > most else share for i, share in enumerate(layer, 1)]
        for layer, (least, most) in zip(shares, limits, strict=True)
    ]


def _thinned(counts: Sequence[int], wanted: set[int]) -> list[int]:
    """At most MOST_ROWS of them: the first, the last, those wanted, and others at even distances."""
    if len(counts) <= MOST_ROWS:
        return list(counts)
    others = [count for count in counts if count not in wanted]
    room = MOST_ROWS - len(wanted)
    even = {others[round(n * (len(others) - 1) / (room - 1))] for n in range(room)}
    return [count for count in counts if count in even | wanted]


def _scaled(value: float, unit: str = "") -> str:
    """As in "1.5 M" and "12.6 GB": three digits and a decimal prefix."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def draw_trade_off(
    profile: Profile, metric: str, normalize: str, bounds: Bounds | None, folder: str | Path
) -> list[Path]:
    """The Pareto front and what thresholds give, with the front's knee, as a picture. Errors as of `draw_curve`."""
    from iiad.progress import print_status

    from .pictures import draw_curve

    front = pareto_front(profile, metric, bounds)
    ruled = threshold_curve(profile, metric, normalize, bounds)
    knee = find_knee(front)
    paths = draw_curve(
        {
            "Pareto front": [(point.overhead_cut, point.predicted_loss) for point in front],
            "by threshold": [(point.overhead_cut, point.predicted_loss) for point in ruled],
        },
        folder,
        knee=(knee.overhead_cut, knee.predicted_loss),
        unit=LOSS_UNITS[metric],
    )
    print_status(f"drawn: {', '.join(map(str, paths))}")
    return paths
