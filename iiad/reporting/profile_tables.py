"""A profile as tables: the scores by each metric, layers down and iterations across, and the trust in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.influence.convergence import Scores
from iiad.influence.diagnostics import Agreement
from iiad.influence.profile import METRICS, Profile
from iiad.planning.costs import LOSS_UNITS
from iiad.planning.stability import Stability
from iiad.planning.trust import Trust

from .tables import filled_table, format_coefficients, format_number, format_share

__all__ = ["InfluenceReport", "profile_verdict"]

SHADES = ((0.5, "bold red"), (0.2, "yellow"), (0.05, "green"), (0.0, "cyan"))
"""Style of a score by its share of the metric's largest."""
NEGATIVE = "magenta"
MOST_DECIMALS = 6
REVERSED = -0.5
"""Rank correlation from which on a metric misleads."""
_CERTAIN = {"100 %", "0 %", "+1.00", "1.00", "-", ""}


class InfluenceReport:
    """Rich renderable: a verdict, the scores, coloured by size where there is colour, and the trust in them.

    details: the scores by every metric and all rows; else those by the reference, and rows that say something.
    """

    def __init__(self, profile: Profile, trust: Trust, details: bool = False):
        self.profile, self.trust, self.details = profile, trust, details

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        profile, trust = self.profile, self.trust
        sign = "+-" if options.ascii_only else "±"
        labels = profile.model.layer_labels()
        batches = f"{len(profile.batches)} batch{'es' if len(profile.batches) > 1 else ''}"
        yield Text(f"Verdict: {profile_verdict(profile, trust)}\n", style="bold")
        yield Text(
            f"{profile.model.name}: {profile.loss:.4f} nats a token on {profile.num_tokens:,} tokens in {batches}"
            + (", standard errors over the batches\n" if profile.standard_errors else "\n")
        )
        for metric, scores in profile.scores.items():
            if metric == trust.reference or self.details:
                errors = (profile.standard_errors or {}).get(metric)
                yield Text(f"influence by {metric}", style="italic")
                yield _table("iteration", 1, labels, scores, errors, sign)
                yield Text(f"{metric}: {METRICS[metric]}.\n", style="dim")
        for metric, scores in profile.stages.items():
            if metric == trust.reference or self.details:
                errors = (profile.stage_errors or {}).get(metric)
                yield Text(f"predictor's stages by {metric}", style="italic")
                yield _table("stage", 2, labels, scores, errors, sign)
        if profile.stages:
            note = "a stage's score: the layer's predictor truncated before it, the corrector in full.\n"
            yield Text(note, style="dim")
        yield from self._extrapolation(labels)
        yield from self._settling(labels)
        if self.details:
            yield Text("fixed points: does the iteration settle?", style="italic")
            yield _fixed_points(profile, trust)
        yield Text(trust.advice + "\n")
        yield from self._agreements()
        yield from self._kept()
        yield from self._stabilities()
        if not self.details:
            more = "--details adds the other metrics, fixed points, and rows that say 100 % or +1.00."
            yield Text(more, style="dim")

    def _extrapolation(self, labels: Sequence[str]) -> Iterator[RenderableType]:
        longest = max((len(layer.removed) for layer in self.profile.extrapolation), default=0)
        if not longest:
            return
        rows = []
        for label, layer in zip(labels, self.profile.extrapolation, strict=True):
            pairs = zip(layer.coefficients, layer.removed, strict=True)
            cells = [f"{format_coefficients(b)}, {format_share(share, 0)}" for b, share in pairs]
            rows.append([label, *cells, *[""] * (longest - len(cells))])
        yield Text(
            "extrapolation of a layer's stops: coefficients, share of the error removed", style="italic"
        )
        yield filled_table(["layer", *(f"stop {i}" for i in range(1, longest + 1))], rows)
        scored = "the scores above are of extrapolated stops" if self.profile.settings.extrapolate else ""
        note = scored or "`iiad plan --extrapolate` takes it: no training, no evaluation"
        yield Text(
            f"z(i) + b1 (z(i) - z(i-1)) + b2 (z(i-1) - z(i-2)) + ... stands for z(i); {note}.\n", style="dim"
        )

    def _settling(self, labels: Sequence[str]) -> Iterator[RenderableType]:
        most = max(self.profile.model.num_iterations)
        if not self.profile.settling or most < 2:
            return
        rows = []
        for label, layer, r in zip(
            labels, self.profile.settling, self.profile.model.num_iterations, strict=True
        ):
            found = [[layer.quantile(i, share) for share in (0.1, 0.5, 0.9)] for i in range(1, r)]
            cells = [" ".join("  -  " if at is None else f"{at:.1g}" for at in stop) for stop in found]
            rows.append([label, *cells, *[""] * (most - 1 - len(cells))])
        yield Text("tokens that stop by themselves: tolerance for 10, 50 and 90 % of them", style="italic")
        yield filled_table(["layer", *(f"by iteration {i}" for i in range(1, most))], rows)
        yield Text(
            "tolerance: least |z(i) - z(i-1)| / |z(i-1)| so far; `iiad plan --tolerance-for` takes it.\n",
            style="dim",
        )

    def _telling(self, rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Rows that say more than that all is decided or alike; with details all."""
        return [row for row in rows if self.details or not set(row[1:]) <= _CERTAIN]

    def _agreements(self) -> Iterator[RenderableType]:
        reference, found = self.trust.reference, self.trust.agreements
        rows = self._telling([_agreement_row(agreement) for agreement in found])
        if rows:
            yield Text(f"agreement with {reference}", style="italic")
            yield filled_table(["metric", "Spearman", "Kendall", "top half"], rows)
            yield Text(
                "order of all iterations: 1 is the same, -1 the reverse; top half: share of the iterations in the "
                f"upper half by {reference} that are there by the metric too (0.5 by chance).\n",
                style="dim",
            )
        for a in found:
            if a.spearman is not None and a.spearman <= REVERSED:
                yield Text(
                    f"{a.metric} ranks the iterations in reverse ({a.spearman:+.2f}): do not plan by it.\n"
                )

    def _kept(self) -> Iterator[RenderableType]:
        trust = self.trust
        if trust.kept is None:
            yield Text("stability: expected several batches, got one; give more --max-tokens\n")
            return
        rows = self._telling(
            [
                [label, *(format_share(share, 0) for share in layer)]
                for label, layer in zip(self.profile.model.layer_labels(), trust.kept, strict=True)
            ]
        )
        if rows:
            title = (
                f"kept at threshold {trust.threshold:.3g} on {trust.reference}, share of bootstrap samples"
            )
            yield Text(title, style="italic")
            width = max(map(len, rows))
            padded = [[*row, *[""] * (width - len(row))] for row in rows]
            yield filled_table(["layer", *(f"iteration {i}" for i in range(1, width))], padded)
            note = "near 0 or 100 %: decided; near 50 %: undecided on other text of this kind.\n"
            yield Text(note, style="dim")

    def _stabilities(self) -> Iterator[RenderableType]:
        profile, found = self.profile, self.trust.stabilities
        pairs = [f"{a + 1} with {b + 1}" for a, b in found[0].between_sets]
        rows = self._telling(
            [
                [each.metric, *(format_number(value, "+.2f") for value in _correlations(each))]
                for each in found
                if each.metric == self.trust.reference or self.details
            ]
        )
        if rows:
            yield Text(
                "rank correlation of the scores with those of other samples of the text", style="italic"
            )
            yield filled_table(["metric", "median", "5th percentile", *pairs], rows)
            note = "Spearman's, over bootstrap samples of the batches"
            if len(profile.data) > 1:
                named = ", ".join(f"{n}: {' '.join(part.names)}" for n, part in enumerate(profile.data, 1))
                note += f"; between data sets ({named})"
            yield Text(f"{note}.\n", style="dim")


def profile_verdict(profile: Profile, trust: Trust) -> str:
    """Say in one line whether there is something to plan, and what the plan by the threshold costs."""
    unit = LOSS_UNITS[trust.reference]
    if trust.guess is not None and profile.loss >= trust.guess:
        return (
            f"the teacher knows no more of this text than a uniform guess ({profile.loss:.2f} nats a token): "
            "train it first."
        )
    if not trust.contributes:
        return (
            f"the iterations contribute nothing (at most {trust.largest:.1e} {unit}): they have learnt nothing yet, "
            "or are not needed."
        )
    total, kept = sum(profile.model.num_iterations), sum(trust.budget)
    line = (
        f"threshold {trust.threshold:.3g} drops {total - kept} of {total} iterations, predicted to cost "
        f"{trust.predicted_loss:.3g} {unit}"
    )
    undecided = trust.num_undecided
    return line + (f"; {undecided} undecided on other text." if undecided else ".")


def _table(
    column: str, first: int, labels: Sequence[str], scores: Scores, errors: Scores | None, sign: str
) -> Table:
    """Layers down, iterations or stages across, numbered from `first`."""
    largest = max((abs(score) for layer in scores for score in layer), default=0.0)
    table = Table()
    table.add_column("layer", justify="right")
    for i in range(max(map(len, scores))):
        table.add_column(f"{column} {i + first}", justify="right", no_wrap=True)
    for t, layer in enumerate(scores):
        cells = []
        for i, score in enumerate(layer):
            text = _score(score, largest)
            if errors is not None:
                text += f" {sign}{_score(errors[t][i], largest)}"
            cells.append(Text(text, style=_style(score, largest)))
        table.add_row(labels[t], *cells)
    return table


def _score(value: float, largest: float) -> str:
    """Four digits for the metric's largest score, and as many decimals for the others."""
    if not largest:
        return "0"
    decimals = max(0, 3 - math.floor(math.log10(largest)))
    return f"{value:.{decimals}f}" if decimals <= MOST_DECIMALS else f"{value:.1e}"


def _style(score: float, largest: float) -> str:
    if score < 0:
        return NEGATIVE
    share = score / largest if largest else 0.0
    return next(style for least, style in SHADES if share >= least)


def _fixed_points(profile: Profile, trust: Trust) -> Table:
    rows = []
    labels = profile.model.layer_labels()
    for label, layer, diagnosis in zip(labels, profile.fixed_point, trust.diagnoses, strict=True):
        numbers = ((layer.residuals, ".3f"), (layer.contractions, ".2f"), (layer.turns, "+.2f"))
        rows.append([label, *(_numbers(*each) for each in numbers), diagnosis.verdict])
    return filled_table(["layer", "residuals", "contraction", "turns", "the iteration"], rows)


def _agreement_row(agreement: Agreement) -> list[str]:
    correlations = (format_number(value, "+.2f") for value in (agreement.spearman, agreement.kendall))
    return [agreement.metric, *correlations, format_number(agreement.overlap)]


def _correlations(stability: Stability) -> list[float | None]:
    return [stability.median, stability.low, *stability.between_sets.values()]


def _numbers(values: Sequence[float], form: str) -> str:
    return " ".join(format(value, form) for value in values) or "-"
