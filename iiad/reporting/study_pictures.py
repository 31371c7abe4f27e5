"""Picture of a study: accuracy against evaluations per token, with intervals."""

from __future__ import annotations

from pathlib import Path

from iiad.studies.estimation import Estimate
from iiad.studies.study_artefact import StudyResult

from .canvas import WIDTH, new_picture, require_numbers, styles

__all__ = ["draw_study"]

Point = tuple[float, Estimate]


def draw_study(result: StudyResult, folder: str | Path) -> list[Path]:
    """Draw arms as points and the students of each kind as lines, as study.

    Raises InputError: no matplotlib, a folder that cannot be written to, no results.
    """
    series: dict[str, list[Point]] = {
        arm.name: [(float(arm.evaluations_per_token), arm.accuracy)] for arm in result.arms
    }
    for row in result.students:
        training = "untrained" if row.training == "none" else row.training
        label = f"cut by {row.plan}, {training}"
        series.setdefault(label, []).append((row.evaluations_per_token, row.accuracy))
    require_numbers("study", [(x, found.mean) for points in series.values() for x, found in points])
    with new_picture(folder, "study", 0.75 * WIDTH) as (figure, paths):
        axes = figure.add_subplot(xlabel="block evaluations per token", ylabel="accuracy (%)")
        axes.grid(visible=True)
        for (label, points), look in zip(series.items(), styles(), strict=False):
            points = sorted(points, key=lambda point: point[0])
            heights = [100 * found.mean for _, found in points]
            halves = [100 * ((found.high or found.mean) - found.mean) for _, found in points]
            line = {"linestyle": "-" if len(points) > 1 else "none"}
            axes.errorbar(
                [x for x, _ in points], heights, yerr=halves, capsize=2, label=label, **look, **line
            )
        axes.legend()
    return paths
