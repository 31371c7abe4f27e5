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
        list[Path],
        typer.Argument(
            help="JSON files that iiad wrote; folders of runs, models, signals, beams or studies."
        ),
    ],
    details: Details = False,
) -> None:
    """Print artefacts; of a run's folder, where it is: step, loss, time left, and whether it runs now.

    Example:  iiad show profile.json plan.json

    Example:  iiad show teacher
    """
    places = [path.parent if path.name == "run.json" else path for path in paths]
    for found, report in [
        load_folder(path) if path.is_dir() else load_report(path, details) for path in places
    ]:
        print_result(found, report)


def load_folder(folder: Path) -> tuple[Any, Callable[[int], RenderableType]]:
    """Read what a folder holds; return it and its report. Raises InputError for a folder that is none of iiad's."""
    from iiad.checkpoints.summary import summarize_model
    from iiad.distillation.signal_record import JOURNAL, read_record
    from iiad.distillation.signal_record import RECORD as SIGNALS
    from iiad.errors import InputError
    from iiad.generation.beam_record import BEAMS
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
    for name in ("study.json", BEAMS):
        if (folder / name).exists():
            return load_report(folder / name)
    if (folder / "config.json").exists():
        model = summarize_model(folder)
        return model, lambda width: describe_model(model)
    known = f"{RECORD}, config.json, {SIGNALS}, study.json or {BEAMS}"
    raise InputError(f"{folder}: expected a folder with {known}, got none of them")


def load_report(path: Path, details: bool = False) -> tuple[Any, Callable[[int], RenderableType]]:
    """Load a file as the artefact that it names; return it and its report. Raises InputError for another kind."""
    from iiad.reporting.artefact_tables import artefact_table, load_artefact

    artefact = load_artefact(path)
    return artefact, lambda width: artefact_table(artefact, width, details)
