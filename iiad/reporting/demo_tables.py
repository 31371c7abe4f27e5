"""The demo's one table, and what to do next."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from iiad.demo import Demo

from .evaluation_tables import format_share, stacked_tables

__all__ = ["demo_report", "next_steps"]

# Row of the table -> row of evaluation and bench.
ROWS = {
    "Transformer": "transformer",
    "IIET, r = 0": "iiet-r0",
    "teacher, r = 3": "teacher",
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
    """The comparison on `width` characters, and how to read it."""
    quality = {result.label: result for result in demo.evaluation.results}
    speed = {result.label: result for result in demo.bench.results}
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
    tables = stacked_tables(COLUMNS, rows, width)
    return Group(*tables, Text(_legend(demo), style="dim"))


def next_steps(demo: Demo) -> str:
    """Commands to go on with, as they are to be typed."""
    folder = demo.folder
    return f"""
{demo.minutes:.1f} minutes. Next: text from the student, another plan in seconds, a teacher on text of your own.

  iiad generate {folder}/student --prompt "def main("
  iiad plan {folder}/profile.json --threshold 0.02 --output plan.json
  iiad train demo --set data.train='[your/*.txt]' --output-dir my-teacher
"""


def _legend(demo: Demo) -> str:
    first, more = demo.tokens["teacher"], demo.tokens["student"] - demo.tokens["teacher"]
    return (
        f"\nPlan {demo.plan.num_iterations}: {demo.explanation}.\n\n"
        f"The first three learnt from {first / 1e6:.2f} M tokens, from scratch. The truncated teacher is the teacher "
        f"under the plan, untrained; the E-IIET learnt from {more / 1e6:.2f} M more. Retained (accuracy), overhead "
        "cut (iterations gone) and decode speed (batch 1) are against the teacher. From r = 0 to the teacher is what "
        "iterations buy on this text; from truncated teacher to E-IIET what distillation does. One seed: thousandths "
        "of accuracy are noise."
    )
