"""The student before it learns: its plan, its first weights, and its layers and parameters that learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iiad.artefacts import Tolerances
from iiad.checkpoints import load_model
from iiad.data import load_tokenizer, tokenizer_fingerprint
from iiad.errors import InputError, one_line
from iiad.planning import Plan
from iiad.training.distillation_sections import StudentSection
from iiad.training.turns import iteration_parameters

__all__ = ["changed_layers", "freeze_unused", "learning_only", "make_student", "require_change"]

_SHAPE = """
model_type vocab_size hidden_size intermediate_size num_layers num_encoder_layers num_attention_heads
num_key_value_heads head_dim hidden_act rms_norm_eps layer_norm_eps rope_parameters tie_word_embeddings
shared_embeddings history relaxation qk_norm predictor_order coefficients
""".split()
"""Configuration fields that must match to exchange weights."""


def require_change(teacher: Any, plans: Sequence[Plan], section: StudentSection) -> None:
    """Raise InputError where the student would be no cheaper than its teacher, or its teacher cannot be changed so.

    teacher: its configuration. plans: those that the student learns; none: the teacher's.
    """
    stages, policy = section.predictor_stages, section.cache_policy
    if not plans and stages is None and policy is None:
        raise InputError(
            "plan: expected plan.json, student.cache_policy or, for a PCformer, student.predictor_stages, got none"
        )
    if not hasattr(teacher, "cache_policy"):
        raise InputError(f"teacher: expected an IIET or a PCformer, got a {teacher.model_type}")
    if not plans and stages is None and policy == teacher.cache_policy:
        raise InputError(
            f"student.cache_policy: expected one other than the teacher's, or a plan, got {policy!r}"
        )
    if policy == "exact" and any(each.tolerance is not None for each in plans or [teacher]):
        raise InputError("student.cache_policy: expected 'shared' with a tolerance, got 'exact'")
    if stages is not None and stages > getattr(teacher, "predictor_order", 0):
        order = getattr(teacher, "predictor_order", None)
        most = (
            f"at most the teacher's {order}" if order else f"none for a teacher of type {teacher.model_type}"
        )
        raise InputError(f"student.predictor_stages: expected {most}, got {stages}")


def make_student(
    teacher_folder: str | Path,
    num_iterations: Sequence[int] | None,
    section: StudentSection,
    device: str,
    extrapolation: Sequence[Sequence[float]] | None = None,
    tolerance: Tolerances | None = None,
) -> PreTrainedModel:
    """Make the student in float32 on its device.

    num_iterations: its plan, with the coefficients of each layer there and the tolerance; None: the teacher's.

    Raises InputError for a folder to start from that cannot be loaded or holds a model of another shape or with
    another tokenizer.
    """
    student = load_model(teacher_folder, dtype=torch.float32, device=device, kind=None)
    before = list(student.config.iterations)
    if num_iterations is not None:
        fields = student.config.split_plan(num_iterations, extrapolation)
        student.reconfigure(**fields, tolerance=tolerance)
    if section.cache_policy is not None:
        student.set_cache_policy(section.cache_policy)
    if section.predictor_stages is not None:
        student.set_predictor_stages(section.predictor_stages)
    if section.init == "random":
        student.load_state_dict(type(student)(student.config).state_dict())
    elif section.init != "teacher":
        _take_weights(student, teacher_folder, section.init, device)
    if section.start_norm == "update":
        _start_with_last_norms(student, before)
    return student


def _take_weights(student: PreTrainedModel, teacher_folder: str | Path, folder: str, device: str) -> None:
    other = load_model(folder, dtype=torch.float32, device=device, kind=None)
    for field in _SHAPE:
        got, wanted = (getattr(model.config, field, None) for model in (other, student))
        if got != wanted:
            raise InputError(
                f"student.init: {folder}: {field}: expected the teacher's {wanted!r}, got {got!r}"
            )
    own, taught = (tokenizer_fingerprint(load_tokenizer(place)) for place in (folder, teacher_folder))
    if own != taught:
        raise InputError(f"student.init: {folder}: tokenizer: expected the teacher's, got {own[:12]}")
    try:
        student.load_state_dict(other.state_dict())
    except RuntimeError as error:
        raise InputError(f"student.init: {folder}: expected the teacher's shape: {one_line(error)}") from None


@torch.no_grad()
def _start_with_last_norms(student: PreTrainedModel, before: list[int]) -> None:
    """Let LN0 of each layer that loses all its iterations begin as LN, by which its state was normed last.

    before: the teacher's iterations.
    """
    for layer, num_iterations in zip(student.base_model.layers, before, strict=True):
        if layer.num_iterations == 0 < num_iterations and layer.corrector.uses_history:
            layer.corrector.start_norm.load_state_dict(layer.corrector.update_norm.state_dict())


def freeze_unused(student: PreTrainedModel) -> None:
    """Stop training of parameters that the student leaves without use, which weight decay must not touch either."""
    base = student.base_model
    for layer in base.layers:
        for parameter in iteration_parameters(layer) if layer.num_iterations == 0 else ():
            parameter.requires_grad_(False)
    for stack in base.stacks:
        for norm in list(getattr(stack.predictor, "norms", []))[student.config.num_start_evaluations :]:
            norm.requires_grad_(False)


def changed_layers(teacher: Any, student: Any) -> list[int]:
    """Return the layers, from 0, that compute something else under the student's configuration than the teacher's.

    They run fewer evaluations, or several that attend to other keys and values or stop by themselves.
    """
    before, after = (
        [config.num_start_evaluations + r for r in config.iterations] for config in (teacher, student)
    )
    other_policy = teacher.cache_policy != student.cache_policy
    other = [other_policy or a != b for a, b in zip(teacher.tolerances, student.tolerances, strict=True)]
    layers = enumerate(zip(before, after, other, strict=True))
    return [layer for layer, (old, new, otherwise) in layers if old != new or (otherwise and new > 1)]


@contextmanager
def learning_only(student: PreTrainedModel, layers: list[int]) -> Iterator[None]:
    """Train only those layers inside of the block, and the predictor of a stack of which they are all layers."""
    base = student.base_model
    chosen: list[nn.Module] = [base.layers[layer] for layer in layers]
    whole = (stack for stack in base.stacks if {layer.place for layer in stack.layers} <= set(layers))
    chosen += [stack.predictor for stack in whole]
    kept = {id(parameter) for module in chosen for parameter in module.parameters()}
    frozen = [p for p in student.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
