"""`iiad distill`: the two stages that turn a teacher and a plan into an E-IIET (method.md, 5)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from iiad.checkpoints import identify_model, load_model, read_weights
from iiad.data import TokenBlocks, load_tokenizer, tokenizer_fingerprint
from iiad.errors import InputError
from iiad.planning import Plan, check_plan
from iiad.reporting.model_card import model_card
from iiad.reporting.progress import say
from iiad.training.engine import Objective, cross_entropy, latest_checkpoint, run_stage
from iiad.training.recipe import DistillationSection, DistillRecipe, StageSection
from iiad.training.runs import RunFolder
from iiad.training.teacher import prepare_data, validation_nll

from .losses import hidden_state_loss, kl_divergence

__all__ = ["distill"]


class LearnFromTeacher:
    """Stage 1: CE + kl_weight T^2 KL(teacher || student) + hidden_weight * hidden-state loss."""

    def __init__(self, teacher: PreTrainedModel, section: DistillationSection):
        self.teacher, self.section = teacher, section
        teacher.requires_grad_(False).eval()

    def __call__(self, student: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """input_ids: (B, T) -> the loss and its parts, each a scalar."""
        section = self.section
        options: dict[str, Any] = {"use_cache": False, "output_hidden_states": section.hidden_weight > 0}
        with torch.no_grad():
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


def learn_from_text(student: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Stage 2: CE alone. input_ids: (B, T)."""
    loss = cross_entropy(student(input_ids=input_ids, use_cache=False).logits, input_ids)
    return loss, {"ce": loss.detach()}


def distill(
    teacher_folder: str | Path,
    plan_file: str | Path,
    recipe: DistillRecipe,
    output_dir: str | Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Distil the teacher into a student of the plan; the finished E-IIET lies in output_dir.

    Returns the results that the run's record holds. Raises InputError for anything the user can mend.
    """
    settings = {**recipe.model_dump(mode="json"), "teacher": str(teacher_folder), "plan": str(plan_file)}
    plan = Plan.load(plan_file)
    run = RunFolder(output_dir, "distill", settings, resume)
    teacher = load_model(teacher_folder, device=_device())
    identity = identify_model(teacher, teacher_folder)
    check_plan(plan, identity)
    tokenizer = load_tokenizer(teacher_folder)
    if len(tokenizer) > teacher.config.vocab_size:
        raise InputError(
            f"{teacher_folder}: its tokenizer has {len(tokenizer)} tokens, its model a vocabulary of "
            f"{teacher.config.vocab_size}"
        )
    if recipe.data.block_size > teacher.config.max_position_embeddings:
        raise InputError(
            f"data.block_size must be at most the teacher's max_position_embeddings "
            f"({teacher.config.max_position_embeddings}), found {recipe.data.block_size}"
        )
    corpus, validation = prepare_data(recipe.data, tokenizer)
    blocks = TokenBlocks(corpus, recipe.data.block_size)
    run.begin(
        {
            "teacher": identity.fingerprint,
            "plan": hashlib.sha256(Path(plan_file).read_bytes()).hexdigest(),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "data": corpus.fingerprint,
        }
    )
    student = load_model(teacher_folder, num_iterations=list(plan.num_iterations), device=_device())
    _freeze_unused(student)
    sections = recipe.distillation
    held_out = TokenBlocks(validation, recipe.data.block_size) if validation else None
    objectives: list[tuple[str, StageSection, Objective]] = [
        ("distill", sections.distill, LearnFromTeacher(teacher, sections)),
        ("recover", sections.recover, learn_from_text),
    ]
    for number, (name, length, objective) in enumerate(objectives, start=1):
        folder = run.path / f"stage-{number}-{name}"
        if length.max_steps == 0 or _is_done(folder, length, student):
            continue
        set_seed(recipe.training.seed + number)  # another order of the data than the stage before
        optimization = recipe.training.model_copy(update={"seed": recipe.training.seed + number})
        run_stage(
            student,
            blocks,
            optimization,
            length,
            folder,
            name=name,
            objective=objective,
            validation=held_out,
            tokenizer=tokenizer,
            log=run.path / "log.jsonl",
        )
    student.requires_grad_(True)
    blocks_seen = (sections.distill.max_steps + sections.recover.max_steps) * (
        recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps
    )
    results: dict[str, Any] = {"tokens": blocks_seen * recipe.data.block_size}
    results |= {"overhead_cut": plan.overhead_cut, "compute_cut": plan.compute_cut}
    if validation is not None:
        size = (recipe.data.block_size, recipe.training.per_device_train_batch_size)
        results["teacher_validation_nll"] = validation_nll(teacher, validation, *size)
        results["validation_nll"] = validation_nll(student, validation, *size)
    run.finish(student, tokenizer, model_card(student, run.record, results), results)
    return results


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _freeze_unused(student: PreTrainedModel) -> None:
    """Parameters that the plan leaves without use get no gradient; weight decay must not touch them either."""
    for layer in student.base_model.layers:
        corrector = layer.corrector
        if layer.num_iterations == 0 and corrector.uses_history:
            corrector.update_norm.requires_grad_(False)
            corrector.update_weights.requires_grad_(False)


def _is_done(folder: Path, length: StageSection, student: PreTrainedModel) -> bool:
    """Whether the stage was finished by an earlier try; the student then has its weights."""
    last = latest_checkpoint(folder)
    if last is None or last.name != f"checkpoint-{length.max_steps}":
        return False
    say(f"{folder.name}: finished before; not run again")
    student.load_state_dict(read_weights(last), strict=False)  # without the tied head, which follows
    return True
