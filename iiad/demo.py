"""`iiad demo`: the whole pipeline on a small text, in the order of the README.

Every stage leaves its output in the folder; a stage that is finished there does not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .artefacts import Artefact
from .distillation import distill
from .errors import InputError
from .evaluation import Bench, Evaluation, bench_models, evaluate_models
from .influence import Profile, measure_influence
from .outputs import lock_folder
from .planning import Plan, choose_threshold, plan_by_threshold, threshold_curve
from .progress import print_status
from .training import DistillRecipe, RunRecord, TrainRecipe, load_recipe, train
from .training.precision import decide_bf16

__all__ = ["Demo", "DemoSize", "run_demo"]

MODELS = {
    "transformer": ["model.solver=transformer"],
    "iiet-r0": ["model.num_iterations=0"],
    "teacher": [],
}
"""The models trained from scratch, and what each changes in the recipe `demo`."""

OUTPUTS = [*MODELS, "profile.json", "plan.json", "student", "evaluation.json", "bench.json"]

Kind = TypeVar("Kind", bound=Artefact)


@dataclass(frozen=True)
class DemoSize:
    """Text and sizes of a demo. train, distill: recipe changes, SECTION.FIELD=VALUE. Counts are in tokens."""

    text: tuple[str, ...] = ("stdlib",)
    train: tuple[str, ...] = ()
    distill: tuple[str, ...] = ()
    calibration_tokens: int = 16384
    evaluation_tokens: int | None = None
    prompt_tokens: int = 128
    new_tokens: int = 64
    repeats: int = 5


@dataclass(frozen=True)
class Demo:
    """The artefacts of a demo, and why its threshold was chosen.

    tokens: how many each model learned from, the student's teacher included. minutes: taken by this call.
    """

    folder: Path
    profile: Profile
    plan: Plan
    explanation: str
    evaluation: Evaluation
    bench: Bench
    tokens: dict[str, int]
    minutes: float


def run_demo(output_dir: str | Path, show: Callable[[Artefact], None], size: DemoSize | None = None) -> Demo:
    """Run the stages of the pipeline that are not finished in output_dir.

    show: called with profile and plan as soon as they exist. Raises InputError for a folder that holds other files.
    """
    with lock_folder(output_dir):
        return _run_stages(_require_own(Path(output_dir)), show, size or DemoSize())


def _run_stages(folder: Path, show: Callable[[Artefact], None], size: DemoSize) -> Demo:
    started = time.monotonic()
    teacher, student, plan_file = folder / "teacher", folder / "student", folder / "plan.json"
    print_status(f"output folder: {folder}")
    fast = decide_bf16("auto", folder / next(iter(MODELS)))  # once, for all models
    bf16 = f"training.bf16={str(fast).lower()}"

    tokens = {}
    for number, (name, changes) in enumerate(MODELS.items(), 1):
        _begin(number, f"train {name}")
        recipe = load_recipe(TrainRecipe, "demo", [*changes, bf16, *size.train])
        tokens[name] = _run_once(train, folder / name, recipe)["tokens"]

    _begin(4, "profile the teacher: how much does each iteration contribute?")
    profile = _make_once(
        Profile,
        folder / "profile.json",
        lambda: measure_influence(
            teacher, size.text, metrics=["kl", "cosine"], max_tokens=size.calibration_tokens
        ),
    )
    show(profile)

    _begin(5, "plan: the knee of the trade-off curve")
    threshold, explanation = choose_threshold(threshold_curve(profile))
    plan = _make_once(Plan, plan_file, lambda: plan_by_threshold(profile, threshold))
    print_status(explanation)
    show(plan)

    _begin(6, "distil the teacher into a student under that plan")
    lesson = load_recipe(DistillRecipe, "demo-distill", [bf16, *size.distill])
    learned = _run_once(distill, student, teacher, plan_file, lesson)["tokens"]
    tokens["student"] = tokens["teacher"] + learned

    models = [teacher, folder / "transformer", folder / "iiet-r0", student]
    _begin(7, "evaluate all models on the validation text")
    evaluation = _make_once(
        Evaluation,
        folder / "evaluation.json",
        lambda: evaluate_models(
            models,
            size.text,
            plan=plan,
            block_size=lesson.data.block_size,
            max_tokens=size.evaluation_tokens,
            dtype="bfloat16" if fast else "float32",
        ),
    )
    _begin(8, "measure their decoding speed, interleaved")
    bench = _make_once(
        Bench,
        folder / "bench.json",
        lambda: bench_models(
            models,
            plan=plan,
            prompt_tokens=size.prompt_tokens,
            new_tokens=size.new_tokens,
            repeats=size.repeats,
        ),
    )
    minutes = (time.monotonic() - started) / 60
    return Demo(folder, profile, plan, explanation, evaluation, bench, tokens, minutes)


def _require_own(folder: Path) -> Path:
    """Return the folder. Raises InputError for one that holds anything but a demo's outputs."""
    for name in sorted(path.name for path in folder.iterdir()):
        if name not in OUTPUTS and not name.startswith("."):
            raise InputError(f"{folder}: holds other files than a demo's ({name}); name another folder")
    return folder


def _begin(number: int, title: str) -> None:
    print_status(f"\n[{number}/8] {title}")


def _run_once(run: Callable[..., dict[str, Any]], folder: Path, *arguments: Any) -> dict[str, Any]:
    """Return the results of a training run, started or resumed unless it is finished."""
    begun = (folder / "run.json").exists()
    record = RunRecord.load(folder / "run.json") if begun else None
    if record is not None and record.finished:
        print_status(f"{folder}: finished; not run again")
        return record.results
    return run(*arguments, folder, resume=begun)


def _make_once(kind: type[Kind], path: Path, make: Callable[[], Kind]) -> Kind:
    """Return the artefact in a file, made and saved unless it is there."""
    if path.exists():
        try:
            found = kind.load(path)
        except InputError as error:
            raise InputError(f"{error}; delete the file to make it again") from None
        print_status(f"{path}: exists; not made again")
        return found
    made = make()
    made.save(path)
    return made
