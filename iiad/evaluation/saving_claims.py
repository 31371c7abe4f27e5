"""Claims about saving: a saved model is the model, with iiad or without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from iiad.checkpoints import read_config

from .check_subject import Subject, load_again
from .claims import CONTENT, LOGITS, Claim, Skipped, logit_difference, worst

__all__ = ["SAVING"]

SCRIPT = Path(__file__).with_name("remote_loading.py")
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
MOST_SECONDS = 600

# What says where a configuration was written and not what the model is.
_CIRCUMSTANCES = {
    "transformers_version",
    "_name_or_path",
    "auto_map",
    "architectures",
    "dtype",
    "torch_dtype",
}


def reloaded_logits(subject: Subject) -> float:
    """The saved folder, loaded again: its logits, to the last bit."""
    again = load_again(subject.saved, subject.settings)
    return logit_difference(subject.forward(again, subject.tokens), subject.logits, subject.deviation)


def reloaded_content(subject: Subject) -> float:
    """How many tensors and fields of the configuration differ, those that the plan leaves unused included."""
    again = load_again(subject.saved, subject.settings)
    tensors, others = subject.model.state_dict(), again.state_dict()
    shared = tensors.keys() & others.keys()
    different = len(tensors.keys() ^ others.keys())
    different += sum(not torch.equal(tensors[name], others[name]) for name in shared)
    fields, theirs = _fields(subject.model), _fields(again)
    return different + sum(fields.get(name) != theirs.get(name) for name in fields.keys() | theirs.keys())


def remote_logits(subject: Subject) -> float:
    """The saved folder in a process where iiad cannot be imported, by the code that lies in it.

    Logits of AutoModelForCausalLM and last hidden states of AutoModel, each against those of this process.
    """
    known = read_config(subject.saved).get("auto_map") or {}
    if not known and not type(subject.model).__module__.startswith("iiad."):
        raise Skipped(f"{type(subject.model).__name__} comes with transformers")
    missing = [name for name in AUTO_CLASSES if name not in known]
    if missing:
        raise ValueError(f"auto_map of the saved config.json: found no {', '.join(missing)}")
    found = _load_remotely(subject)
    with torch.no_grad():
        hidden = subject.model.base_model(input_ids=subject.tokens, use_cache=False).last_hidden_state
    figures = [
        logit_difference(found["logits"], subject.logits.cpu(), subject.deviation),
        logit_difference(found["hidden"], hidden.cpu(), float(hidden.double().std())),
    ]
    return worst(figures)


def _load_remotely(subject: Subject) -> dict[str, torch.Tensor]:
    """Run SCRIPT on the saved folder: what it writes. Raises RuntimeError with its last line where it fails."""
    tokens, output = subject.folder / "tokens.safetensors", subject.folder / "remote.safetensors"
    save_file({"tokens": subject.tokens.cpu()}, tokens)
    arguments = [subject.saved, tokens, output, subject.settings.device, torch.get_num_threads()]
    # -P: the script's own folder, which is iiad's, stays off the path.
    command = [sys.executable, "-P", SCRIPT, *arguments]
    modules = {"HF_MODULES_CACHE": str(subject.folder / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)),
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


def _fields(model: Any) -> dict[str, str]:
    """The configuration field by field, each as it would be written."""
    fields = {name: value for name, value in model.config.to_dict().items() if name not in _CIRCUMSTANCES}
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in fields.items()}


SAVING = [
    Claim("saved = reloaded: logits", LOGITS, True, reloaded_logits),
    Claim("saved = reloaded: weights, config", CONTENT, True, reloaded_content),
    Claim("remote code = native", LOGITS, False, remote_logits),
]
