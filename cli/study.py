"""`iiad study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Settings, claim_outputs
from .output import print_result

__all__ = ["study", "write_study_page"]


def study(
    study: Annotated[str, typer.Argument(help="A YAML study, or the name of one that ships with iiad.")],
    output_dir: Annotated[Path | None, typer.Option(help="Folder for all runs and study.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished study.")] = False,
    jobs: Annotated[int, typer.Option(help="Runs at a time, of one thread each.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List runs, tokens, FLOPs and minutes from a measured step.")
    ] = False,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for a picture of the result (PNG, SVG).")] = None,
) -> None:
    """Train arms with several seeds and tuned learning rates, distil students, and compare them with intervals.

    Example:  iiad study depth-s3 --output-dir depth --jobs 2
    """
    from iiad.errors import InputError
    from iiad.reporting.study_tables import estimates_table, study_table
    from iiad.studies.definition import find_study, load_study

    loaded = load_study(study, settings or [])
    if dry_run:
        from iiad.studies.estimates import estimate_runs

        runs = estimate_runs(loaded, jobs)
        print_result({"runs": runs}, lambda width: estimates_table(runs, width))
        return
    if output_dir is None:
        raise InputError("--output-dir: expected a folder, got none")
    if plot is not None:
        from iiad.reporting.pictures import require_pictures

        require_pictures(plot)
    claim_outputs([find_study(study)], folders={"output_dir": output_dir})
    from iiad.studies.conduct import conduct_study

    result = conduct_study(loaded, output_dir, resume=resume, num_processes=jobs)
    print_result(result, lambda width: study_table(result, width))
    write_study_page(output_dir)
    if plot is not None:
        from iiad.progress import print_status
        from iiad.reporting.study_pictures import draw_study

        for path in draw_study(result, plot):
            print_status(f"wrote {path}")


def write_study_page(folder: Path) -> None:
    """Write the page of a study into its folder, anew."""
    from iiad.progress import print_status
    from iiad.reporting.page import PAGE, write_page

    write_page([folder], folder / PAGE)
    print_status(f"wrote {folder / PAGE}")
