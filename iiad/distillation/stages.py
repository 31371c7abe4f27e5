"""`iiad distill`: the stages that turn a teacher and a plan into a student (paper; stage layerwise is ours)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from iiad.planning import Plan
from iiad.planning.costs import compute_cut
from iiad.progress import print_status
from iiad.training.batches import blocks_per_step
from iiad.training.interruption import TimeLimit
from iiad.training.learner import LanguageModelling, Objective
from iiad.training.loop import run_stage
from iiad.training.model_card import model_card
from iiad.training.processes import from_first_process, join_processes
from iiad.training.recipes import DistillRecipe
from iiad.training.requirements import announce
from iiad.training.runs import RunFolder
from iiad.training.sections import STAGES
from iiad.training.stage import RunContext, Stage

from .objectives import LearnFromTeacher, LearnLayers, hidden_layers, needs_signals
from .preparation import Distillation, prepare
from .students import changed_layers, learning_only, require_change
from .teacher_signals import StoredTeacher, Teacher

__all__ = ["distill"]


def distill(
    teacher_folder: str | Path,
    plan_file: str | Path | None,
    recipe: DistillRecipe,
    output_dir: str | Path,
    resume: bool = False,
    max_minutes: float | None = None,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Distil the teacher into a student of the plan; the finished student lies in output_dir, in float32.

    plan_file: None where student.cache_policy or a PCformer's student.predictor_stages say what changes.
    max_minutes: save and raise Unfinished when they are over. on_step: called before each step of a stage with its
    number, from 1. Under torchrun every process calls this.
    Returns the results that the run's record holds: tokens learnt from, the student's cuts and, with validation text,
    nats per token of teacher and student and what is retained. Raises InputError for a teacher, plan, text, signals
    or folder that cannot be used or that do not belong together, and as `run_stage`; up to the first step nothing
    has been written then.
    """
    limit = TimeLimit(max_minutes)
    join_processes()
    announce(recipe.training)
    settings = {
        **recipe.model_dump(mode="json"),
        "teacher": str(teacher_folder),
        "plan": plan_file and str(plan_file),
    }
    plan = None if plan_file is None else Plan.load(plan_file)
    require_change(plan, recipe.student)
    run = RunFolder(output_dir, "distill", settings, resume, blocks_per_step(recipe.training))
    work = prepare(teacher_folder, plan, recipe)
    inputs = {**work.corpora.fingerprints, "teacher": work.identity.fingerprint}
    if plan_file is not None:
        inputs["plan"] = hashlib.sha256(Path(plan_file).read_bytes()).hexdigest()
    if work.stored is not None:
        inputs["signals"] = work.stored.record.fingerprint
    results = work.check_teacher()
    if work.stored is not None and not run.record.inputs:  # once a run: it reads them all
        print_status(f"{recipe.distillation.signals}: comparing hashes")
        from_first_process(work.stored.verify)
    run.begin(inputs)
    context = RunContext(
        run.path,
        recipe.training,
        work.tokenizer,
        lambda model, figures: model_card(model, run.record, figures),
        work.corpora.score,
        limit,
        on_step,
    )
    results["tokens"] = _run_stages(work, context) * work.corpora.block_size
    work.student.requires_grad_(True)
    results |= _results(work, plan)
    run.finish(work.student, work.tokenizer, model_card(work.student, run.record, results), results)
    return results


def _run_stages(work: Distillation, context: RunContext) -> int:
    """Run what is not done yet; returns the blocks learnt from."""
    blocks_seen = 0
    for number, name in enumerate(STAGES):
        if not any(work.needs_teacher(later) for later in STAGES[number:]):
            work.forget_teacher()
        if not getattr(work.recipe.distillation, name).max_steps:
            continue
        steps, stopped = _run_stage(work, context, number, name)
        blocks_seen += steps * blocks_per_step(work.recipe.training)
        if stopped:
            break
    return blocks_seen


def _run_stage(work: Distillation, context: RunContext, number: int, name: str) -> tuple[int, bool]:
    """Steps made, and whether the run is over: enough is retained."""
    section, training = work.recipe.distillation, work.recipe.training
    changed = changed_layers(work.teacher_config, work.student.config)
    objective: Objective = LanguageModelling()
    blocks: Any = work.corpora.blocks
    if name == "layerwise":
        if not changed:
            print_status("layerwise: no layer runs fewer evaluations than the teacher's; left out")
            return 0, False
        if training.torch_compile:
            print_status("layerwise: layers are run one by one, not compiled")
        objective = LearnLayers(work.live_teacher(), changed)
    elif name == "distill":
        teacher = _teacher(work)
        objective = LearnFromTeacher(teacher, section, work.student.config.num_layers)
        blocks = blocks if teacher is None else teacher.blocks(blocks)
    seed = training.seed + number  # the data in another order than the stage before
    with learning_only(work.student, changed) if name == "layerwise" else nullcontext():
        stage = Stage(
            name=name,
            folder=context.folder / f"stage-{number}-{name}",
            blocks=blocks,
            length=getattr(section, name),
            seed=seed,
            objective=objective,
            retain=section.retain,
            teacher=work.teacher_score,
        )
        return run_stage(work.student, stage, context)


def _teacher(work: Distillation) -> Teacher | None:
    """Where the signals of stage distill come from; None where its losses need none."""
    section = work.recipe.distillation
    if not needs_signals(section):
        return None
    if work.stored is None:
        return work.live_teacher()
    return StoredTeacher(work.stored, hidden_layers(section, work.student.config.num_layers))


def _results(work: Distillation, plan: Plan | None) -> dict[str, Any]:
    teacher, student = work.teacher_config, work.student.config
    results: dict[str, Any] = {
        "compute_cut": compute_cut(student.num_evaluations, teacher.num_evaluations),
        "cache_cut": 1 - student.num_hidden_layers / teacher.num_hidden_layers,  # of its slots
    }
    if plan is not None:
        results["overhead_cut"] = plan.overhead_cut
    if work.corpora.score is not None and work.teacher_score is not None:
        score = work.corpora.score(work.student)
        results["teacher_validation_nll"] = work.teacher_score.nll
        results["validation_nll"] = score.nll
        results["retained"] = score.retained(work.teacher_score)
    return results
