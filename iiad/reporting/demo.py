"""The demo's one table, and what to do next."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from iiad.demo import Demo

from .evaluation import format_share, plain_table

__all__ = ["demo_report"]

# Row of the table -> row of evaluation and bench.
ROWS = {
    "Transformer": "transformer",
    "IIET, r = 0, from scratch": "iiet-r0",
    "IIET teacher, r = 3": "teacher",
    "teacher truncated, untrained": "teacher, truncated",
    "E-IIET (distilled)": "student",
}


def demo_report(demo: Demo) -> RenderableType:
    """The comparison, how to read it, and the next commands."""
    table = plain_table(
        ["model", "tokens", "perplexity", "accuracy", "retained"],
        ["evaluations", "overhead cut", "cache", "decode speed"],
    )
    quality = {result.label: result for result in demo.evaluation.results}
    speed = {result.label: result for result in demo.bench.results}
    for title, label in ROWS.items():
        row, timing = quality[label], speed[label]
        seen = demo.tokens["teacher" if "," in label else label]
        table.add_row(
            title,
            f"{seen / 1e6:.2f} M",
            f"{row.perplexity:.2f}",
            format_share(row.accuracy, digits=2),
            format_share(row.retained),
            str(row.evaluations_per_token),
            format_share(row.overhead_cut),
            f"{timing.cache_ratio:.2f}x",
            f"{timing.decode_speedup.median:.2f}x",
        )
    legend = (
        f"Plan {demo.plan.num_iterations}: {demo.explanation}.\n"
        "tokens: trained on, the student's with its teacher's. retained: accuracy, overhead cut: iterations gone,\n"
        "cache and decode speed (batch 1): each against the teacher. One seed; differences of a few thousandths of\n"
        "accuracy are noise. Read the rows from r = 0 to the teacher: that is what iterations buy on this text."
    )
    return Group(table, Text(legend, style="dim"), Text(_next_steps(demo)))


def _next_steps(demo: Demo) -> str:
    folder = demo.folder
    return f"""
{demo.minutes:.1f} minutes. Next:
  iiad generate {folder}/student --prompt "def main("
  iiad plan {folder}/profile.json --threshold 0.01 --output plan.json      another threshold, in seconds
  iiad train demo --set data.train='[your/*.txt]' --output-dir teacher     a teacher on text of your own
"""
