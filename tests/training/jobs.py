"""What two processes do in test_processes.py, one job after another, so that they start up once.

Started by torchrun with a file of jobs: a list of {kind, folder, ...}. Each process writes what it found beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

import iiad.distillation.stages as distillation
import iiad.training.learner as learning
import iiad.training.teacher as teaching
from cli import main
from iiad import InputError
from iiad.distillation import LiveTeacher, distill
from iiad.errors import Unfinished
from iiad.training import train
from iiad.training.recipes import DistillRecipe, TrainRecipe

RANK = int(os.environ["RANK"])


@contextmanager
def replaced(module: Any, name: str, make: Any) -> Iterator[None]:
    """module.name is make(what it was) inside of the block."""
    original = getattr(module, name)
    setattr(module, name, make(original))
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def at_loss(number: int | None, act: Any) -> Iterator[None]:
    """act(loss) takes the place of the number-th loss, from 1, that this process finds."""
    calls = 0

    def make(original: Any) -> Any:
        def head_loss(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            found = original(*args, **kwargs)
            return found._replace(loss=act(found.loss)) if calls == number else found

        return head_loss

    with replaced(learning, "head_loss", make):
        yield


@contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Note the weights that this process ends a stage with, and which of a live teacher's parameters are sharded."""

    def make_stage(original: Any) -> Any:
        def run_stage(model: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(model, *args, **kwargs)
            weights = b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values())
            found["weights"] = hashlib.sha256(weights).hexdigest()
            return result

        return run_stage

    def make_teacher(original: Any) -> Any:
        def build(live: LiveTeacher, *args: Any, **kwargs: Any) -> None:
            original(live, *args, **kwargs)
            parameters = dict(live.learner.model.named_parameters())
            found["sharded"] = [name for name, value in parameters.items() if isinstance(value, DTensor)]
            found["whole"] = [name for name, value in parameters.items() if not isinstance(value, DTensor)]

        return build

    with (
        replaced(teaching, "run_stage", make_stage),
        replaced(distillation, "run_stage", make_stage),
        replaced(LiveTeacher, "__init__", make_teacher),
    ):
        yield


def terminate(loss: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job; what it found."""
    found: dict[str, Any] = {}
    act = {"nan": lambda loss: loss * float("nan"), "terminate": terminate}.get(job.get("act", ""))
    number = job.get("at") if job.get("rank", 1) == RANK else None
    try:
        with watched(found), at_loss(number, act):
            if job["kind"] == "train":
                train(TrainRecipe.model_validate(job["recipe"]), job["folder"], job.get("resume", False))
            elif job["kind"] == "distill":
                recipe = DistillRecipe.model_validate(job["recipe"])
                distill(job["teacher"], job["plan"], recipe, job["folder"])
            else:
                sys.argv = ["iiad", *job["arguments"]]
                with pytest.raises(SystemExit) as exit_:
                    main.run()
                found["code"] = exit_.value.code
    except (InputError, Unfinished, RuntimeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    results = {job["name"]: run(job) for job in json.loads(jobs.read_text())}
    jobs.with_name(f"found-{RANK}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
