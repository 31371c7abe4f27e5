"""A profile as tables: the scores by each metric, layers down and iterations across, and the trust in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.influence.profile import METRICS, Profile, Scores
from iiad.planning.trust import Trust

from .tables import format_number, format_share, plain_table

__all__ = ["InfluenceReport"]

SHADES = ((0.5, "bold red"), (0.2, "yellow"), (0.05, "green"), (0.0, "cyan"))
"""Style of a score by its share of the metric's largest."""
NEGATIVE = "magenta"
MOST_DECIMALS = 6


class InfluenceReport:
    """Rich renderable: all scores of a profile, coloured by size where there is colour, and the trust in them."""

    def __init__(self, profile: Profile, trust: Trust):
        self.profile, self.trust = profile, trust

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        profile = self.profile
        sign = "+-" if options.ascii_only else "±"
        batches = f"{len(profile.batches)} batch{'es' if len(profile.batches) > 1 else ''}"
        yield Text(
            f"{profile.model.name}: {profile.loss:.4f} nats a token on {profile.num_tokens:,} tokens in {batches}"
            + (", standard errors over the batches\n" if profile.standard_errors else "\n")
        )
        for metric, scores in profile.scores.items():
            errors = (profile.standard_errors or {}).get(metric)
            yield Text(f"influence by {metric}", style="italic")
            yield _table("iteration", 1, scores, errors, sign)
            yield Text(f"{metric}: {METRICS[metric]}.\n", style="dim")
        for metric, scores in profile.stages.items():
            errors = (profile.stage_errors or {}).get(metric)
            yield Text(f"predictor's stages by {metric}", style="italic")
            yield _table("stage", 2, scores, errors, sign)
        if profile.stages:
            note = "a stage's score: the layer's predictor truncated before it, the corrector in full.\n"
            yield Text(note, style="dim")
        yield from _trust(profile, self.trust)


def _table(column: str, first: int, scores: Scores, errors: Scores | None, sign: str) -> Table:
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
        table.add_row(str(t + 1), *cells)
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


def _trust(profile: Profile, trust: Trust) -> Iterator[RenderableType]:
    """The tables below the scores, each with the meaning of its columns, and one line of advice."""
    yield Text("fixed points: does the iteration settle?", style="italic")
    yield _fixed_points(profile, trust)
    yield Text(trust.advice + "\n")
    if trust.agreements:
        yield Text(f"agreement with {trust.reference}", style="italic")
        table = plain_table(["metric"], ["Spearman", "Kendall", "top half"])
        for a in trust.agreements:
            table.add_row(
                a.metric,
                *(format_number(value, "+.2f") for value in (a.spearman, a.kendall)),
                format_number(a.overlap),
            )
        yield table
        yield Text(
            "order of all iterations: 1 is the same, -1 the reverse; top half: share of the iterations in the upper "
            f"half by {trust.reference} that are there by the metric too (0.5 by chance).\n",
            style="dim",
        )
    yield from _kept(trust)
    yield Text("rank correlation of the scores with those of other samples of the text", style="italic")
    yield _stabilities(trust)
    note = "Spearman's, over bootstrap samples of the batches"
    if len(profile.data) > 1:
        named = ", ".join(f"{n}: {' '.join(part.names)}" for n, part in enumerate(profile.data, 1))
        note += f"; between data sets ({named})"
    yield Text(f"{note}.\n", style="dim")


def _fixed_points(profile: Profile, trust: Trust) -> Table:
    table = plain_table(["layer"], ["residuals", "contraction", "turns", "the iteration"])
    for number, (layer, diagnosis) in enumerate(zip(profile.fixed_point, trust.diagnoses, strict=True), 1):
        numbers = ((layer.residuals, ".3f"), (layer.contractions, ".2f"), (layer.turns, "+.2f"))
        table.add_row(str(number), *(_numbers(*each) for each in numbers), diagnosis.verdict)
    return table


def _kept(trust: Trust) -> Iterator[RenderableType]:
    if trust.kept is None:
        yield Text("stability: expected several batches, got one; give more --max-tokens\n")
        return
    title = f"kept at threshold {trust.threshold:.3g} on {trust.reference}, share of bootstrap samples"
    yield Text(title, style="italic")
    table = plain_table(["layer"], [f"iteration {i}" for i in range(1, max(map(len, trust.kept)) + 1)])
    for number, layer in enumerate(trust.kept, 1):
        table.add_row(str(number), *(format_share(share, 0) for share in layer))
    yield table
    yield Text("near 0 or 100 %: decided; near 50 %: undecided on other text of this kind.\n", style="dim")


def _stabilities(trust: Trust) -> Table:
    pairs = [f"{a + 1} with {b + 1}" for a, b in trust.stabilities[0].between_sets]
    table = plain_table(["metric"], ["median", "5th percentile", *pairs])
    for found in trust.stabilities:
        values = (found.median, found.low, *found.between_sets.values())
        table.add_row(found.metric, *(format_number(value, "+.2f") for value in values))
    return table


def _numbers(values: Sequence[float], form: str) -> str:
    return " ".join(format(value, form) for value in values) or "-"
