"""`iiad show`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import print_result

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["load_report", "show"]


def show(
    files: Annotated[
        list[Path], typer.Argument(help="Profiles, plans and other JSON files that iiad wrote.")
    ],
) -> None:
    """Print profiles, plans, latency tables, verifications, evaluations, benches, checks and signals.

    Example:  iiad show profile.json plan.json
    """
    for artefact, show_artefact in [load_report(file) for file in files]:
        print_result(artefact, show_artefact)


def load_report(path: Path) -> tuple[Any, Callable[[int], RenderableType]]:
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
    from iiad.reporting.verification_tables import VerificationReport

    reports: dict[Any, Any] = {
        Profile: lambda profile, width: InfluenceReport(profile, assess_trust(profile)),
        Plan: lambda plan, width: PlanReport(plan, plan.costs()),
        Verification: lambda verification, width: VerificationReport(verification),
        LatencyTable: latency_table,
        Evaluation: evaluation_table,
        Bench: bench_table,
        Check: lambda check, width: check_table(check),
        SignalRecord: lambda record, width: signals_summary(record),
    }
    kinds = {kind.model_fields["kind"].default: kind for kind in reports}
    name = read_json(path).get("kind")
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"{path}: kind: expected {', '.join(sorted(kinds))}, got {shorten(name)}")
    artefact = kinds[name].load(path)
    return artefact, lambda width: reports[kinds[name]](artefact, width)
