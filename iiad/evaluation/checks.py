"""All claims on one model, in turn; whatever happens to one, the others are still checked."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from iiad.errors import InputError, one_line
from iiad.loading import choose_device, choose_dtype, label_models, load_identified, read_limits
from iiad.memory import is_out_of_memory, memory_explained
from iiad.planning import Plan, check_plan
from iiad.planning.plan import read_plan
from iiad.progress import progress

from .check_artefact import Check, CheckResult, CheckSettings
from .check_subject import NUM_SEQUENCES, Subject, Teacher, align
from .claims import Claim, Skipped
from .decoding_claims import DECODING
from .machine import device_name
from .plan_claims import PLANS
from .saving_claims import SAVING
from .training_claims import TRAINING

__all__ = ["CLAIMS", "check_model"]

CLAIMS = [*DECODING, *TRAINING, *SAVING, *PLANS]

ROUNDING_BOUNDS = {"float32": 1e-4, "bfloat16": 0.25}
"""Largest figures taken for rounding: measured up to 5e-6 and 0.075, with 3 to 24 layers of 1 to 5 evaluations."""

_REMEDIES = ("fewer prompt or new tokens", "bfloat16", "another device")


def check_model(
    model: str | Path,
    *,
    teacher: str | Path | None = None,
    plan: Plan | str | Path | None = None,
    prompt_tokens: int = 24,
    new_tokens: int = 16,
    seed: int = 0,
    device: str | None = "cpu",
    dtype: str | None = "float32",
    compile: bool = True,
) -> Check:
    """Check what must hold for any checkpoint, each claim with the figure that decides.

    A claim that an error stops has failed, with the error as its note, unless memory ran out, of which nothing
    follows; one that does not apply to this model, or cannot be checked here, is skipped, with the reason.

    Args:
        model: folder or hub name of any causal language model.
        teacher: the model that this one was made of.
        plan: a plan for the teacher, or its file: the one that the model should run.
        prompt_tokens: random tokens of each prompt.
        new_tokens: tokens of each sequence after its prompt.
        seed: of the tokens.
        device: None: CUDA where there is one.
        dtype: of weights and cache, "float32" or "bfloat16"; None: float32 on the CPU, bfloat16 elsewhere. In
            bfloat16 rounding hides small faults.
        compile: check the compiled model too, which takes a compiler and most of the time.

    Raises:
        InputError: a model, a value or the plan cannot be used, or memory runs out. All that can be known without
            loading a model is checked first.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    settings = _settings(prompt_tokens, new_tokens, seed, device, dtype, compile)
    if plan is not None and teacher is None:
        raise InputError("plan: found one without a teacher; accepted: both, as the plan is for a teacher")
    budget = read_plan(plan)
    for name in (model, *([] if teacher is None else [teacher])):
        _require_room(name, settings)
    with tempfile.TemporaryDirectory(prefix="iiad-check-") as folder:
        subject = _load_subject(model, settings, Path(folder), teacher, budget)
        results = []
        # The most sequences that a claim runs at once are those of training.
        size = (2 * NUM_SEQUENCES, prompt_tokens + new_tokens)
        with (
            progress("checking", len(CLAIMS), "claims") as advance,
            memory_explained(
                f"{label_models([model])[0]} on {device}", subject.model, *size, remedies=_REMEDIES
            ),
        ):
            for claim in CLAIMS:
                results.append(_check(claim, subject))
                advance(1, claim.name)
    return Check(
        model=subject.identity,
        teacher=None if subject.teacher is None else subject.teacher.identity,
        plan_fingerprint=None if budget is None else budget.fingerprint,
        settings=settings,
        results=results,
    )


def _settings(
    prompt_tokens: int, new_tokens: int, seed: int, device: str, dtype: str, compile: bool
) -> CheckSettings:
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 4),
        ("new_tokens", new_tokens, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name}: found {value}; accepted: at least {least}")
    return CheckSettings(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seed=seed,
        dtype=dtype,
        device=device,
        device_name=device_name(device),
        rounding_bound=ROUNDING_BOUNDS[dtype],
        compile=compile,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
    )


def _require_room(model: str | Path, settings: CheckSettings) -> None:
    limit, _ = read_limits(model)
    prompt, new = settings.prompt_tokens, settings.new_tokens
    if prompt + new > limit:
        raise InputError(
            f"prompt_tokens + new_tokens: found {prompt} + {new}; accepted: at most {limit} together, the "
            f"max_position_embeddings of {model}"
        )


def _load_subject(
    model: str | Path, settings: CheckSettings, folder: Path, teacher: str | Path | None, plan: Plan | None
) -> Subject:
    """Both models. Raises InputError where the teacher has no iterations or the plan is not one for it."""
    other = None
    if teacher is not None:
        loaded, identity = _load(teacher, settings)
        if not hasattr(loaded, "set_num_iterations"):
            raise InputError(
                f"teacher: found {teacher}, a {identity.model_type}; accepted: a model with iterations"
            )
        other = Teacher(str(teacher), loaded, identity)
        if plan is not None:
            check_plan(plan, identity)
    return Subject(str(model), *_load(model, settings), settings, folder, other, plan)


def _load(model: str | Path, settings: CheckSettings) -> tuple[Any, Any]:
    loaded, identity = load_identified(model, settings.device, settings.dtype, cast=True)
    align(loaded)
    return loaded, identity


def _check(claim: Claim, subject: Subject) -> CheckResult:
    bound = 0.0 if claim.exact else subject.settings.rounding_bound
    known: Any = {"name": claim.name, "bound": bound, "unit": claim.unit}
    try:
        figure = float(claim.measure(subject))
    except Skipped as reason:
        return CheckResult(**known, outcome="skipped", note=str(reason))
    except Exception as error:  # a fault of the model's, of whatever kind: the claim does not hold
        if is_out_of_memory(error):  # the machine's fault: it says nothing about the model
            raise
        return CheckResult(**known, outcome="failed", note=f"{type(error).__name__}: {one_line(error)}")
    if not math.isfinite(figure):
        return CheckResult(**known, outcome="failed", note=f"the figure is {figure}")
    return CheckResult(**known, outcome="passed" if figure <= bound else "failed", figure=figure)
