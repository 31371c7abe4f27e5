"""`iiad show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from iiad.artefacts import Artefact

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
    for artefact in [_load(file) for file in files]:
        console.print(_report(artefact, console.width))


def _load(path: Path) -> Artefact:
    """Load a file as the artefact that it names. Raises InputError for a file of another kind."""
    from iiad.distillation.signal_record import SignalRecord
    from iiad.errors import InputError
    from iiad.evaluation import Bench, Check, Evaluation
    from iiad.files import read_json
    from iiad.influence.profile import Profile
    from iiad.planning import LatencyTable, Plan, Verification

    kinds: dict[str, type[Artefact]] = {
        kind.model_fields["kind"].default: kind
        for kind in (Profile, Plan, LatencyTable, Verification, Evaluation, Bench, Check, SignalRecord)
    }
    kind = read_json(path).get("kind")
    if kind not in kinds:
        raise InputError(f"{path}: kind: expected {', '.join(sorted(kinds))}, got {kind!r}")
    return kinds[kind].load(path)


def _report(artefact: Any, width: int) -> RenderableType:
    from iiad.planning.trust import assess_trust
    from iiad.reporting import bench_tables as benchmark
    from iiad.reporting import check_tables as checking
    from iiad.reporting import evaluation_tables as evaluation
    from iiad.reporting import latency_tables as latency
    from iiad.reporting import plan_tables as planning
    from iiad.reporting import profile_tables as influence
    from iiad.reporting import signal_tables as signals
    from iiad.reporting import verification_tables as verification

    reports: dict[str, Callable[[], RenderableType]] = {
        "profile": lambda: influence.InfluenceReport(artefact, assess_trust(artefact)),
        "plan": lambda: planning.PlanReport(artefact, artefact.costs()),
        "verification": lambda: verification.VerificationReport(artefact),
        "latency": lambda: latency.latency_table(artefact, width),
        "evaluation": lambda: evaluation.evaluation_table(artefact, width),
        "bench": lambda: benchmark.bench_table(artefact, width),
        "check": lambda: checking.check_table(artefact),
        "signals": lambda: signals.signals_summary(artefact),
    }
    return reports[artefact.kind]()
