"""`iiad show`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Details
from .output import print_result

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["load_report", "show"]


def show(
    paths: Annotated[
        list[Path], typer.Argument(help="JSON files that iiad wrote; folders of runs, models or signals.")
    ],
    details: Details = False,
) -> None:
    """Print artefacts; of a run's folder, where it is: step, loss, time left, and whether it runs now.

    Example:  iiad show profile.json plan.json

    Example:  iiad show teacher
    """
    places = [path.parent if path.name == "run.json" else path for path in paths]
    places = [path.parent if path.name == "run.json" else path for path in paths]
    for found, report in [
        load_folder(path) if path.is_dir() else load_report(path, details) for path in places
    ]:
        print_result(found, report)


def load_folder(folder: Path) -> tuple[Any, Callable[[int], RenderableType]]:
    """Read the state of a run, model or signals; return it and its report. Raises InputError for another folder."""
    from iiad.checkpoints.summary import summarize_model
    from iiad.distillation.signal_record import JOURNAL, read_record
    from iiad.distillation.signal_record import RECORD as SIGNALS
    from iiad.errors import InputError
    from iiad.outputs import find_holder
    from iiad.reporting.folder_tables import describe_model, describe_run, describe_state
    from iiad.reporting.signal_tables import signals_summary
    from iiad.training.run_record import RECORD
    from iiad.training.run_status import read_run

    if (folder / RECORD).exists():
        run = read_run(folder)
        return run, lambda width: describe_run(run)
    if (folder / SIGNALS).exists() or (folder / JOURNAL).exists():
        record, finished = read_record(folder), (folder / SIGNALS).exists()
        state = describe_state(finished, find_holder(folder))
        return {"kind": "signals status", "state": state, "signals": record}, lambda width: signals_summary(
            record, f"{folder}: {state}"
        )
    if (folder / "study.json").exists():
        return load_report(folder / "study.json")
    if (folder / "config.json").exists():
        model = summarize_model(folder)
        return model, lambda width: describe_model(model)
    raise InputError(f"{folder}: expected a folder with {RECORD}, config.json or {SIGNALS}, got none of them")


def load_report(path: Path, details: bool = False) -> tuple[Any, Callable[[int], RenderableType]]:
    """Load a file as the artefact that it names; return it and its report. Raises InputError for another kind."""
    from iiad.distillation.signal_record import SignalRecord
    from iiad.errors import InputError, shorten
    from iiad.evaluation import Bench, Check, Evaluation
    from iiad.files import read_json
    from iiad.influence.profile import Profile
    from iiad.planning import LatencyTable, Plan, Verification
    from iiad.planning.trust import assess_trust
    from iiad.reporting.bench_tables import bench_table
    from iiad.reporting.check_tables import check_table
    from iiad.reporting.evaluation_tables import evaluation_table
    from iiad.reporting.latency_tables import latency_table
    from iiad.reporting.plan_tables import PlanReport
    from iiad.reporting.profile_tables import InfluenceReport
    from iiad.reporting.signal_tables import signals_summary
    from iiad.reporting.study_tables import study_table
    from iiad.reporting.verification_tables import VerificationReport
    from iiad.studies.study_artefact import StudyResult

    reports: dict[Any, Any] = {
        Profile: lambda profile, width: InfluenceReport(profile, assess_trust(profile), details),
        Plan: lambda plan, width: PlanReport(plan, plan.costs()),
        Verification: lambda verification, width: VerificationReport(verification, details),
        LatencyTable: latency_table,
        Evaluation: evaluation_table,
        Bench: bench_table,
        Check: lambda check, width: check_table(check),
        StudyResult: study_table,
        SignalRecord: lambda record, width: signals_summary(record),
    }
    kinds = {kind.model_fields["kind"].default: kind for kind in reports}
    name = read_json(path).get("kind")
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"{path}: kind: expected {', '.join(sorted(kinds))}, got {shorten(name)}")
    artefact = kinds[name].load(path)
    return artefact, lambda width: reports[kinds[name]](artefact, width)
