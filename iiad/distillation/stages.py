"""`iiad distill`: the stages that turn a teacher and a plan into a student (paper; stage layerwise is ours)."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed

from iiad.artefacts import ModelIdentity
from iiad.data import evaluation_windows, load_tokenizer
from iiad.errors import InputError
from iiad.evaluation import TokenScore, evaluate_model
from iiad.evaluation.baselines import naive_scores
from iiad.loading import choose_device, load_identified
from iiad.planning import Plan, check_plan
from iiad.recipes import STAGES, DistillRecipe
from iiad.reporting.progress import say
from iiad.signals import StoredSignals
from iiad.training.engine import RunContext, blocks_per_step, check_stage, run_stage
from iiad.training.interruption import TimeLimit
from iiad.training.learner import LanguageModelling, Objective
from iiad.training.model_card import model_card
from iiad.training.processes import join_processes, num_processes
from iiad.training.runs import RunFolder
from iiad.training.teacher import Corpora

from .objectives import LearnFromTeacher, LearnLayers, hidden_layers
from .students import changed_layers, freeze_unused, learning_only, make_student, student_changes
from .teachers import LiveTeacher, StoredTeacher, Teacher

__all__ = ["distill"]

CHECK_TOKENS = 1 << 15
"""Of the training text, to measure the teacher on where there is no validation text."""


@dataclass
class _Distillation:
    """All that the stages need, loaded and found to fit."""

    recipe: DistillRecipe
    teacher: PreTrainedModel | None
    teacher_config: Any
    identity: ModelIdentity
    student: PreTrainedModel
    corpora: Corpora
    stored: StoredSignals | None
    teacher_score: TokenScore | None = None

    def teachers(self) -> tuple[Teacher | None, LiveTeacher | None]:
        """Where signals for stage distill come from, and the live model that stage layerwise needs.

        The model goes with it: where nobody learns from it any more, it is freed.
        """
        section, training = self.recipe.distillation, self.recipe.training
        layers = hidden_layers(section, self.student.config.num_layers)
        live, model, self.teacher = None, self.teacher, None
        if section.layerwise.max_steps or (section.distill.max_steps and self.stored is None):
            assert model is not None
            sharded = training.fsdp and num_processes() > 1
            live = LiveTeacher(model, layers, training.bf16, sharded)
        return (live if self.stored is None else StoredTeacher(self.stored, layers)), live


def distill(
    teacher_folder: str | Path,
    plan_file: str | Path | None,
    recipe: DistillRecipe,
    output_dir: str | Path,
    resume: bool = False,
    max_minutes: float | None = None,
) -> dict[str, Any]:
    """Distil the teacher into a student of the plan; the finished student lies in output_dir, in float32.

    plan_file: None for a PCformer of which student.predictor_stages are kept. max_minutes: save and raise Unfinished
    when they are over. Under torchrun every process calls this.
    Returns the results that the run's record holds: tokens learnt from, the student's cuts and, with validation text,
    nats per token of teacher and student and what is retained. Raises InputError for a teacher, plan, text, signals
    or folder that cannot be used or that do not belong together, and as `run_stage`; up to the first step nothing
    has been written then.
    """
    limit = TimeLimit(max_minutes)
    join_processes()
    settings = {**recipe.model_dump(mode="json"), "teacher": str(teacher_folder), "plan": str(plan_file)}
    plan = None if plan_file is None else Plan.load(plan_file)
    run = RunFolder(output_dir, "distill", settings, resume, blocks_per_step(recipe.training))
    work, tokenizer = _prepare(teacher_folder, plan, recipe)
    inputs = {**work.corpora.fingerprints, "teacher": work.identity.fingerprint}
    if plan_file is not None:
        inputs["plan"] = hashlib.sha256(Path(plan_file).read_bytes()).hexdigest()
    if work.stored is not None:
        inputs["signals"] = work.stored.record.fingerprint
    results = _check_teacher(work)
    run.begin(inputs)
    context = RunContext(
        run.path,
        recipe.training,
        tokenizer,
        lambda model, figures: model_card(model, run.record, figures),
        work.corpora.score,
        limit,
    )
    results["tokens"] = _run_stages(work, context) * work.corpora.block_size
    work.student.requires_grad_(True)
    results |= _results(work, plan)
    run.finish(work.student, tokenizer, model_card(work.student, run.record, results), results)
    return results


def _prepare(
    teacher_folder: str | Path, plan: Plan | None, recipe: DistillRecipe
) -> tuple[_Distillation, Any]:
    device = choose_device(None)
    # In float32 whatever is stored: what a small learning rate adds would be rounded away in bfloat16.
    teacher, identity = load_identified(teacher_folder, device, "float32", cast=True)
    if plan is not None:
        check_plan(plan, identity)
    changes = student_changes(teacher.config, plan, recipe.student)
    tokenizer = load_tokenizer(teacher_folder)
    _require_fit(teacher_folder, teacher, tokenizer, recipe)
    corpora = Corpora(recipe.data, teacher.config.max_position_embeddings, tokenizer, recipe.training)
    stored = _open_signals(recipe, identity, corpora)
    set_seed(recipe.training.seed)
    student = make_student(teacher_folder, changes, recipe.student, device)
    freeze_unused(student)
    for model in (teacher, student):
        check_stage(model, corpora.blocks, recipe.training)
    return _Distillation(recipe, teacher, teacher.config, identity, student, corpora, stored), tokenizer


def _require_fit(folder: str | Path, teacher: PreTrainedModel, tokenizer: Any, recipe: DistillRecipe) -> None:
    """Raise InputError for a vocabulary or a context that is too small, or a hidden state that is not there."""
    if len(tokenizer) > teacher.config.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, its model a vocabulary of "
            f"{teacher.config.vocab_size}"
        )
    longest = teacher.config.max_position_embeddings
    if (recipe.data.block_size or 0) > longest:
        raise InputError(
            f"data.block_size must be at most the teacher's max_position_embeddings ({longest}), "
            f"found {recipe.data.block_size}"
        )
    last = teacher.config.num_layers
    if max(recipe.distillation.hidden_layers or [0]) > last:
        raise InputError(
            f"distillation.hidden_layers must be at most the teacher's num_layers ({last}), "
            f"found {recipe.distillation.hidden_layers}"
        )


def _open_signals(recipe: DistillRecipe, identity: ModelIdentity, corpora: Corpora) -> StoredSignals | None:
    section = recipe.distillation
    if section.signals is None:
        return None
    stored = StoredSignals.open(section.signals)
    stored.require(
        teacher=identity,
        tokenizer_fingerprint=corpora.fingerprints["tokenizer"],
        corpus_fingerprint=corpora.training.fingerprint,
        block_size=corpora.block_size,
        temperature=section.temperature if section.kl_weight else None,
        hidden_layers=hidden_layers(section, identity.num_layers),
    )
    return stored


def _check_teacher(work: _Distillation) -> dict[str, Any]:
    """Measure the teacher before anything learns from it, beside models that know next to nothing.

    Raises InputError for a teacher that is no better than word counts, unless the recipe does not ask.
    """
    corpora, vocab_size = work.corpora, work.teacher_config.vocab_size
    held: Any
    if corpora.score is not None and corpora.validation is not None:
        score, where, held = corpora.score(work.teacher), "data.validation", corpora.validation.tokens
        work.teacher_score = score
    else:
        held = corpora.training.tokens[:CHECK_TOKENS]
        windows = evaluation_windows(corpora.training, corpora.block_size, CHECK_TOKENS, corpora.batch_size)
        score, where = (
            evaluate_model(work.teacher, windows, name="teacher", dtype=corpora.dtype),
            "data.train",
        )
    naive = naive_scores(corpora.training.tokens, held, vocab_size)
    figures = (
        f"teacher: {score.nll:.4f} nats a token on {where}; token counts alone give {naive.unigram:.4f}, "
        f"knowing nothing {naive.uniform:.4f}"
    )
    say(figures)
    if score.nll >= naive.unigram and work.recipe.distillation.check_teacher:
        raise InputError(
            f"{figures}: it has nothing to teach of this text; is it the trained model, with its own tokenizer? "
            "(distillation.check_teacher=false distils from it all the same)"
        )
    return {"teacher_nll": score.nll, "unigram_nll": naive.unigram, "uniform_nll": naive.uniform}


def _run_stages(work: _Distillation, context: RunContext) -> int:
    """Run what is not done yet; returns the blocks learnt from."""
    section, training = work.recipe.distillation, work.recipe.training
    teacher, live = work.teachers()
    changed = changed_layers(work.teacher_config, work.student.config)
    blocks_seen = 0
    for number, name in enumerate(STAGES):
        length = getattr(section, name)
        if not length.max_steps or (name == "layerwise" and not changed):
            continue
        objective: Objective = LanguageModelling()
        blocks: Any = work.corpora.blocks
        if name == "layerwise":
            assert live is not None
            objective = LearnLayers(live, changed)
        elif name == "distill":
            assert teacher is not None
            objective = LearnFromTeacher(teacher, section, work.student.config.num_layers)
            blocks = teacher.blocks(blocks)
            check_stage(work.student, blocks, training)  # signals may cover a part of the text
        seed = training.seed + number  # the data in another order than the stage before
        set_seed(seed)
        with learning_only(work.student, changed) if name == "layerwise" else nullcontext():
            steps, stopped = run_stage(
                work.student,
                blocks,
                length,
                context,
                context.folder / f"stage-{number}-{name}",
                name=name,
                objective=objective,
                retain=section.retain,
                teacher=work.teacher_score,
                seed=seed,
            )
        blocks_seen += steps * blocks_per_step(training)
        if stopped:
            break
    return blocks_seen


def _results(work: _Distillation, plan: Plan | None) -> dict[str, Any]:
    before, after = (config.num_hidden_layers for config in (work.teacher_config, work.student.config))
    results: dict[str, Any] = {"compute_cut": 1 - after / before}
    if plan is not None:
        results["overhead_cut"] = plan.overhead_cut
    if work.corpora.score is not None and work.teacher_score is not None:
        score = work.corpora.score(work.student)
        results["teacher_validation_nll"] = work.teacher_score.nll
        results["validation_nll"] = score.nll
        results["retained"] = score.accuracy / work.teacher_score.accuracy
    return results
