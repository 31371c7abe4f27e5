"""`iiad plan`: from a profile and a threshold to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["plan"]


def plan(
    profile: Annotated[Path, typer.Argument(help="A profile, as `iiad profile` writes it.")],
    threshold: Annotated[
        float,
        typer.Option(
            help="The influence that an iteration must reach, in the metric's unit; 0 keeps the teacher."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The plan to write (JSON).")],
    metric: Annotated[str, typer.Option(help="The metric of the profile to go by.")] = "kl",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Drop each layer's last iterations whose influence is below a threshold.

    No model is loaded: another threshold takes a second.

    Example:  iiad plan profile.json --threshold 0.01 --output plan.json
    """
    from rich.console import Console

    from iiad.artefacts import require_new_file
    from iiad.influence import Profile
    from iiad.planning import plan_by_threshold
    from iiad.reporting.planning import PlanReport
    from iiad.reporting.progress import say

    require_new_file(output, overwrite)
    made = plan_by_threshold(Profile.load(profile), threshold, metric)
    made.save(output)
    Console().print(PlanReport(made))
    say(f"plan written to {output}")
