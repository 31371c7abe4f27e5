"""The student as it is before it learns: whose weights it has, which plan it runs, what of it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iiad.checkpoints import load_model
from iiad.data import load_tokenizer, tokenizer_fingerprint
from iiad.errors import InputError, one_line
from iiad.planning import Plan
from iiad.training.sections import StudentSection

__all__ = [
    "changed_layers",
    "freeze_unused",
    "learning_only",
    "make_student",
    "require_change",
    "student_changes",
]


_SHAPE = """
model_type vocab_size hidden_size intermediate_size num_layers num_attention_heads num_key_value_heads head_dim
hidden_act rms_norm_eps layer_norm_eps rope_parameters tie_word_embeddings history relaxation qk_norm predictor_order
coefficients
""".split()
"""What two models must have alike for the weights of one to mean the same in the other."""


def student_changes(teacher: Any, plan: Plan | None, section: StudentSection) -> dict[str, Any]:
    """The fields of the teacher's configuration that the student has otherwise.

    teacher: its configuration. Raises InputError as `require_change`, or where such a teacher cannot be changed so.
    """
    stages, policy = section.predictor_stages, section.cache_policy
    require_change(plan, section)
    changes: dict[str, Any] = {}
    if policy is not None:
        if not hasattr(teacher, "cache_policy"):
            raise InputError(
                f"student.cache_policy is for models with iterations; the teacher is {teacher.model_type}"
            )
        if policy == teacher.cache_policy and plan is None and stages is None:
            raise InputError(
                f"student.cache_policy: found {policy!r}, the teacher's own; accepted: another, or a plan"
            )
        if policy != teacher.cache_policy:
            changes["cache_policy"] = policy
    if plan is not None:
        changes["num_iterations"] = list(plan.num_iterations)
    if stages is not None:
        order = getattr(teacher, "predictor_order", None)
        if order is None:
            raise InputError(
                f"student.predictor_stages is for a PCformer; the teacher is {teacher.model_type}"
            )
        if stages > order:
            raise InputError(
                f"student.predictor_stages must be at most the teacher's {order}, found {stages}"
            )
        changes["predictor_stages"] = stages
    return changes


def require_change(plan: Any, section: StudentSection) -> None:
    """Raise InputError where nothing says how the student is cheaper than its teacher. Needs no model."""
    if plan is None and section.predictor_stages is None and section.cache_policy is None:
        raise InputError(
            "no plan: give plan.json, student.cache_policy or, for a PCformer, student.predictor_stages"
        )


def make_student(
    teacher_folder: str | Path, changes: dict[str, Any], section: StudentSection, device: str
) -> PreTrainedModel:
    """The student in float32 on its device, with `student_changes` made.

    Raises InputError for a folder to start from that cannot be loaded or holds a model of another shape or with
    another tokenizer.
    """
    plan = changes.get("num_iterations")
    student = load_model(teacher_folder, dtype=torch.float32, device=device)
    before = list(student.config.iterations)
    if plan is not None:
        student.set_num_iterations(plan)
    if "cache_policy" in changes:
        student.set_cache_policy(changes["cache_policy"])
    if "predictor_stages" in changes:
        student.set_predictor_stages(changes["predictor_stages"])
    if section.init == "random":
        fresh = type(student)(student.config)
        student.load_state_dict(fresh.state_dict())
    elif section.init != "teacher":
        _take_weights(student, teacher_folder, section.init, device)
    if section.start_norm == "update":
        _start_with_last_norms(student, before)
    return student


def _take_weights(student: PreTrainedModel, teacher_folder: str | Path, folder: str, device: str) -> None:
    other = load_model(folder, dtype=torch.float32, device=device)
    for field in _SHAPE:
        found, wanted = (getattr(model.config, field, None) for model in (other, student))
        if found != wanted:
            raise InputError(f"student.init: {folder}: {field} is {found!r}, the teacher's {wanted!r}")
    prints = [tokenizer_fingerprint(load_tokenizer(place)) for place in (folder, teacher_folder)]
    if prints[0] != prints[1]:
        raise InputError(f"student.init: {folder}: its tokenizer is not the teacher's")
    try:
        student.load_state_dict(other.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"student.init: {folder}: not a model of the teacher's shape: {one_line(error)}"
        ) from None


@torch.no_grad()
def _start_with_last_norms(student: PreTrainedModel, before: list[int]) -> None:
    """Where all of a layer's iterations go, its state was normed by LN last in the teacher: let LN0 begin as that.

    before: the teacher's iterations.
    """
    for layer, num_iterations in zip(student.base_model.layers, before, strict=True):
        if layer.num_iterations == 0 < num_iterations and layer.corrector.uses_history:
            layer.corrector.start_norm.load_state_dict(layer.corrector.update_norm.state_dict())


def freeze_unused(student: PreTrainedModel) -> None:
    """Take what the student leaves without use out of training: weight decay must not touch it either."""
    for layer in student.base_model.layers:
        if layer.num_iterations > 0:
            continue
        for name, parameter in layer.corrector.named_parameters():
            if name.startswith("update_") or name == "relaxation":  # what only iterations use
                parameter.requires_grad_(False)
    norms = list(getattr(student.base_model.predictor, "norms", []))
    for norm in norms[student.config.num_start_evaluations :]:
        norm.requires_grad_(False)


def changed_layers(teacher: Any, student: Any) -> list[int]:
    """The layers, from 0, that compute something else under the student's configuration than under the teacher's.

    They run fewer evaluations, or several that attend to other keys and values.
    """
    before, after = (
        [config.num_start_evaluations + r for r in config.iterations] for config in (teacher, student)
    )
    other_policy = teacher.cache_policy != student.cache_policy
    pairs = enumerate(zip(before, after, strict=True))
    return [layer for layer, (old, new) in pairs if old != new or (other_policy and new > 1)]


@contextmanager
def learning_only(student: PreTrainedModel, layers: list[int]) -> Iterator[None]:
    """Inside of the block, only those layers, and a predictor that they share, have parameters that learn."""
    base = student.base_model
    chosen: list[nn.Module] = [base.layers[layer] for layer in layers]
    if len(layers) == len(base.layers):
        chosen.append(base.predictor)
    kept = {id(parameter) for module in chosen for parameter in module.parameters()}
    frozen = [p for p in student.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
