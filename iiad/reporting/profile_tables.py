"""A profile as tables: layers down, iterations across, one table for each metric."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.influence.profile import METRICS, Profile, Scores
from iiad.planning.trust import Trust

from .trust_tables import trust_report

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
        yield from trust_report(profile, self.trust)


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
            text = _number(score, largest)
            if errors is not None:
                text += f" {sign}{_number(errors[t][i], largest)}"
            cells.append(Text(text, style=_style(score, largest)))
        table.add_row(str(t + 1), *cells)
    return table


def _number(value: float, largest: float) -> str:
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
