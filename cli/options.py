"""Options that several commands share, `--data` with several values, and inputs that are checked first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from iiad.errors import InputError, require_seed
from iiad.outputs import lock_file, require_apart, require_new_file

if TYPE_CHECKING:
    from iiad.data import PairLimits

__all__ = [
    "BOUNDS",
    "RECIPE_HELP",
    "CachePolicy",
    "CutSources",
    "Details",
    "Device",
    "Dtype",
    "MaxMinutes",
    "MaxSourceTokens",
    "MaxTargetTokens",
    "Overwrite",
    "Quantize",
    "Recipe",
    "Resume",
    "Seed",
    "Settings",
    "TextField",
    "TrustRemoteCode",
    "all_data",
    "claim_outputs",
    "gather_data",
    "locks",
    "pair_limits",
    "refuse_options",
    "require_bounds",
    "require_budget",
    "require_models",
    "require_plan",
    "require_tasks",
    "require_text",
    "require_text_metrics",
    "split_data",
]

RECIPE_HELP = "A YAML recipe, or the name of one that ships with iiad."
Recipe = Annotated[str, typer.Argument(help=RECIPE_HELP)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Set a field of the recipe. Repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")]
MaxMinutes = Annotated[
    float | None, typer.Option(help="Save and leave with exit code 75 after this time, as on SIGTERM.")
]
CachePolicy = Annotated[
    str | None,
    typer.Option(help="Refuse weights unless for exact (a cache slot per evaluation) or shared (per layer)."),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32 or bfloat16. Default: float32 on the CPU, else bfloat16.")
]
Quantize = Annotated[
    list[str] | None,
    typer.Option(help="int8 or int4: add the first model with the weights of its blocks so. Repeatable."),
]


def _enter_trust(context: typer.Context, trusted: bool) -> bool:
    """Trust remote code, if so asked, until the command ends."""
    from iiad.folders import trust_remote_code

    context.with_resource(trust_remote_code(trusted))
    return trusted


Seed = Annotated[int, typer.Option(help="Seed of what is drawn at random.", callback=require_seed)]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        callback=_enter_trust,
        is_eager=True,  # before the callbacks that look at models
        help="Run the Python code that a model's folder or repository brings or names (auto_map). It can do all that "
        "you can: use it only for models whose code you have read.",
    ),
]
Details = Annotated[
    bool, typer.Option("--details", help="Show all tables and rows, also those that say little.")
]
TextField = Annotated[str, typer.Option(help="jsonl field or parquet column with the text.")]
MaxSourceTokens = Annotated[
    int | None, typer.Option(help="Of pairs: leave out those whose source is longer, its end counted.")
]
MaxTargetTokens = Annotated[
    int | None, typer.Option(help="Of pairs: leave out those whose target is longer, its end counted.")
]
CutSources = Annotated[
    bool, typer.Option("--cut-sources", help="Cut sources above --max-source-tokens instead.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]

BOUNDS: dict[str, tuple[float, float]] = {
    "batch_size": (1, 2**20),
    "beam": (1, 2**10),
    "block_size": (1, 2**24),
    "blocks_per_shard": (1, 2**30),
    "compute_cut": (0, 1),
    "context": (1, 2**40),
    "draft_length": (1, 2**10),
    "iterations": (0, 1000),
    "jobs": (1, 1024),
    "length_penalty": (-100, 100),
    "limit": (0, 2**40),
    "max_cache_bytes": (1, 2**60),
    "max_evaluations": (1, 2**40),
    "max_iterations": (0, 1000),
    "max_latency_ms": (0, 10**12),
    "max_minutes": (0, 10**6),
    "max_new_tokens": (1, 2**24),
    "max_score": (-1e100, 1e100),
    "max_source_tokens": (2, 2**24),
    "source_tokens": (1, 2**24),
    "target_tokens": (1, 2**24),
    "max_target_tokens": (2, 2**24),
    "max_tokens": (2, 2**40),
    "memory_gib": (0, 2**20),
    "min_iterations": (0, 1000),
    "minutes": (0, 10**6),
    "new_tokens": (1, 2**24),
    "num_beams": (1, 2**10),
    "num_fewshot": (0, 2**10),
    "num_samples": (1, 2**16),
    "overhead_cut": (0, 1),
    "prompt_tokens": (1, 2**24),
    "repeats": (1, 10**4),
    "retain": (0, 1),
    "seed": (0, 2**31 - 1),
    "speedup": (0, 10**12),
    "temperature": (0, 100),
    "threshold": (0, 1e100),
    "tolerance_for": (0, 1),
    "top_k": (1, 2**24),
    "top_p": (0, 1),
}
"""Least and most of every option that is a number, whatever the command; what a model or text allows is less."""

Given = TypeVar("Given")

_OF_SEVERAL = ("--data", "--tasks", "--task-data", "--metrics")
_SEPARATOR = "\0"  # no argument of a process can hold it

locks = ExitStack()
"""Locks of the outputs of the command that runs; released when it ends."""


def require_bounds(options: Mapping[str, Any]) -> None:
    """Raise InputError for the first option out of its bounds; NaN is."""
    for name, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, int | float) and not isinstance(value, bool):
                low, high = BOUNDS[name]
                if not low <= value <= high:
                    raise InputError(f"{name}: expected from {low:,} to {high:,}, got {value}")


def claim_outputs(
    inputs: Iterable[str | Path | None],
    texts: Iterable[str] = (),
    *,
    files: Mapping[str, Path | None] | None = None,
    folders: Mapping[str, Path | None] | None = None,
    overwrite: bool = False,
) -> None:
    """Require outputs apart from the inputs, and files that are new unless they may be replaced; lock the files.

    inputs, files, folders: as `require_apart` takes them; texts: as `resolve_inputs`. Raises InputError.
    """
    from iiad.data import input_paths

    require_apart(inputs, [path for text in texts for path in input_paths(text)], files, folders)
    for path in (files or {}).values():
        if path is not None:
            locks.enter_context(lock_file(path))
            require_new_file(path, overwrite)


def pair_limits(
    context: typer.Context, max_source_tokens: int | None, max_target_tokens: int | None, cut_sources: bool
) -> PairLimits | None:
    """Return what the options say, None for none. Raises InputError for cuts without a limit."""
    from iiad.data import PairLimits

    if max_source_tokens is None:
        refuse_options(context, "without --max-source-tokens", "cut_sources")
    limits = PairLimits(max_source_tokens, max_target_tokens, cut_sources)
    return None if limits == PairLimits() else limits


def refuse_options(context: typer.Context, why: str, *names: str) -> None:
    """Raise InputError for the first of these parameters that the command line gives: they do not apply, and why."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in names and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[0]}: expected none {why}, got {context.params[name]}")


def gather_data(arguments: list[str]) -> list[str]:
    """Join the values after each option of several values, up to the next option, into one value.

    So `--data texts/*.jsonl` takes what a shell makes of it; `split_data` takes the value apart again.
    """
    gathered: list[str] = []
    taking = False
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            taking = argument in _OF_SEVERAL
        elif taking and gathered[-1] not in _OF_SEVERAL:
            gathered[-1] += _SEPARATOR + argument
            continue
        gathered.append(argument)
    return gathered


def split_data(values: list[str]) -> list[list[str]]:
    """Return a data set per `--data`: `--data a b --data c` is [[a, b], [c]]."""
    return [value.split(_SEPARATOR) for value in values]


def all_data(values: list[str]) -> list[str]:
    """Return everything given to any `--data`, or another option of several values, as one list."""
    return [name for names in split_data(values) for name in names]


# Callbacks of options: run while the command line is read, so that what is missing is refused before torch is loaded.


def require_models(models: Given) -> Given:
    """Return the model folders or hub names as given. Raises InputError for a folder without a model."""
    from iiad.folders import require_model

    for model in models if isinstance(models, list) else [models]:
        if model not in (None, "self", "auto"):  # the last two: drafts
            require_model(str(model))
    return models


def require_text(data: Given) -> Given:
    """Return the values of --data as given. Raises InputError with those that name no file of text."""
    from iiad.data import input_paths, resolve_inputs

    names = all_data(data) if isinstance(data, list) else []
    if files := [name for name in names if input_paths(name)]:
        resolve_inputs(files)
    return data


def require_tasks(tasks: Given) -> Given:
    """Return the values of --tasks as given.

    Raises InputError for a folder or file without --trust-remote-code, and where the harness is not installed.
    """
    if isinstance(tasks, list) and tasks:
        from iiad.evaluation.harness import require_harness
        from iiad.folders import has_trust

        for name in all_data(tasks):
            if Path(name).exists() and not has_trust():
                what = "--trust-remote-code with a folder or file, whose Python and templates are run"
                raise InputError(f"tasks: expected {what}, got {name} without it")
        require_harness()
    return tasks


def require_text_metrics(metrics: Given) -> Given:
    """Return the values of --metrics as given. Raises InputError for another metric, or without its package."""
    if isinstance(metrics, list) and metrics:
        from iiad.evaluation.text_metrics import require_metrics

        require_metrics(all_data(metrics))
    return metrics


def require_plan(plan: Given) -> Given:
    """Return the plan as given. Raises InputError for a file that is no plan, or not there.

    A word without a suffix that names no file may be a plan that the model lists.
    """
    from iiad.planning.binding import read_plan

    if isinstance(plan, str) and (Path(plan).is_file() or Path(plan).suffix == ".json"):
        read_plan(plan)
    return plan


def require_budget(plan: Given) -> Given:
    """Return the path of a plan or a family as given. Raises InputError for another file."""
    from iiad.planning.family import read_budget

    read_budget(plan if isinstance(plan, Path) else None)
    return plan
