"""Claims about plans: another plan for a while does no harm, and a student runs the plan that it was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from .check_subject import Subject, Teacher, load_again
from .claims import FIELDS, LAYERS, LOGITS, Claim, Skipped, logit_difference

__all__ = ["PLANS"]

_STUDENTS_OWN = {
    *("num_iterations", "cache_policy", "predictor_stages"),  # what makes a student cheaper
    *("attention_dropout", "initializer_range"),  # of training alone
    *("pad_token_id", "bos_token_id", "eos_token_id", "use_cache"),  # of generation
}
"""Fields that a student may have otherwise than its teacher."""


def set_back(subject: Subject) -> float:
    """Its logits after it followed another plan and then its own again, to the last bit."""
    own = _own_plan(subject)
    most = subject.model.config.max_num_iterations
    if not most:
        raise Skipped("its weights provide for no iterations, so there is no other plan")
    other = [0] * len(own) if any(own) else [most] * len(own)
    with subject.following(other):
        subject.forward(subject.model, subject.tokens)
    found = subject.forward(subject.model, subject.tokens)
    return logit_difference(found, subject.logits, subject.deviation)


def loaded_with_own_plan(subject: Subject) -> float:
    """Its logits where it is loaded with `num_iterations=` its own plan, to the last bit."""
    again = load_again(subject.name, subject.settings, num_iterations=_own_plan(subject))
    return logit_difference(subject.forward(again, subject.tokens), subject.logits, subject.deviation)


def teacher_set_back(subject: Subject) -> float:
    """The teacher, loaded with the plan and set to the full one: its logits against its own, to the last bit."""
    teacher, plan = _teacher(subject), _wanted_plan(subject)
    again = load_again(teacher.name, subject.settings, num_iterations=plan)
    with subject.following(teacher.identity.num_iterations, again):
        found = subject.forward(again, _teacher_tokens(subject))
    wanted = subject.forward(teacher.model, _teacher_tokens(subject))
    return logit_difference(found, wanted, float(wanted.double().std()))


def teacher_truncated(subject: Subject) -> float:
    """The teacher, loaded with the plan, against the teacher set to it, to the last bit."""
    teacher, plan = _teacher(subject), _wanted_plan(subject)
    again = load_again(teacher.name, subject.settings, num_iterations=plan)
    found = subject.forward(again, _teacher_tokens(subject))
    with subject.following(plan, teacher.model):
        wanted = subject.forward(teacher.model, _teacher_tokens(subject))
    return logit_difference(found, wanted, float(wanted.double().std()))


def runs_plan(subject: Subject) -> float:
    """Layers with another number of iterations than the plan file says."""
    if subject.plan is None:
        raise Skipped("no plan given")
    own, wanted = subject.identity.num_iterations, subject.plan.num_iterations
    if len(own) != len(wanted):
        raise ValueError(f"found {len(own)} layers; the plan is for {len(wanted)}")
    return sum(r != budget for r, budget in zip(own, wanted, strict=True))


def fits_teacher(subject: Subject) -> float:
    """Fields of the configuration that differ from the teacher's, beside those that a student has of its own.

    Its kind counts as one. The maximum of iterations is the teacher's too: a student keeps it, whatever its plan.
    """
    own, other = subject.model.config, _teacher(subject).model.config
    # What all of transformers' configurations have says nothing about the weights.
    declared = type(other).__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    names = ["model_type", *(declared - _STUDENTS_OWN)]
    return sum(_field(own, name) != _field(other, name) for name in names)


def _field(config: Any, name: str) -> Any:
    """A field's value, None where there is no such field."""
    value = getattr(config, name, None)
    if name == "attention_output_bias" and value is None:
        return getattr(config, "attention_bias", None)  # as which None counts
    return value


def _own_plan(subject: Subject) -> list[int]:
    if not subject.iterated:
        raise Skipped(f"a {subject.identity.model_type} has no iterations")
    return list(subject.model.config.num_iterations)


def _teacher(subject: Subject) -> Teacher:
    if subject.teacher is None:
        raise Skipped("no teacher given")
    return subject.teacher


def _wanted_plan(subject: Subject) -> list[int]:
    """The plan file's plan, or else the one that the model runs."""
    return list(subject.identity.num_iterations if subject.plan is None else subject.plan.num_iterations)


def _teacher_tokens(subject: Subject) -> Tensor:
    """(B, T), the model's tokens brought into the teacher's vocabulary, should that be smaller."""
    teacher = _teacher(subject)
    vocab_size = teacher.model.get_input_embeddings().weight.shape[0]
    return torch.remainder(subject.tokens, vocab_size)


PLANS = [
    Claim("another plan and back = itself", LOGITS, True, set_back),
    Claim("loaded with own plan = itself", LOGITS, True, loaded_with_own_plan),
    Claim("full plan = teacher", LOGITS, True, teacher_set_back),
    Claim("teacher loaded = set to the plan", LOGITS, True, teacher_truncated),
    Claim("model runs the plan", LAYERS, True, runs_plan),
    Claim("model fits the teacher", FIELDS, True, fits_teacher),
]
