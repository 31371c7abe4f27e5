"""`iiad demo`: the whole pipeline on the embedded corpus, small enough for a CPU, with its numbers as they come.

train (Transformer, IIET without iterations, IIET teacher) -> profile -> plan -> distil -> evaluate and bench.
Every stage leaves its output in the folder; a stage that is finished there is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from .artefacts import Artefact
from .distillation import distill
from .errors import InputError
from .evaluation import Evaluation, evaluate_models
from .evaluation.bench_artefact import Bench
from .evaluation.speed import bench_models
from .influence import Profile, measure_influence
from .planning import Plan, choose_threshold, plan_by_threshold, threshold_curve
from .progress import print_status
from .training import DistillRecipe, RunRecord, TrainRecipe, load_recipe, train

__all__ = ["Demo", "run_demo"]

# What each model is trained with besides the demo recipe, and its share of the demo's time.
MODELS: dict[str, tuple[list[str], float]] = {
    "transformer": (["model.solver=transformer"], 0.16),
    "iiet-r0": (["model.num_iterations=0"], 0.16),
    "teacher": ([], 0.36),
}
SHARES = {"profile": 0.04, "distill": 0.13, "evaluate": 0.09, "bench": 0.06}
OUTPUTS = [*MODELS, "profile.json", "plan.json", "student", "evaluation.json", "bench.json"]
CALIBRATION_TOKENS = 16384

Kind = TypeVar("Kind", bound=Artefact)


@dataclass(frozen=True)
class Demo:
    """What the demo made, and why it took the threshold that it took.

    tokens: how many each model learnt from, its teacher's included. minutes: that this call took.
    """

    folder: Path
    profile: Profile
    plan: Plan
    explanation: str
    evaluation: Evaluation
    bench: Bench
    tokens: dict[str, int]
    minutes: float


@dataclass
class _Clock:
    """Time left, from the shares of the stages that are done."""

    started: float = field(default_factory=time.monotonic)
    worked: float = 0.0
    done: float = 0.0
    stage: int = 0

    def begin(self, title: str) -> None:
        self.stage += 1
        left = ""
        if self.worked:
            left = f" (about {(1 - self.done) * self.minutes / self.worked:.1f} minutes left in all)"
        print_status(f"\n[{self.stage}/{len(MODELS) + len(SHARES)}] {title}{left}")

    def end(self, share: float, ran: bool) -> None:
        self.done += share
        self.worked += share if ran else 0.0

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60


def run_demo(output_dir: str | Path, show: Callable[[Artefact], None]) -> Demo:
    """Run in output_dir what is not finished there yet of the pipeline.

    show: called with profile and plan as soon as they are there.
    Raises InputError for a folder that holds anything but a demo.
    """
    folder = Path(output_dir)
    _require_demo_folder(folder)
    bf16 = _bf16_as_before(folder)
    dtype = "bfloat16" if bf16 else "float32"
    print_status(f"everything goes to {folder}; matrix products are done in {dtype}, the faster one here")
    common = [f"training.bf16={str(bf16).lower()}"]
    clock, tokens = _Clock(), {}
    for name, (changes, share) in MODELS.items():
        clock.begin(f"train {name}")
        recipe = load_recipe(TrainRecipe, "demo", [*changes, *common])
        results, ran = _unless_finished(folder / name, partial(train, recipe))
        tokens[name] = results["tokens"]
        clock.end(share, ran)

    clock.begin("profile the teacher: what does each iteration contribute?")
    profile, ran = _kept(
        Profile,
        folder / "profile.json",
        lambda: measure_influence(
            folder / "teacher", ["stdlib"], metrics=["kl", "cosine"], max_tokens=CALIBRATION_TOKENS
        ),
    )
    clock.end(SHARES["profile"], ran)
    show(profile)
    threshold, explanation = choose_threshold(threshold_curve(profile))
    plan, _ = _kept(Plan, folder / "plan.json", lambda: plan_by_threshold(profile, threshold))
    print_status(explanation)
    show(plan)

    clock.begin("distil the teacher into a student of that plan")
    student = load_recipe(DistillRecipe, "demo-distill", common)
    teacher, plan_file = folder / "teacher", folder / "plan.json"
    results, ran = _unless_finished(folder / "student", partial(distill, teacher, plan_file, student))
    tokens["student"] = tokens["teacher"] + results["tokens"]
    clock.end(SHARES["distill"], ran)

    models = [folder / name for name in ("teacher", "transformer", "iiet-r0", "student")]
    clock.begin("evaluate all models on the validation split")
    evaluation, ran = _kept(
        Evaluation,
        folder / "evaluation.json",
        lambda: evaluate_models(
            models, ["stdlib"], plan=plan, block_size=student.data.block_size, dtype=dtype
        ),
    )
    clock.end(SHARES["evaluate"], ran)
    clock.begin("time their decoding, in turns")
    bench, ran = _kept(Bench, folder / "bench.json", lambda: bench_models(models, plan=plan))
    clock.end(SHARES["bench"], ran)
    return Demo(folder, profile, plan, explanation, evaluation, bench, tokens, clock.minutes)


def bf16_is_faster() -> bool:
    """Whether a matrix product is faster in bfloat16 than in float32 on this machine: measured, some 50 ms."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype, device=device)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            (matrix @ matrix)[0, 0].item()
            best = min(best, time.perf_counter() - started)
        return best

    return seconds(torch.bfloat16) < seconds(torch.float32)


def _bf16_as_before(folder: Path) -> bool:
    """What the demo in this folder began with; where there is none, what is faster here."""
    record = folder / next(iter(MODELS)) / "run.json"
    if not record.exists():
        return bf16_is_faster()
    training = RunRecord.load(record).settings["training"]
    assert isinstance(training, dict)
    return bool(training["bf16"])


def _require_demo_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder")
    strange = (
        sorted(path.name for path in folder.iterdir() if path.name not in OUTPUTS and path.name[0] != ".")
        if folder.exists()
        else []
    )
    if strange:
        raise InputError(f"{folder}: holds other things than a demo ({strange[0]}); name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None


def _unless_finished(folder: Path, make: Callable[..., dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """The results of a run, and whether it had to be run, or gone on with."""
    begun = (folder / "run.json").exists()
    if begun:
        record = RunRecord.load(folder / "run.json")
        if record.finished:
            print_status(f"{folder}: finished before; not run again")
            return record.results, False
    return make(folder, resume=begun), True


def _kept(kind: type[Kind], path: Path, make: Callable[[], Kind]) -> tuple[Kind, bool]:
    """The artefact of that file, made and written if it is not there, and whether it had to be made."""
    if path.exists():
        try:
            kept = kind.load(path)
        except InputError as error:
            raise InputError(f"{error}; delete the file to have it made again") from None
        print_status(f"{path}: made before; not made again")
        return kept, False
    made = make()
    made.save(path)
    return made, True
