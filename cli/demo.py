"""`iiad demo`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import print_result
from .study import write_study_page

if TYPE_CHECKING:
    from iiad.artefacts import Artefact

__all__ = ["demo"]


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for all outputs.")] = Path("demo-output"),
    minutes: Annotated[
        float,
        typer.Option(help="Scale the steps to them, not below what it needs."),
    ] = 8.0,
) -> None:
    """Run the whole pipeline on a task that needs depth; takes minutes on two CPU cores.

    Runs that are finished in the folder do not run again: after Ctrl-C, repeat the command.

    Example:  iiad demo --output-dir demo-output
    """
    from iiad.influence import Profile
    from iiad.planning import Plan, trade_off
    from iiad.planning.trust import assess_trust
    from iiad.progress import print_status
    from iiad.reporting.demo_tables import demo_report, next_steps
    from iiad.reporting.plan_tables import CurveReport
    from iiad.reporting.profile_tables import InfluenceReport
    from iiad.reporting.study_pictures import draw_study
    from iiad.studies.demo import run_demo

    def show(artefact: Artefact) -> None:
        if isinstance(artefact, Plan):
            print_status(f"plan: iterations per layer {artefact.num_iterations}")
        elif isinstance(artefact, Profile):
            print_result(artefact, lambda width: InfluenceReport(artefact, assess_trust(artefact)))
            curve = trade_off(artefact)
            print_result({"kind": "curve", **vars(curve)}, lambda width: CurveReport(curve))

    made = run_demo(output_dir, show, minutes)
    print_result(made.result, lambda width: demo_report(made.result, made.bench, width))
    if find_spec("matplotlib"):
        for path in draw_study(made.result, output_dir / "pictures"):
            print_status(f"wrote {path}")
    write_study_page(made.folder)
    print_status(next_steps(made.folder, made.minutes, made.data))
