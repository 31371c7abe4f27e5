"""Check a model: measure every claim in turn, whatever happens to the others."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from iiad.checkpoints import (
    choose_device,
    choose_dtype,
    label_models,
    load_identified,
    require_one_kind,
)
from iiad.errors import InputError, one_line, require_least, require_seed
from iiad.identities import ModelIdentity
from iiad.memory import is_out_of_memory, memory_explained
from iiad.planning.binding import AnyPlan, bind_plan, read_plan, truncated_identity
from iiad.planning.plan import Plan
from iiad.progress import progress

from .check_artefact import Check, CheckResult, CheckSettings
from .claims import NUM_SEQUENCES, Claim, Skipped, Subject, realign
from .decoding_claims import DECODING
from .engine import EngineError, engine_version
from .loading_claims import LOADING
from .served_claims import SERVED
from .timing import device_name, require_positions
from .training_claims import TRAINING

__all__ = ["CLAIMS", "check_model"]

CLAIMS = (*DECODING, *TRAINING, *LOADING, *SERVED)

ROUNDING_BOUNDS = {"float32": 1e-4, "bfloat16": 0.25}
"""Largest figures taken for rounding: measured up to 5e-6 and 0.075, with 3 to 24 layers of 1 to 5 evaluations."""

_REMEDIES = ("fewer prompt or new tokens", "bfloat16", "another device")


def check_model(
    model: str | Path,
    *,
    teacher: str | Path | None = None,
    plan: AnyPlan | None = None,
    prompt_tokens: int = 24,
    new_tokens: int = 16,
    seed: int = 0,
    device: str | None = "cpu",
    dtype: str | None = "float32",
    compile: bool = True,
    served: str | Path | None = None,
    claims: Sequence[Claim] = CLAIMS,
) -> Check:
    """Check what must hold for any checkpoint, each claim with the figure that decides.

    A claim fails by its figure or by an error, which becomes its note; running out of memory ends the check instead.
    A claim that does not apply to this model, or cannot be checked here, is skipped, with the reason.

    Args:
        model: folder or hub name of any causal language model or encoder-decoder.
        teacher: the model that this one was made of.
        plan: a plan for the teacher, or its file: the one that the model should run. Without a teacher the model runs
            it.
        prompt_tokens: random tokens of each prompt.
        new_tokens: tokens of each sequence after its prompt.
        seed: of the tokens.
        device: default: CUDA where there is one.
        dtype: of weights and cache, "float32" or "bfloat16", in which rounding hides small faults; None: float32 on
            the CPU, bfloat16 elsewhere.
        compile: check the compiled model too, which takes a compiler and most of the time.
        served: interpreter of an environment with vLLM, whose server decodes the saved model, compiled or eager.
        claims: to check; default: all.

    Raises:
        InputError: a model, a value or the plan cannot be used, memory runs out, or the engine does not start. All
            that can be known without loading a model is checked first.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    require_least(4, prompt_tokens=prompt_tokens)
    require_least(2, new_tokens=new_tokens)
    require_seed(seed)
    given = read_plan(plan)
    engine = None if served is None else f"vLLM {engine_version(served)}"
    models = [model] if teacher is None else [model, teacher]
    require_one_kind(models)
    for name in models:
        require_positions(name, prompt_tokens, new_tokens)
    settings = CheckSettings(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seed=seed,
        dtype=dtype,
        device=device,
        device_name=device_name(device),
        rounding_bound=ROUNDING_BOUNDS[dtype],
        compile=compile,
        engine=engine,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
    )
    with tempfile.TemporaryDirectory(prefix="iiad-check-") as folder:
        other = None if teacher is None else _load_teacher(teacher, settings, Path(folder))
        loaded, identity = _load(model, settings)
        budget = None if given is None else bind_plan(given, identity if other is None else other.identity)
        if budget is not None and other is None:
            _run_plan(loaded, budget)
            identity = truncated_identity(identity, budget)
        of_teacher = None if other is None else budget
        subject = Subject(loaded, identity, settings, Path(folder), other, of_teacher, served)
        where = f"{label_models([model])[0]} on {device}"
        # The most sequences that a claim runs at once are those of training.
        size = (2 * NUM_SEQUENCES, prompt_tokens + new_tokens)
        results = []
        with (
            progress("checking", len(claims), "claims") as advance,
            memory_explained(where, subject.model, *size, remedies=_REMEDIES),
        ):
            for claim in claims:
                results.append(_check(claim, subject))
                advance(1, claim.name)
    return Check(
        model=subject.identity,
        teacher=None if other is None else other.identity,
        plan_fingerprint=None if budget is None else budget.fingerprint,
        settings=settings,
        results=results,
    )


def _load(model: str | Path, settings: CheckSettings) -> tuple[Any, ModelIdentity]:
    loaded, identity = load_identified(model, settings.device, settings.dtype, cast=True, kind=None)
    return realign(loaded), identity


def _run_plan(model: Any, plan: Plan) -> None:
    if hasattr(model, "set_num_iterations"):  # a Transformer's plan is its own
        model.follow_plan(plan)


def _load_teacher(teacher: str | Path, settings: CheckSettings, folder: Path) -> Subject:
    """Load it. Raises InputError for a model without iterations."""
    loaded, identity = _load(teacher, settings)
    if not hasattr(loaded, "set_num_iterations"):
        raise InputError(f"teacher: expected a model with iterations, got {teacher}, a {identity.model_type}")
    return Subject(loaded, identity, settings, folder)


def _check(claim: Claim, subject: Subject) -> CheckResult:
    bound = 0.0 if claim.exact else subject.settings.rounding_bound
    known: dict[str, Any] = {"name": claim.name, "bound": bound, "unit": claim.unit}
    try:
        figure = float(claim.measure(subject))
    except Skipped as reason:
        return CheckResult(**known, outcome="skipped", note=str(reason))
    except EngineError:  # the environment's fault, or nothing to compare
        raise
    except Exception as error:  # a fault of the model's, of whatever kind: the claim does not hold
        if is_out_of_memory(error):  # the machine's fault: it says nothing about the model
            raise
        return CheckResult(**known, outcome="failed", note=f"{type(error).__name__}: {one_line(error)}")
    if not math.isfinite(figure):
        return CheckResult(**known, outcome="failed", note=f"the figure is {figure}")
    return CheckResult(**known, outcome="passed" if figure <= bound else "failed", figure=figure)
