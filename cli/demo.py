"""`iiad demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import print_result

if TYPE_CHECKING:
    from iiad.artefacts import Artefact

__all__ = ["demo"]


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for all outputs.")] = Path("demo-output"),
) -> None:
    """Run the whole pipeline on the source of Python's standard library; takes minutes on two CPU cores.

    Stages that are finished in the folder do not run again: after Ctrl-C, repeat the command.

    Example:  iiad demo --output-dir demo-output
    """
    from iiad.demo import run_demo
    from iiad.influence import Profile
    from iiad.planning import Plan
    from iiad.planning.trust import assess_trust
    from iiad.progress import print_status
    from iiad.reporting.demo_tables import demo_report, next_steps
    from iiad.reporting.plan_tables import PlanReport
    from iiad.reporting.profile_tables import InfluenceReport

    def show(artefact: Artefact) -> None:
        if isinstance(artefact, Plan):
            print_result(artefact, lambda width: PlanReport(artefact, artefact.costs()))
        elif isinstance(artefact, Profile):
            print_result(artefact, lambda width: InfluenceReport(artefact, assess_trust(artefact)))

    made = run_demo(output_dir, show)
    print_result(
        {"evaluation": made.evaluation, "bench": made.bench, "tokens": made.tokens},
        lambda width: demo_report(made.evaluation, made.bench, made.tokens, width),
    )
    print_status(next_steps(made.folder, made.minutes))
