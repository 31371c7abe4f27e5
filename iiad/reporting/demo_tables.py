"""The demo's comparison table, how to read it, and the next commands."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from iiad.evaluation import Bench, Evaluation

from .tables import format_share, stacked_tables

__all__ = ["demo_report", "next_steps"]

ROWS = {
    "Transformer": "transformer",
    "IIET, r = 0": "iiet-r0",
    "teacher, r = 3": "teacher",
    "truncated teacher": "teacher, truncated",
    "E-IIET": "student",
}
"""Title of a row -> its label in evaluation and bench."""

COLUMNS = [
    *("model", "perplexity", "accuracy", "retained"),
    *("overhead\ncut", "decode\nspeed", "evaluations\nper token"),
]


def demo_report(evaluation: Evaluation, bench: Bench, tokens: dict[str, int], width: int) -> RenderableType:
    """The comparison on `width` characters, and how to read it. tokens: learned from, by model."""
    quality = {result.label: result for result in evaluation.results}
    speed = {result.label: result for result in bench.results}
    rows = [
        [
            title,
            f"{quality[label].perplexity:.2f}",
            format_share(quality[label].accuracy, digits=2),
            format_share(quality[label].retained),
            format_share(quality[label].overhead_cut),
            f"{speed[label].decode.speedup.median:.2f}x",
            str(quality[label].evaluations_per_token),
        ]
        for title, label in ROWS.items()
    ]
    more = tokens["student"] - tokens["teacher"]
    legend = (
        f"\nThe first three models learned from {tokens['teacher'] / 1e6:.2f} M tokens each. The truncated teacher "
        f"is the teacher under the plan, untrained; the E-IIET learned from {more / 1e6:.2f} M tokens more. Retained "
        "accuracy, overhead cut (dropped iterations) and decode speed (batch 1) are relative to the teacher. Compare "
        "r = 0 with the teacher to see what iterations gain on this text, and the truncated teacher with the E-IIET "
        "to see what distillation gains. One seed: differences of 0.1 % are noise."
    )
    return Group(*stacked_tables(COLUMNS, rows, width), Text(legend, style="dim"))


def next_steps(folder: Path, minutes: float) -> str:
    """Commands to try next, as they are typed."""
    return f"""
{minutes:.1f} minutes. Next: generate text, make another plan in a second, train a teacher on your own text.

  iiad generate {folder}/student --prompt "def main("
  iiad plan {folder}/profile.json --threshold 0.02 --output plan.json
  iiad train demo --set data.train='[your/*.txt]' --output-dir my-teacher
"""
