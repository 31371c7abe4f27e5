"""`iiad show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["show"]


def show(
    files: Annotated[
        list[Path], typer.Argument(help="Profiles, plans and other JSON files that iiad wrote.")
    ],
) -> None:
    """Print profiles, plans, latency tables, verifications, evaluations, benches, checks and signals.

    Example:  iiad show profile.json plan.json
    """
    from rich.console import Console

    console = Console()
    for report in [_report(file, console.width) for file in files]:
        console.print(report)


def _report(path: Path, width: int) -> RenderableType:
    """Load a file as the artefact that it names, and report it. Raises InputError for a file of another kind."""
    from iiad.distillation.signal_record import SignalRecord
    from iiad.errors import InputError
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
        Profile: lambda profile: InfluenceReport(profile, assess_trust(profile)),
        Plan: lambda plan: PlanReport(plan, plan.costs()),
        Verification: VerificationReport,
        LatencyTable: lambda table: latency_table(table, width),
        Evaluation: lambda evaluation: evaluation_table(evaluation, width),
        Bench: lambda bench: bench_table(bench, width),
        Check: check_table,
        SignalRecord: signals_summary,
    }
    kinds = {kind.model_fields["kind"].default: kind for kind in reports}
    name = read_json(path).get("kind")
    if name not in kinds:
        raise InputError(f"{path}: kind: expected {', '.join(sorted(kinds))}, got {name!r}")
    kind = kinds[name]
    return reports[kind](kind.load(path))
