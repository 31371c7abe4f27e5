"""`iiad demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from iiad.artefacts import Artefact

__all__ = ["demo"]


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        "demo-output"
    ),
) -> None:
    """Run the whole pipeline on the source text of Python's standard library, in some minutes on two CPU cores.

    What is finished in the folder is not run again: after Ctrl-C, call it once more.

    Example:  iiad demo --output-dir demo-output
    """
    from rich.console import Console

    from iiad.demo import run_demo
    from iiad.influence import Profile
    from iiad.planning import Plan
    from iiad.reporting.demo_tables import demo_report, next_steps
    from iiad.reporting.plan_tables import PlanReport
    from iiad.reporting.profile_tables import InfluenceReport

    console = Console()

    def show(artefact: Artefact) -> None:
        if isinstance(artefact, Plan):
            console.print(PlanReport(artefact))
        elif isinstance(artefact, Profile):
            console.print(InfluenceReport(artefact))

    made = run_demo(output_dir, show)
    console.print(demo_report(made, console.width))
    print(next_steps(made))
