"""Tables of a verification: predicted loss of plans beside their true loss on the untrained teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from iiad.evaluation.quality_artefact import perplexity
from iiad.planning.costs import LOSS_UNITS, NEGLIGIBLE
from iiad.planning.verification import Verification, VerifiedPlan
from iiad.progress import print_status

from .pictures import draw_verification
from .tables import format_share, stacked_tables

__all__ = ["VerificationReport", "draw_predictions", "verification_remarks", "verification_verdict"]

REVERSED, RANKED, CERTAIN = -0.5, 0.5, 0.995
"""Rank correlations up to which scores mislead, from which they rank, and that say nothing over a curve."""

KINDS = {
    "plan": ("plan", "the plan"),
    "threshold": ("threshold", "points of the threshold's curve"),
    "front": ("Pareto front", "best plans by prediction (Pareto front)"),
    "metric": ("other metrics", "best plans by other metrics, of at most as many iterations"),
    "baseline": ("no influence", "chosen without influence, as many iterations as the plan"),
}
"""Kind of plan -> its name in a picture's legend and its table's title."""

COLUMNS = ["plan", "iterations", "overhead\ncut", "predicted", "true KL", "loss\ngrows by", "perplexity"]


class VerificationReport:
    """Rich renderable: a verdict, the plans by where they come from, and what they say about the scores.

    details: also plans that a row above has shown, and correlations that hold for any scores.
    """

    def __init__(self, verification: Verification, details: bool = False):
        self.verification, self.details = verification, details

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        verification = self.verification
        yield Text(f"Verdict: {verification_verdict(verification)}\n", style="bold")
        tokens = sum(part.num_tokens for part in verification.data)
        yield Text(
            f"{verification.model.name}, untrained, on {tokens:,} tokens: "
            f"perplexity {perplexity(verification.loss):.2f} in full; prediction by {verification.metric}\n"
        )
        sign, shown = "+-" if options.ascii_only else "±", set[tuple[object, ...]]()
        for kind, (_, title) in KINDS.items():
            plans = []
            for plan in verification.plans:
                same = (*plan.num_iterations, str(plan.extrapolation))
                if plan.kind == kind and (self.details or same not in shown):
                    shown.add(same)
                    plans.append(plan)
            if plans:
                yield Text(title, style="italic")
                yield from stacked_tables(
                    COLUMNS, [self._cells(plan, sign) for plan in plans], options.max_width
                )
                yield Text()
        yield Text("\n".join(verification_remarks(verification, self.details)))
        if not self.details:
            yield Text(
                "--details adds plans that are the same as one above, and all correlations.", style="dim"
            )

    def _cells(self, plan: VerifiedPlan, sign: str) -> list[str]:
        separator = "" if max(plan.num_iterations) < 10 else " "  # as in 2211
        return [
            plan.name,
            separator.join(map(str, plan.num_iterations)),
            format_share(plan.overhead_cut),
            f"{plan.predicted:.4f}",
            _measured(plan.kl, plan.kl_error, sign),
            _measured(plan.loss, plan.loss_error, sign),
            f"{perplexity(self.verification.loss + plan.loss):.2f}",
        ]


def verification_verdict(verification: Verification) -> str:
    """Say in one line whether plans may be made by these scores."""
    alike, points = verification.equal_cost, verification.points
    order, judged = verification.rank_correlation(alike), f"{len(alike)} plans of like cost"
    if order is None:
        order, judged = verification.rank_correlation(points), f"{len(points)} plans"
    if verification.largest_loss < NEGLIGIBLE["kl"]:
        return (
            f"no plan loses anything (at most {verification.largest_loss:.1e} nats per token): the iterations have "
            "learnt nothing yet, or are not needed."
        )
    if order is None:
        return "too few plans, or too equal ones, to judge the predictions by."
    if order <= REVERSED:
        return (
            f"do not plan by these scores: they rank {judged} in reverse of their true loss ({order:+.2f})."
        )
    if order < RANKED:
        return f"these scores hardly rank {judged} ({order:+.2f}): profile more text, or verify on more."
    line = f"scores rank {judged} as their true loss does ({order:+.2f})"
    first = verification.plans[0]
    if first.kind == "plan":
        line += f"; the plan loses {verification.true_loss(first):.3g}, predicted {first.predicted:.3g}"
    return f"{line}."


def verification_remarks(verification: Verification, details: bool = False) -> list[str]:
    """Say if scores are additive, if they rank plans, and if influence beats choosing without it.

    details: say also that they rank the points of the curve, each of which holds the next, which any scores do.
    """
    remarks = []
    ratio, points, alike = verification.additivity, verification.points, verification.equal_cost
    if ratio is not None:
        verdict = "scores add up"
        if not 0.9 <= ratio <= 1.1:
            than = "more" if ratio > 1 else "less"
            verdict = f"scores are not additive: together, iterations are worth {than} than one by one"
        remarks.append(f"True loss / predicted loss over the {len(points)} points: {ratio:.2f}: {verdict}.")
    order = verification.rank_correlation(points)
    if order is not None and (details or order < CERTAIN):
        remarks.append(f"Rank correlation of predicted and true loss over them: {order:+.2f} (Spearman).")
    order = verification.rank_correlation(alike)
    if order is not None:
        remarks.append(f"Over {len(alike)} different plans of like cost, the harder test: {order:+.2f}.")
    first, baselines = verification.plans[0], [plan for plan in verification.plans if plan.kind == "baseline"]
    if first.kind == "plan" and baselines:
        remarks.append(_against_baselines(first, baselines))
    return remarks


def _against_baselines(plan: VerifiedPlan, baselines: Sequence[VerifiedPlan]) -> str:
    same = [other.name for other in baselines if other.num_iterations == plan.num_iterations]
    others = [other for other in baselines if other.num_iterations != plan.num_iterations]
    better = [other.name for other in others if other.kl < plan.kl]
    against = f"{len(others)} other plans of as many iterations that were chosen without influence"
    equal = f"; it is the same as: {', '.join(same)}" if same else ""
    if not others:
        return f"The plan is the only one of as many iterations{equal}."
    if better:
        worse = len(others) - len(better)
        return f"The plan has a smaller KL than {worse} of {against}; better: {', '.join(better)}{equal}."
    return f"The plan has a smaller KL than all {against}{equal}."


def draw_predictions(verification: Verification, folder: str | Path) -> list[Path]:
    """Draw predicted against true loss of every plan, by where it comes from. Errors as of `draw_verification`."""
    error = "loss_error" if verification.metric in ("loss", "taylor") else "kl_error"
    points = [
        (KINDS[plan.kind][0], plan.predicted, verification.true_loss(plan), getattr(plan, error))
        for plan in sorted(verification.plans, key=lambda plan: plan.kind == "plan")  # on top of the others
    ]
    paths = draw_verification(points, folder, unit=LOSS_UNITS[verification.metric])
    print_status(f"drawn: {', '.join(map(str, paths))}")
    return paths


def _measured(value: float, error: float | None, sign: str) -> str:
    return f"{value:.4f}" + ("" if error is None else f" {sign}{error:.4f}")
