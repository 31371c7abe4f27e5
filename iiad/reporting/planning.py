"""A plan as a table: the budget of each layer as marks, and what it costs beside the teacher."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.planning.plan import Plan

__all__ = ["PlanReport"]


class PlanReport:
    """Rich renderable: budgets, overhead cut and compute cut by name, evaluations and cache of plan and teacher."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._budgets(*(("#", ".") if options.ascii_only else ("■", "□")))
        yield Text(self._caption() + "\n", style="dim")
        yield self._totals("->" if options.ascii_only else "→")

    def _budgets(self, kept: str, dropped: str) -> Table:
        plan = self.plan
        table = Table(title="plan: iterations per layer", title_justify="left")
        table.add_column("layer", justify="right")
        table.add_column("budget")
        table.add_column("iterations", justify="right")
        for t, (r, most) in enumerate(zip(plan.num_iterations, plan.teacher.num_iterations, strict=True), 1):
            drawn = Text(kept * r, style="green") + Text(dropped * (most - r), style="dim")
            table.add_row(str(t), drawn, f"{r} of {most}")
        return table

    def _caption(self) -> str:
        plan = self.plan
        teacher = f"teacher {plan.teacher.name}"
        if plan.origin == "explicit":
            return f"Written by hand for {teacher}."
        return f"By threshold {plan.threshold:.4g} on the influence by {plan.metric}, for {teacher}."

    def _totals(self, arrow: str) -> Table:
        plan, teacher = self.plan, self.plan.teacher
        cache = teacher.num_evaluations * teacher.cache_bytes_per_slot
        table = Table(title="cost per token", title_justify="left")
        table.add_column("")
        table.add_column(f"teacher {arrow} plan", justify="right")
        table.add_column("cut")
        table.add_row(
            "iterations",
            f"{sum(teacher.num_iterations)} {arrow} {sum(plan.num_iterations)}",
            f"{plan.overhead_cut:.1%} overhead cut",
        )
        table.add_row(
            "block evaluations",
            f"{teacher.num_evaluations} {arrow} {plan.num_evaluations}",
            f"{plan.compute_cut:.1%} compute cut",
        )
        table.add_row(
            "cache bytes",
            f"{cache:,} {arrow} {plan.cache_bytes_per_token:,}",
            f"{plan.compute_cut:.1%} of the cache",
        )
        return table
