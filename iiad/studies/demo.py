"""`iiad demo`: a study of the whole pipeline that fits the minutes, then the students' decoding speed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from iiad.artefacts import Artefact
from iiad.errors import InputError
from iiad.evaluation import Bench, bench_models
from iiad.outputs import lock_folder
from iiad.progress import print_status

from .conduct import RESULT, STUDY, Conduct, claim_folder
from .definition import Study, load_study
from .estimates import estimate_runs
from .study_artefact import StudyResult

__all__ = ["Demo", "fit_steps", "run_demo"]

BENCH = "bench.json"
LEAST_SHARE = 0.6
"""Of the steps: what the lesson was shown with, at three seeds."""
OTHER_WORK = 0.3
"""Time of what is not a step (starting, evaluating, profiling, decoding), as a share of all."""
STEPS = ("training.max_steps", "training.decay_steps", "distillation.distill.max_steps")


@dataclass(frozen=True)
class Demo:
    """The artefacts of a demo. data: its task. minutes: taken by this call."""

    folder: Path
    data: str
    result: StudyResult
    bench: Bench
    minutes: float


def run_demo(
    output_dir: str | Path,
    show: Callable[[Artefact], None],
    minutes: float = 8.0,
    changes: Mapping[str, JsonValue] | None = None,
    repeats: int = 5,
) -> Demo:
    """Run what is not finished of the demo in output_dir: models, profile, plans, students, decoding speed.

    show: called with profile and plans as they are made. minutes: that it may take; steps are scaled to them, down to
    0.6 of the whole. changes: of the study's settings. repeats: of the decoding. Raises InputError for a folder that
    holds other files.
    """
    started = time.monotonic()
    folder = Path(output_dir)
    with lock_folder(folder):
        processes = min(2, os.cpu_count() or 1)
        if (folder / STUDY).exists():
            study = load_study(folder / STUDY)
            print_status(f"{folder}: goes on with the demo that was begun there")
        else:
            study = _change(load_study("demo"), changes or {})
            study = fit_steps(study, minutes, processes)
        claim_folder(folder, study, resume=True)
        conduct = Conduct(study, folder, processes, show)
        result = conduct.run()
        result.save(folder / RESULT)
        if result.failed:
            name, problem = next(iter(result.failed.items()))
            raise InputError(f"{name}: {problem}; see {folder / 'logs'}, then repeat the command")
        print_status("\ndecoding speed, interleaved")
        bench = _bench(conduct, folder, repeats)
    (data,) = study.recipe_of(study.reference).data.train
    return Demo(folder, data, result, bench, (time.monotonic() - started) / 60)


def fit_steps(study: Study, minutes: float, num_processes: int) -> Study:
    """Measure a step of every arm and scale the steps of all runs to the minutes; say how long it will take."""
    print_status("measuring this machine")
    whole = sum(run.minutes for run in estimate_runs(study, num_processes)) / (1 - OTHER_WORK)
    share = min(1.0, max(LEAST_SHARE, minutes / whole))
    if share == 1:
        print_status(f"about {whole:.0f} min")
        return study
    least = ", as fewer would not show the lesson" if share > minutes / whole else ""
    print_status(
        f"about {share * whole:.0f} min: {share:.0%} of the steps (all would take {whole:.0f} min){least}"
    )
    return _change(study, {}, share)


def _change(study: Study, changes: Mapping[str, JsonValue], share: float = 1.0) -> Study:
    """Return the study with other settings and a share of its steps."""
    assert study.students is not None

    def scaled(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: max(1, round(share * value)) if name in STEPS else value for name, value in settings.items()
        }

    own = scaled(
        {**study.settings, **{name: changes[name] for name in changes if not name.startswith("students.")}}
    )
    theirs = {
        name.removeprefix("students."): changes[name] for name in changes if name.startswith("students.")
    }
    students = study.students.model_copy(update={"settings": scaled({**study.students.settings, **theirs})})
    return study.model_copy(update={"settings": own, "students": students})


def _bench(conduct: Conduct, folder: Path, repeats: int) -> Bench:
    """Measure or load the decoding speed of the teacher, the other arms and the distilled students."""
    path = folder / BENCH
    if path.exists():
        return Bench.load(path)
    models = [model for model in conduct.models if model.cut is None or model.training == "distilled"]
    models.sort(key=lambda model: model.arm != "teacher" or model.cut is not None)
    bench = bench_models([model.run for model in models], prompt_tokens=4, new_tokens=8, repeats=repeats)
    bench.save(path)
    return bench
