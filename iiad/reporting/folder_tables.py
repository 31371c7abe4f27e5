"""Folders in a few named lines: a run and where it is, a model and its plan, signals and how many are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iiad.checkpoints.summary import ModelSummary
from iiad.progress import format_duration
from iiad.training.run_status import RunStatus, StageStatus

__all__ = ["describe_model", "describe_run", "describe_state"]

_FIGURES = {
    "loss": "loss {:.4f}",
    "eval_loss": "validation {:.4f}",
    "retained": "retained {:.2%}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tokens/s",
}


def describe_state(finished: bool, running: str | None) -> str:
    """Say whether a folder's work is finished, or who does it now."""
    if running is not None:
        return f"running ({running})"
    return "finished" if finished else "unfinished, not running: go on with --resume"


def describe_run(run: RunStatus) -> str:
    """Return what `iiad show` prints of a run's folder."""
    lines = [("", f"{run.folder}: iiad {run.command}, {describe_state(run.finished, run.running)}")]
    for stage in run.stages:
        lines.append((stage.name, _describe_stage(stage)))
        if stage.checkpoints:
            lines.append(("", f"checkpoints: {_checkpoints(stage)}"))
    if run.seconds_left is not None and not run.finished:
        left = format_duration(run.seconds_left)
        lines.append(("time left", f"about {left}" if run.running else f"about {left} once it goes on"))
    if run.model is not None:
        lines += _model_lines(run.model)
    if run.results:
        single = {name: value for name, value in run.results.items() if not isinstance(value, list)}
        results = (f"{name.replace('_', ' ')} {_number(value)}" for name, value in single.items())
        lines.append(("results", ", ".join(results)))
    return "\n".join(f"  {name:12} {text}" if number else text for number, (name, text) in enumerate(lines))


def describe_model(model: ModelSummary) -> str:
    """Return what `iiad show` prints of a model folder."""
    return "\n".join(
        [f"{model.folder}: a model", *(f"  {name:12} {text}" for name, text in _model_lines(model))]
    )


def _describe_stage(stage: StageStatus) -> str:
    figures = [
        form.format(stage.figures[name])
        for name, form in _FIGURES.items()
        if isinstance(stage.figures.get(name), int | float)
    ]
    return ", ".join([f"step {stage.step:,} of {stage.max_steps:,}", *figures])


def _checkpoints(stage: StageStatus) -> str:
    return ", ".join(f"{name} (best)" if name == stage.best else name for name in stage.checkpoints)


def _model_lines(model: ModelSummary) -> Iterator[tuple[str, str]]:
    sizes = {"layers": model.num_layers, "width": model.hidden_size, "vocabulary": model.vocab_size}
    parts = [model.model_type, f"{model.num_parameters:,} parameters"]
    yield (
        "model",
        ", ".join([*parts, *(f"{name} {size:,}" for name, size in sizes.items() if size is not None)]),
    )
    if model.num_iterations is not None:
        counts, split = [str(r) for r in model.num_iterations], model.num_encoder_layers or 0
        plan = " ".join([*counts[:split], *(["|"] if split else []), *counts[split:]])
        yield "plan", f"{plan} iterations, {model.num_evaluations} block evaluations per token"
    if model.plans:
        yield "elastic", f"trained for the plans {', '.join(plan.name for plan in model.plans)}"
    if model.cache_policy is not None:
        yield "cache", f"{model.cache_policy} policy"


def _number(value: Any) -> str:
    form = ".4f" if isinstance(value, float) else "," if type(value) is int else ""
    return format(value, form) if form else str(value)
