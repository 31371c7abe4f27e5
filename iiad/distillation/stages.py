"""`iiad distill`: the two stages that turn a teacher and a plan into an E-IIET (paper)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from iiad.artefacts import ModelIdentity
from iiad.checkpoints import load_model
from iiad.data import load_tokenizer
from iiad.errors import InputError
from iiad.loading import choose_device, load_identified
from iiad.planning import Plan, check_plan
from iiad.recipes import DistillationSection, DistillRecipe, StageSection
from iiad.training.engine import (
    Objective,
    blocks_per_step,
    check_stage,
    cross_entropy,
    language_modelling,
    run_stage,
)
from iiad.training.model_card import model_card
from iiad.training.runs import RunFolder
from iiad.training.teacher import Corpora

from .losses import hidden_state_loss, kl_divergence

__all__ = ["LearnFromTeacher", "distill"]


class LearnFromTeacher:
    """Stage 1: CE + kl_weight T^2 KL(teacher || student) + hidden_weight * hidden-state loss.

    bf16: run the teacher under autocast, as the Trainer runs the student.
    """

    def __init__(self, teacher: PreTrainedModel, section: DistillationSection, bf16: bool = False):
        self.teacher, self.section, self.bf16 = teacher, section, bf16
        teacher.requires_grad_(False).eval()

    def __call__(self, student: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """input_ids: (B, T) -> the loss and its parts, each a scalar."""
        section = self.section
        options: dict[str, Any] = {"use_cache": False, "output_hidden_states": section.hidden_weight > 0}
        with torch.no_grad(), torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            target = self.teacher(input_ids=input_ids, **options)
        output = student(input_ids=input_ids, **options)
        loss = cross_entropy(output.logits, input_ids)
        parts = {"ce": loss.detach()}
        if section.kl_weight:
            kl = kl_divergence(target.logits, output.logits, section.temperature)
            loss = loss + section.kl_weight * kl
            parts["kl"] = kl.detach()
        if section.hidden_weight:
            hidden = hidden_state_loss(target.hidden_states, output.hidden_states)
            loss = loss + section.hidden_weight * hidden
            parts["hidden"] = hidden.detach()
        return loss, parts


def distill(
    teacher_folder: str | Path,
    plan_file: str | Path,
    recipe: DistillRecipe,
    output_dir: str | Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Distil the teacher into a student of the plan; the finished E-IIET lies in output_dir, in float32.

    Returns the results that the run's record holds: tokens learnt from, the plan's cuts and, with validation text,
    nats per token of teacher and student. Raises InputError for a teacher, plan, text or folder that cannot be used
    or that do not belong together, and as `run_stage`; up to the first step nothing has been written then.
    """
    settings = {**recipe.model_dump(mode="json"), "teacher": str(teacher_folder), "plan": str(plan_file)}
    plan = Plan.load(plan_file)
    run = RunFolder(output_dir, "distill", settings, resume)
    device = choose_device(None)
    # In float32 whatever is stored: what a small learning rate adds would be rounded away in bfloat16.
    teacher, identity = load_identified(teacher_folder, device, "float32", cast=True)
    check_plan(plan, identity)
    tokenizer = load_tokenizer(teacher_folder)
    _require_fit(teacher_folder, teacher, tokenizer, recipe)
    corpora = Corpora(recipe.data, teacher.config.max_position_embeddings, tokenizer, recipe.training)
    student = load_model(
        teacher_folder, dtype=torch.float32, num_iterations=list(plan.num_iterations), device=device
    )
    _freeze_unused(student)
    for model in (teacher, student):
        check_stage(model, corpora.blocks, recipe.training)
    run.begin({**corpora.fingerprints, **_fingerprints(identity, plan_file)})
    _run_stages(teacher, student, recipe, corpora, tokenizer, run.path)
    student.requires_grad_(True)
    results = _results(teacher, student, plan, recipe, corpora)
    run.finish(student, tokenizer, model_card(student, run.record, results), results)
    return results


def _run_stages(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    recipe: DistillRecipe,
    corpora: Corpora,
    tokenizer: Any,
    folder: Path,
) -> None:
    section, training = recipe.distillation, recipe.training
    stages: list[tuple[str, StageSection, Objective]] = [
        ("distill", section.distill, LearnFromTeacher(teacher, section, training.bf16)),
        ("recover", section.recover, language_modelling),
    ]
    for number, (name, length, objective) in enumerate(stages, start=1):
        if length.max_steps == 0:
            continue
        seed = training.seed + number  # the data in another order than the stage before
        set_seed(seed)
        run_stage(
            student,
            corpora.blocks,
            training.model_copy(update={"seed": seed}),
            length,
            folder / f"stage-{number}-{name}",
            name=name,
            log=folder / "log.jsonl",
            objective=objective,
            validate=corpora.validate,
            tokenizer=tokenizer,
        )


def _require_fit(folder: str | Path, teacher: PreTrainedModel, tokenizer: Any, recipe: DistillRecipe) -> None:
    """Raise InputError for a vocabulary or a context that is too small."""
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


def _fingerprints(identity: ModelIdentity, plan_file: str | Path) -> dict[str, str]:
    plan = hashlib.sha256(Path(plan_file).read_bytes()).hexdigest()
    return {"teacher": identity.fingerprint, "plan": plan}


def _results(
    teacher: PreTrainedModel, student: PreTrainedModel, plan: Plan, recipe: DistillRecipe, corpora: Corpora
) -> dict[str, Any]:
    steps = recipe.distillation.distill.max_steps + recipe.distillation.recover.max_steps
    tokens = steps * blocks_per_step(recipe.training) * corpora.block_size
    results = {"tokens": tokens, "overhead_cut": plan.overhead_cut, "compute_cut": plan.compute_cut}
    if corpora.validate is not None:
        results["teacher_validation_nll"] = corpora.validate(teacher)
        results["validation_nll"] = corpora.validate(student)
    return results


def _freeze_unused(student: PreTrainedModel) -> None:
    """Take what the plan leaves without use out of training: weight decay must not touch it either."""
    for layer in student.base_model.layers:
        if layer.num_iterations == 0 and layer.corrector.uses_history:
            layer.corrector.update_norm.requires_grad_(False)
            layer.corrector.update_weights.requires_grad_(False)
