"""Tables of a study: arms and students with their intervals, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.progress import format_duration
from iiad.studies.estimation import Estimate
from iiad.studies.study_artefact import ArmResult, SeedFigures, StudentResult, StudyResult

from .tables import format_share, record_tables, report

if TYPE_CHECKING:
    from iiad.studies.estimates import RunEstimate

__all__ = ["estimates_table", "study_table"]

_LEGEND = (
    "value ± half of its 95 % interval over seeds (Student's t); differences to the reference are paired by seed; "
    "of students' texts to their teachers', likewise; "
    "to influence: of accuracy, to the plan by influence at that cut, likewise; "
    "evaluations: of blocks, per token; FLOPs: of training one model, estimated."
)


def _points(found: Estimate | None) -> str:
    """Format a share as percent with half its interval."""
    return _format(found, 100, 1)


def _format(found: Estimate | None, scale: float = 1.0, digits: int = 4) -> str:
    if found is None:
        return "-"
    half = "" if found.high is None else f" ± {scale * (found.high - found.mean):.{digits}f}"
    return f"{scale * found.mean:.{digits}f}{half}"


def _seconds(runs: list[SeedFigures]) -> str:
    known = [run.seconds for run in runs if run.seconds is not None]
    return format_duration(sum(known) / len(known)) if known else "-"


_ARMS: list[tuple[str, Callable[[ArmResult], str]]] = [
    ("arm", lambda arm: arm.name),
    ("accuracy %", lambda arm: _points(arm.accuracy)),
    ("difference\npoints", lambda arm: _points(arm.accuracy_difference)),
    ("nats per\ntoken", lambda arm: _format(arm.nll)),
    ("difference\nnats", lambda arm: _format(arm.nll_difference)),
    ("seeds", lambda arm: str(len(arm.runs))),
    ("evalua-\ntions", lambda arm: str(arm.evaluations_per_token)),
    ("parameters", lambda arm: f"{arm.parameters:,}"),
    ("training\nFLOPs", lambda arm: f"{arm.training_flops:.2g}"),
    ("training\ntime", lambda arm: _seconds(arm.runs)),
    ("learning\nrate", lambda arm: f"{arm.learning_rate:g}"),
]

_STUDENTS: list[tuple[str, Callable[[StudentResult], str]]] = [
    ("student", lambda row: f"{format_share(row.cut, digits=0)} cut by {row.plan}, {_training(row)}"),
    ("retained %", lambda row: _points(row.retained)),
    ("accuracy %", lambda row: _points(row.accuracy)),
    ("to influence\npoints", lambda row: _points(row.to_influence)),
    ("nats per\ntoken", lambda row: _format(row.nll)),
    ("overhead\ncut", lambda row: format_share(row.overhead_cut)),
    ("evalua-\ntions", lambda row: f"{row.evaluations_per_token:.3g}"),
    ("seeds", lambda row: str(len(row.runs))),
]


def _training(row: StudentResult) -> str:
    return "untrained" if row.training == "none" else row.training


def study_table(result: StudyResult, width: int) -> RenderableType:
    """Render a study on `width` characters: the answer, arms, students, learning rates, runs that failed."""
    head = f"{result.answer}\n\n{result.num_runs} runs; reference: {result.reference}"
    tables = record_tables(_ARMS, result.arms, width)
    if result.students:
        told = [column for column in _STUDENTS if any(column[1](row) != "-" for row in result.students)]
        tables += record_tables(told, result.students, width)
    tables += _text_tables(result, width)
    lines = [
        f"{arm.name}: learning rate {arm.learning_rate:g} of "
        + ", ".join(f"{rate} ({nll:.4f})" for rate, nll in arm.tried.items())
        for arm in result.arms
        if arm.tried
    ]
    if lines:
        lines = ["learning rates tried with the first seed (nats per token):", *lines]
    lines += [f"failed: {name}: {problem}" for name, problem in result.failed.items()]
    notes = [Text("\n".join(lines))] if lines else []
    return Group(report(head, tables, _LEGEND), *notes)


def _text_tables(result: StudyResult, width: int) -> list[Table]:
    """Scores of texts of arms and students, each with its difference to the reference, or the teachers."""
    names = list(result.arms[0].texts) if result.arms else []
    if not names:
        return []
    rows = [(arm.name, arm.texts, arm.text_differences) for arm in result.arms]
    rows += [(_STUDENTS[0][1](row), row.texts, row.text_differences) for row in result.students]

    def show(place: int, name: str) -> Callable[[Any], str]:
        return lambda row: _format(row[place].get(name), digits=2)

    columns: list[tuple[str, Callable[[Any], str]]] = [("texts", lambda row: row[0])]
    for name in names:
        columns += [(f"{name}\n0 to 100", show(1, name)), (f"{name}\ndifference", show(2, name))]
    return record_tables(columns, rows, width)


_ESTIMATES: list[tuple[str, Callable[[RunEstimate], str]]] = [
    ("runs of", lambda run: run.name),
    ("number", lambda run: str(run.num_runs)),
    ("tokens\neach", lambda run: f"{run.tokens:,}"),
    ("FLOPs\neach", lambda run: f"{run.flops:.2g}"),
    ("minutes\nof all", lambda run: f"{run.minutes:.1f}"),
]


def estimates_table(runs: Sequence[RunEstimate], width: int) -> RenderableType:
    """Render what a study will take."""
    total = format_duration(60 * sum(run.minutes for run in runs))
    legend = "from one measured step of every arm, in one thread; evaluation and profiles come on top."
    return report(f"about {total} in all", record_tables(_ESTIMATES, runs, width), legend)
