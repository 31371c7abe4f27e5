"""The demo's table, how to read it, and the next commands."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from iiad.evaluation import Bench
from iiad.studies.study_artefact import StudyResult

from .tables import format_share, stacked_tables

__all__ = ["demo_report", "next_steps"]

TITLES = {"transformer": "Transformer", "iiet-r0": "IIET, r = 0", "teacher": "teacher, r = 3"}
COLUMNS = [*("model", "accuracy", "retained", "overhead\ncut", "decode\nspeed", "evaluations\nper token")]


def demo_report(result: StudyResult, bench: Bench, width: int) -> RenderableType:
    """Arms and students on `width` characters, and how to read them."""
    speeds = {row.label: f"{row.decode.speedup.median:.2f}x" for row in bench.results}
    teacher = next(arm for arm in result.arms if arm.name == "teacher")
    rows = [
        [
            TITLES.get(arm.name, arm.name),
            format_share(arm.accuracy.mean, digits=1),
            format_share(arm.accuracy.mean / teacher.accuracy.mean),
            "-" if arm.name != "teacher" else format_share(0.0),
            speeds.get(f"{arm.name}-seed0", "-"),
            str(arm.evaluations_per_token),
        ]
        for arm in result.arms
    ] + [
        [
            f"cut {format_share(row.cut, digits=0)}, {'untrained' if row.training == 'none' else row.training}",
            format_share(row.accuracy.mean, digits=1),
            format_share(row.retained.mean if row.retained else None),
            format_share(row.overhead_cut),
            speeds.get(f"teacher-seed0-cut{row.cut:g}-distilled", "-"),
            f"{row.evaluations_per_token:g}",
        ]
        for row in result.students
    ]
    legend = (
        f"\nAccuracy: of running products of swaps in the group S3, asked for at every position. {_compare(result)} "
        "Untrained cuts show what the teacher's iterations contribute, distilled ones what training gives back. "
        "Retained accuracy, overhead cut (dropped iterations) and decode speed (batch 1): relative to the teacher. "
        "One seed: `iiad study depth-s3` asks with three, all baselines and intervals."
    )
    return Group(*stacked_tables(COLUMNS, rows, width), Text(legend, style="dim"))


def _compare(result: StudyResult) -> str:
    """Say whether the teacher's iterations paid in this run."""
    by_name = {arm.name: arm.accuracy.mean for arm in result.arms}
    points = 100 * (by_name["teacher"] - by_name["iiet-r0"])
    if points > 0:
        return (
            f"The teacher is {points:.1f} points above r = 0, of as many parameters: here its iterations pay."
        )
    return f"The teacher is {-points:.1f} points below r = 0, of as many parameters: here its iterations do not pay."


def next_steps(folder: Path, minutes: float, data: str) -> str:
    """Commands to try next, as they are typed. data: the name of the demo's task."""
    runs = folder / "runs"
    return f"""
done in {minutes:.1f} min; everything lies in {folder}. Next:
  {folder}/report.html                                    # all of it on one page, for a browser
  iiad show {folder}/study.json
  iiad profile {runs}/teacher-seed0 --data {data} --output profile.json
  iiad plan profile.json --curve
  iiad evaluate {runs}/teacher-seed0 {runs}/teacher-seed0-cut0.55-distilled --data {data}
  iiad check {runs}/teacher-seed0-cut0.55-distilled
  iiad study depth-s3 --output-dir depth-s3 --jobs 2      # three seeds, all baselines, intervals
"""
