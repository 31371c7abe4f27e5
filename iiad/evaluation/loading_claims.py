"""Claims about saving and loading: a saved model is the model, with iiad or without, at its own plan or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.configuration_utils import PreTrainedConfig

from iiad.checkpoints import auto_class
from iiad.folders import read_config

from .claims import (
    CONTENT,
    FIELDS,
    LAYERS,
    LOGITS,
    Claim,
    Skipped,
    Subject,
    logit_difference,
    running_plan,
    worst,
)

__all__ = ["LOADING", "remote_logits"]

SCRIPT = Path(__file__).with_name("remote_loading.py")
MOST_SECONDS = 600

# Fields about the writing of a configuration, not about the model.
_CIRCUMSTANCES = {
    *("transformers_version", "_name_or_path", "auto_map", "architectures", "dtype", "torch_dtype"),
}
# Fields that may differ between a student and its teacher.
_STUDENTS_OWN = {
    # What makes a student cheaper.
    *("num_iterations", "num_encoder_iterations", "extrapolation", "cache_policy", "predictor_stages"),
    "tolerance",
    *("attention_dropout", "initializer_range"),  # of training alone
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache"),  # of generation
}


def saved_logits(subject: Subject) -> float:
    """Load the saved folder."""
    return subject.compare(subject.forward(subject.load_again(subject.saved)))


def saved_content(subject: Subject) -> float:
    """Count tensors and fields of the configuration that the saved folder changes, unused ones included."""
    again = subject.load_again(subject.saved)
    tensors, others = subject.model.state_dict(), again.state_dict()
    shared = tensors.keys() & others.keys()
    different = len(tensors.keys() ^ others.keys())
    different += sum(not torch.equal(tensors[name], others[name]) for name in shared)
    fields, theirs = _written_fields(subject.model), _written_fields(again)
    return different + sum(fields.get(name) != theirs.get(name) for name in fields.keys() | theirs.keys())


def remote_logits(subject: Subject, script: Path = SCRIPT) -> float:
    """Load the saved folder by its own code, in a process without iiad.

    Logits of the Auto class with a head and last hidden states of AutoModel, each against those of this process.
    script: run in that process; see `remote_loading`.
    """
    if not type(subject.model).__module__.startswith("iiad."):  # else its code is not ours to run
        raise Skipped(f"{type(subject.model).__name__} comes with transformers")
    known = read_config(subject.saved).get("auto_map") or {}
    head = auto_class(subject.model.config).__name__
    missing = [name for name in ("AutoConfig", "AutoModel", head) if name not in known]
    if missing:
        raise ValueError(f"auto_map of the saved config.json: expected {', '.join(missing)}, got none")
    given = subject.inputs.arrange(subject.tokens, slice(len(subject.tokens)))
    found = _load_remotely(subject, script, head, given)
    with torch.no_grad():
        hidden = subject.model.base_model(**given, use_cache=False).last_hidden_state
    figures = [
        subject.compare(found["logits"], subject.logits.cpu()),
        logit_difference(found["hidden"], hidden.cpu(), float(hidden.double().std())),
    ]
    return worst(figures)


def _load_remotely(
    subject: Subject, script: Path, head: str, given: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Run the script on the saved folder and read its output. Raises RuntimeError with its last line on failure."""
    inputs, output = subject.folder / "inputs.safetensors", subject.folder / "remote.safetensors"
    save_file({name: tokens.cpu().contiguous() for name, tokens in given.items()}, inputs)
    arguments = [subject.saved, head, inputs, output, subject.settings.device, torch.get_num_threads()]
    modules = {"HF_MODULES_CACHE": str(subject.folder / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        # -P: the script's own folder, which is iiad's, stays off the path.
        [sys.executable, "-P", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **modules},
        cwd=subject.folder,
        timeout=MOST_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"without iiad: {lines[-1].strip()}")
    return load_file(output)


def _written_fields(model: Any) -> dict[str, str]:
    """The configuration field by field, as it would be written."""
    fields = {name: value for name, value in model.config.to_dict().items() if name not in _CIRCUMSTANCES}
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in fields.items()}


def plan_and_back(subject: Subject) -> float:
    """Run another plan, then its own again."""
    own = _own_plan(subject)
    most = subject.model.config.max_num_iterations
    if not most:
        raise Skipped("its weights provide for no iterations, so there is no other plan")
    with running_plan(subject.model, [0] * len(own) if any(own) else [most] * len(own)):
        subject.forward()
    return subject.compare(subject.forward())


def loaded_at_own_plan(subject: Subject) -> float:
    """Load the model with `num_iterations=` its own plan."""
    plan = _own_plan(subject)
    config = subject.model.config
    again = subject.load_again(**config.split_plan(plan), tolerance=config.tolerance)
    return subject.compare(subject.forward(again))


def teacher_at_plan(subject: Subject, full: bool) -> float:
    """Load the teacher at the plan, against the teacher set to it; full: then set back, against the full plan."""
    teacher, runs = _teacher(subject), subject.plan or subject.identity
    plan, tolerance = (list(runs.num_iterations), runs.coefficients), runs.tolerance
    again = teacher.load_again(**teacher.model.config.split_plan(*plan), tolerance=tolerance)
    if full:
        again.set_num_iterations(teacher.identity.num_iterations)
        again.reconfigure(tolerance=teacher.identity.tolerance)
        return teacher.compare(teacher.forward(again))
    with running_plan(teacher.model, *plan):
        teacher.model.reconfigure(tolerance=tolerance)
        return teacher.compare(teacher.forward(again), teacher.forward())


def runs_plan(subject: Subject) -> float:
    """Count layers with another number of iterations, extrapolation or tolerance than the plan file says."""
    if subject.plan is None:
        raise Skipped("no plan given")
    own, wanted = subject.identity.num_iterations, subject.plan.num_iterations
    if len(own) != len(wanted):
        raise ValueError(f"plan: expected {len(wanted)} layers, got {len(own)}")
    coefficients = zip(subject.identity.coefficients, subject.plan.coefficients, strict=True)
    stops = [each.tolerance or [None] * len(own) for each in (subject.identity, subject.plan)]
    runs, asked = (zip(budget, stop, strict=True) for budget, stop in zip((own, wanted), stops, strict=True))
    different = [a != b for a, b in zip(runs, asked, strict=True)]
    return sum(other or a != b for other, (a, b) in zip(different, coefficients, strict=True))


def fits_teacher(subject: Subject) -> float:
    """Count fields of the configuration that differ from the teacher's, beside those of a student's own.

    The model type is one of them, and the maximum of iterations: a student keeps it, whatever its plan.
    """
    own, other = subject.model.config, _teacher(subject).model.config
    # Fields that all of transformers' configurations have say nothing about the weights.
    declared = type(other).__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    names = ["model_type", *(declared - _STUDENTS_OWN)]
    return sum(_meaning(own, name) != _meaning(other, name) for name in names)


def _meaning(config: Any, name: str) -> Any:
    """A field's value, None where there is no such field."""
    value = getattr(config, name, None)
    if name == "attention_output_bias" and value is None:
        return getattr(config, "attention_bias", None)  # as which None counts
    return value


def _own_plan(subject: Subject) -> list[int]:
    if not hasattr(subject.model, "set_num_iterations"):
        raise Skipped(f"a {subject.identity.model_type} has no iterations")
    return list(subject.model.config.iterations)


def _teacher(subject: Subject) -> Subject:
    if subject.teacher is None:
        raise Skipped("no teacher given")
    return subject.teacher


LOADING = [
    Claim("saved = reloaded: logits", LOGITS, True, saved_logits),
    Claim("saved = reloaded: weights, config", CONTENT, True, saved_content),
    Claim("remote code = native", LOGITS, False, remote_logits),
    Claim("another plan and back = itself", LOGITS, True, plan_and_back),
    Claim("loaded with own plan = itself", LOGITS, True, loaded_at_own_plan),
    Claim("full plan = teacher", LOGITS, True, partial(teacher_at_plan, full=True)),
    Claim("teacher loaded = set to the plan", LOGITS, True, partial(teacher_at_plan, full=False)),
    Claim("model runs the plan", LAYERS, True, runs_plan),
    Claim("model fits the teacher", FIELDS, True, fits_teacher),
]
