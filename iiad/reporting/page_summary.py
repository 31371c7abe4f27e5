"""Title and figures of the page, by which a reader decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from iiad.evaluation.bench_artefact import Bench, BenchResult
from iiad.evaluation.check_artefact import Check
from iiad.evaluation.quality_artefact import Evaluation, EvaluationResult
from iiad.planning import Plan
from iiad.studies.study_artefact import StudyResult

from .page_parts import Figure
from .sources import Sources
from .tables import format_share

__all__ = ["name_page", "summarize"]

Result = TypeVar("Result", EvaluationResult, BenchResult)


def name_page(sources: Sources) -> str:
    """Return the title: the teacher and, where there is one, its student."""
    students, studies = _students(sources), sources.of(StudyResult)
    if studies:
        folder = studies[0][0].path.resolve().parent.name
        return f"Study {folder}".strip()
    if sources.teacher is None:
        return ", ".join(run.folder.name for run in sources.runs[:3]) or "Models"
    name = Path(sources.teacher.name).name or sources.teacher.name
    return f"{name} \N{RIGHTWARDS ARROW} {students[0]}" if len(students) == 1 else name


def _students(sources: Sources) -> list[str]:
    return [run.folder.name for run in sources.runs if run.record.command == "distill"]


def _choose(results: Sequence[Result], sources: Sources) -> Result | None:
    """Return the result to show: of the first student among the runs, else the last; None for one model alone."""
    students = _students(sources)
    of_runs = [result for result in results[1:] if Path(result.model.name).name in students]
    return next(iter(of_runs or results[:0:-1]), None)


def summarize(sources: Sources) -> list[Figure]:
    """Return the figures, as far as the sources hold them."""
    figures = []
    for _, plan in sources.of(Plan)[:1]:
        whole, cost = plan.costs()
        kept = f"{cost.num_iterations} of {whole.num_iterations} iterations kept"
        figures.append(Figure("overhead cut", format_share(plan.overhead_cut), kept))
    for _, study in sources.of(StudyResult)[:1]:
        figures += _of_study(study)
    for _, evaluation in sources.of(Evaluation)[:1]:
        result = _choose(evaluation.results, sources)
        if result is not None and result.retained is not None:
            remark = f"of the accuracy of {evaluation.results[0].label}, by {result.label}"
            figures.append(Figure("retained", format_share(result.retained), remark))
    for _, bench in sources.of(Bench)[:1]:
        row = _choose(bench.at(*bench.points[0]), sources)
        if row is not None:
            predicted = row.decode.predicted_speedup
            remark = f"{row.label}, decoding" + (f"; predicted {predicted:.2f}x" if predicted else "")
            figures.append(Figure("speedup", f"{row.decode.speedup.median:.2f}x", remark))
    checks = [check for _, check in sources.of(Check)]
    if checks:
        counts = {
            name: sum(check.count(name) for check in checks) for name in ("passed", "failed", "skipped")
        }
        rest = ", ".join(f"{counts[name]} {name}" for name in ("failed", "skipped"))
        figures.append(Figure("checked claims", f"{counts['passed']} passed", rest))
    return figures


def _of_study(study: StudyResult) -> Iterator[Figure]:
    """Yield what distilled students by influence retain at the least cut, and the number of runs."""
    students = [row for row in study.students if (row.plan, row.training) == ("influence", "distilled")]
    for row in sorted(students, key=lambda row: row.cut)[:1]:
        if row.retained is not None:
            remark = f"of the teacher's accuracy, {format_share(row.overhead_cut)} of its iterations cut, distilled"
            yield Figure("retained", format_share(row.retained.mean), remark)
    seeds = max((len(arm.runs) for arm in study.arms), default=0)
    yield Figure(
        "runs",
        str(study.num_runs),
        f"{seeds} seed{'' if seeds == 1 else 's'} an arm, {len(study.failed)} failed",
    )
