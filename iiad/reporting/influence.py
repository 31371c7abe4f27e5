"""A profile as tables: layers down, iterations across, one table for each metric."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.influence.agreement import rank_agreement
from iiad.influence.profile import METRICS, Profile

__all__ = ["InfluenceReport"]

REFERENCE = "kl"
SHADES = ((0.5, "bold red"), (0.2, "yellow"), (0.05, "green"), (0.0, "cyan"))
"""Style of a score by its share of the metric's largest."""
HARM = "magenta"
MOST_DECIMALS = 6


class InfluenceReport:
    """Rich renderable: all scores of a profile, coloured by size where there is colour, and what they mean."""

    def __init__(self, profile: Profile):
        self.profile = profile

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        sign = "+-" if options.ascii_only else "±"
        for metric in self.profile.scores:
            yield self._table(metric, sign)
            yield Text(self._caption(metric) + "\n", style="dim")

    def _table(self, metric: str, sign: str) -> Table:
        scores = self.profile.scores[metric]
        errors = (self.profile.standard_errors or {}).get(metric)
        largest = max(abs(score) for layer in scores for score in layer)
        table = Table(title=f"influence by {metric}", title_justify="left")
        table.add_column("layer", justify="right")
        for i in range(1, max(map(len, scores)) + 1):
            table.add_column(f"iteration {i}", justify="right", no_wrap=True)
        for t, layer in enumerate(scores):
            cells = []
            for i, score in enumerate(layer):
                text = _number(score, largest)
                if errors is not None:
                    text += f" {sign}{_number(errors[t][i], largest)}"
                cells.append(Text(text, style=_style(score, largest)))
            table.add_row(str(t + 1), *cells)
        return table

    def _caption(self, metric: str) -> str:
        profile = self.profile
        text = f"{metric}: {METRICS[metric]}. "
        batches = f"{profile.num_batches} batch{'es' if profile.num_batches > 1 else ''}"
        text += f"Measured on {profile.data.num_tokens:,} tokens in {batches}"
        text += ", standard errors over the batches." if profile.standard_errors else "."
        if metric != REFERENCE and REFERENCE in profile.scores:
            agreement = rank_agreement(profile, metric, REFERENCE)
            if agreement is not None:
                text += f" Rank agreement with {REFERENCE}: {agreement:+.2f} (Spearman; 1 is the same order)."
        return text


def _number(value: float, largest: float) -> str:
    """Fixed decimals, so that sizes can be compared by eye: four digits for the metric's largest score."""
    if not largest:
        return "0"
    decimals = max(0, 3 - math.floor(math.log10(largest)))
    return f"{value:.{decimals}f}" if decimals <= MOST_DECIMALS else f"{value:.1e}"


def _style(score: float, largest: float) -> str:
    if score < 0:
        return HARM
    share = score / largest if largest else 0.0
    return next(style for least, style in SHADES if share >= least)
