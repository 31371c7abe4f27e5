"""The demo's one table, and what to do next."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from iiad.demo import Demo

from .evaluation import format_share, stacked_tables

__all__ = ["demo_report"]

# Row of the table -> row of evaluation and bench.
ROWS = {
    "Transformer": "transformer",
    "IIET r = 0": "iiet-r0",
    "IIET teacher r = 3": "teacher",
    "truncated teacher": "teacher, truncated",
    "E-IIET": "student",
}
COLUMNS = [
    "model",
    "perplexity",
    "accuracy",
    "retained",
    "overhead\ncut",
    "decode\nspeed",
    "evaluations\nper token",
]


def demo_report(demo: Demo, width: int) -> RenderableType:
    """The comparison on `width` characters, how to read it, and the next commands."""
    quality = {result.label: result for result in demo.evaluation.results}
    speed = {result.label: result for result in demo.bench.results}
    rows = [
        [
            title,
            f"{quality[label].perplexity:.2f}",
            format_share(quality[label].accuracy, digits=2),
            format_share(quality[label].retained),
            format_share(quality[label].overhead_cut),
            f"{speed[label].decode_speedup.median:.2f}x",
            str(quality[label].evaluations_per_token),
        ]
        for title, label in ROWS.items()
    ]
    tables = stacked_tables(COLUMNS, rows, width)
    return Group(*tables, Text(_legend(demo), style="dim"), Text(_next_steps(demo)))


def _legend(demo: Demo) -> str:
    more = demo.tokens["student"] - demo.tokens["teacher"]
    return f"""
Plan {demo.plan.num_iterations}: {demo.explanation}.
The first three are trained from scratch on {demo.tokens["teacher"] / 1e6:.2f} M tokens; the truncated teacher is the
teacher under the plan, untrained; the E-IIET learnt from {more / 1e6:.2f} M more. retained (accuracy), overhead cut
(iterations gone) and decode speed (batch 1) are against the teacher. From r = 0 to the teacher is what iterations
buy on this text; from truncated to E-IIET what distillation does. One seed: thousandths of accuracy are noise."""


def _next_steps(demo: Demo) -> str:
    folder = demo.folder
    return f"""
{demo.minutes:.1f} minutes. Next:
  iiad generate {folder}/student --prompt "def main("
  iiad plan {folder}/profile.json --threshold 0.02 --output plan.json       # another plan, in seconds
  iiad train demo --set data.train='[your/*.txt]' --output-dir my-teacher   # on text of your own
"""
