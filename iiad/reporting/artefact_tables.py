"""An artefact of any kind, loaded by what its file says that it is, and as tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from iiad.artefacts import Artefact
from iiad.distillation.signal_record import SignalRecord
from iiad.errors import InputError, shorten
from iiad.evaluation.bench_artefact import Bench
from iiad.evaluation.check_artefact import Check
from iiad.evaluation.quality_artefact import Evaluation
from iiad.files import read_json
from iiad.generation.beam_record import BeamRecord
from iiad.influence.profile import Profile
from iiad.planning import Family, LatencyTable, Plan, Verification
from iiad.planning.trust import assess_trust
from iiad.studies.study_artefact import StudyResult

from .bench_tables import bench_table
from .check_tables import check_table
from .evaluation_tables import evaluation_table
from .latency_tables import latency_table
from .plan_tables import PlanReport, family_table
from .profile_tables import InfluenceReport
from .signal_tables import beams_summary, signals_summary
from .study_tables import study_table
from .verification_tables import VerificationReport

__all__ = ["KINDS", "artefact_table", "load_artefact"]

_TABLES: dict[type[Artefact], Callable[[Any, int, bool], RenderableType]] = {
    Profile: lambda profile, width, details: InfluenceReport(profile, assess_trust(profile), details),
    Plan: lambda plan, width, details: PlanReport(plan, plan.costs()),
    Family: lambda family, width, details: family_table(family),
    Verification: lambda verification, width, details: VerificationReport(verification, details),
    LatencyTable: lambda table, width, details: latency_table(table, width),
    Evaluation: lambda evaluation, width, details: evaluation_table(evaluation, width),
    Bench: lambda bench, width, details: bench_table(bench, width),
    Check: lambda check, width, details: check_table(check),
    StudyResult: lambda result, width, details: study_table(result, width),
    SignalRecord: lambda record, width, details: signals_summary(record),
    BeamRecord: lambda record, width, details: beams_summary(record),
}
KINDS: dict[str, type[Artefact]] = {kind.model_fields["kind"].default: kind for kind in _TABLES}
"""Every kind of artefact that stands by itself."""


def load_artefact(path: str | Path) -> Artefact:
    """Load a file as the artefact that it says it is. Raises InputError as the `load` of its kind."""
    name = read_json(path).get("kind")
    if not isinstance(name, str) or name not in KINDS:
        raise InputError(f"{path}: kind: expected {', '.join(sorted(KINDS))}, got {shorten(name)}")
    return KINDS[name].load(path)


def artefact_table(artefact: Artefact, width: int, details: bool = False) -> RenderableType:
    """Render an artefact on `width` characters. details: all tables and rows."""
    return _TABLES[type(artefact)](artefact, width, details)
