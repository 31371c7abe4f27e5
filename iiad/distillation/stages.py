"""`iiad distill`: stages that turn a teacher and a plan into a student (paper; stage layerwise is ours)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from iiad.files import file_sha256
from iiad.planning.costs import compute_cut
from iiad.planning.family import read_budget
from iiad.planning.plan import Plan
from iiad.progress import print_status
from iiad.training.batches import tokens_per_step
from iiad.training.distillation_sections import STAGES
from iiad.training.interruption import Interruption
from iiad.training.learner import LanguageModelling, Objective
from iiad.training.loop import run_stage
from iiad.training.processes import from_first_process, join_processes, lock_run
from iiad.training.recipes import DistillRecipe
from iiad.training.requirements import fit_recipe
from iiad.training.rewriting import Rewriting
from iiad.training.runs import RunFolder
from iiad.training.stage import RunContext, Stage
from iiad.training.turns import NestedPlans

from .elastic import describe_plans, elastic_objective, give_plans, report_cost
from .objectives import LearnFromTeacher, LearnLayers
from .preparation import Distillation
from .students import changed_layers, learning_only

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

    plan_file: of a plan or, for an elastic student, of a family; None where the recipe's cuts, student.cache_policy
    or a PCformer's student.predictor_stages say what changes.
    max_minutes: save and raise Unfinished when they are over. on_step: called before each step of a stage with its
    number, from 1. Under torchrun every process calls this.
    Returns the results that the run's record holds: tokens learnt from, the student's cuts and, with validation text,
    nats per token of teacher and student and what is retained. Raises InputError for a teacher, plan, text, signals
    or folder that cannot be used or that do not belong together, and as `run_stage`; up to the first step nothing
    has been written then.
    """
    interruption = Interruption(max_minutes)
    join_processes()
    recipe = fit_recipe(recipe, output_dir)
    training = recipe.training
    budget = read_budget(plan_file)
    given = {"teacher": str(teacher_folder), "plan": None if plan_file is None else str(plan_file)}
    with lock_run(output_dir):
        run = RunFolder(output_dir, "distill", recipe, resume, given)
        work = Distillation(teacher_folder, budget, recipe)
        inputs = {**work.corpora.fingerprints, "teacher": work.identity.fingerprint}
        if plan_file is not None:
            inputs["plan"] = file_sha256(plan_file)
        if work.stored is not None:
            inputs["signals"] = work.stored.record.fingerprint
        results: dict[str, Any] = {**work.check_teacher()}
        if work.stored is not None:
            print_status(f"{recipe.distillation.signals}: comparing hashes")
            from_first_process(work.stored.verify)
        run.begin(inputs)
        score = work.corpora.score
        context = RunContext(
            run.path, run.record.identity, training, work.tokenizer, run.card, score, interruption, on_step
        )
        if isinstance(work.turns, NestedPlans):
            results |= report_cost(work.turns, work.student.config, training.seed)
        results["tokens"] = _run_stages(work, context) * tokens_per_step(work.corpora.blocks, training)
        work.student.requires_grad_(True)
        results |= _measure_results(work, budget if isinstance(budget, Plan) else None)
        run.finish(work.student, work.tokenizer, results)
        return results


def _run_stages(work: Distillation, context: RunContext) -> int:
    """Run the stages that are not done yet, in order, until enough is retained; return the steps of all."""
    teachers, all_steps = work.take_teachers(), 0
    changed = changed_layers(work.teacher_config, work.student.config)
    for name in work.recipe.distillation.stages():
        teacher = teachers.pop(name, None)
        if name == "layerwise" and not changed:
            print_status("layerwise: no layer runs fewer evaluations than the teacher's; left out")
            continue
        stage = _make_stage(work, name, teacher, changed, context.folder)
        with learning_only(work.student, changed) if name == "layerwise" else nullcontext():
            state = run_stage(work.student, stage, context)
        all_steps += state.step
        if state.stopped:
            break
    return all_steps


def _make_stage(work: Distillation, name: str, teacher: Any, changed: list[int], folder: Path) -> Stage:
    section, training, number = work.recipe.distillation, work.recipe.training, STAGES.index(name)
    objective: Objective = LanguageModelling()
    if name == "layerwise":
        objective = LearnLayers(teacher, changed)
        if training.torch_compile:
            print_status("layerwise: layers are run one by one, not compiled")
    elif name in ("distill", "onpolicy"):
        objective = LearnFromTeacher(teacher, section, work.teacher_config.num_layers)
    if isinstance(work.turns, NestedPlans):
        objective = elastic_objective(objective, work.turns, section, work.teacher_config.num_layers)
    return Stage(
        name=name,
        folder=folder / f"stage-{number}-{name}",
        blocks=work.corpora.blocks if teacher is None else teacher.blocks(work.corpora.blocks),
        length=getattr(section, name),
        seed=training.seed + number,  # the data in another order than the stage before
        objective=objective,
        turns=work.turns,
        rewriting=work.rewriting if name == "onpolicy" else Rewriting(),
        share=getattr(section, name).max_steps / sum(stage.max_steps for stage in section.stages().values()),
        retain=section.retain,
        teacher=work.teacher_score,
    )


def _measure_results(work: Distillation, plan: Plan | None) -> dict[str, Any]:
    teacher, student = work.teacher_config, work.student.config
    results: dict[str, Any] = {
        "compute_cut": compute_cut(student.num_evaluations, teacher.num_evaluations),
        "cache_cut": 1 - student.num_hidden_layers / teacher.num_hidden_layers,  # of its slots
    }
    if plan is not None:
        results["overhead_cut"] = plan.overhead_cut
    if work.corpora.score is not None and work.teacher_score is not None:
        score_model = work.corpora.score
        scores = work.turns.score(work.student, lambda model: score_model(model, "validation"))
        score = next(iter(scores.values()))  # of the largest plan
        results["teacher_validation_nll"] = work.teacher_score.nll
        results["validation_nll"] = score.nll
        results["retained"] = score.retained(work.teacher_score)
        if work.family is not None:
            give_plans(work.student, work.family, scores)
            results["plans"] = describe_plans(work.family, scores, work.teacher_score)
    return results
