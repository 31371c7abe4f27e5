"""`iiad profile`: from a model folder and text to a profile.

Legend: B blocks of a batch, T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from iiad.artefacts import Journal
from iiad.checkpoints import (
    choose_device,
    choose_dtype,
    label_models,
    load_identified,
    read_limits,
)
from iiad.data import (
    PairLimits,
    resolve_inputs,
)
from iiad.errors import InputError
from iiad.files import MOST_JSON_BYTES
from iiad.identities import DataIdentity, ModelIdentity
from iiad.memory import memory_explained, weight_bytes
from iiad.outputs import lock_file
from iiad.progress import format_size, print_status, progress

from .batches import IteratedModel, require_iterations
from .calibration import CalibrationSet, as_data_sets, batch_sizes, draw_calibration, numbered_batches
from .convergence import TOLERANCES
from .profile import METRICS, BatchRecord, Profile, ProfileSettings
from .profiler import USUAL, kept_bytes, num_profile_evaluations, profile_batch, require_metrics

__all__ = [
    "measure_influence",
    "partial_path",
    "require_no_partial",
]

LONGEST_DEFAULT_BLOCK = 512
BYTES_PER_NUMBER = 25  # in a profile's file, indented


def measure_influence(
    model: str | Path,
    data: Sequence[str] | Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] | None = None,
    text_field: str = "text",
    block_size: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = 65536,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    memory: int | None = None,
    extrapolate: bool = False,
    cache_dir: str | Path | None = None,
    limits: PairLimits | None = None,
    output: str | Path | None = None,
    resume: bool = False,
) -> Profile:
    """Score each iteration of a model on blocks drawn from a text.

    model: a folder, with its tokenizer, or a hub name; an encoder-decoder is given pairs.
    data: files, patterns, folders or `stdlib` (its training split). Several lists of them are several data sets:
        blocks are drawn of each, and the profile tells them apart.
    metrics: names from `METRICS`; default: all.
    text_field: the jsonl field or parquet column with the text.
    block_size: tokens of a block; default: 512, or the model's context where that is less. Pairs with a longer source
        or target are left out, and counted. batch_size: blocks.
    max_tokens: to draw of each data set, as whole blocks from all of it, of pairs both sides; None: all of it.
    seed: of the draw.
    device: default: CUDA where there is one, else the CPU.
    dtype: of the weights, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.
    memory: bytes that may be taken beside the weights; see `profile_batch`. extrapolate: score stops extrapolated,
        likewise. cache_dir: for tokenized text.
    limits: of pairs: leave out longer ones, or cut their sources.
    output: file for the profile and, until it is finished, beside it one for the finished batches.
        Default: nothing is written.
    resume: continue from the finished batches of an interrupted call, if there are any.

    Raises InputError for a model without iterations, where a model, a file or a value cannot be used, where another
    process writes this output, and where memory runs out; finished batches can be resumed.
    """
    chosen = list(dict.fromkeys(metrics or METRICS))
    require_metrics(chosen)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    context, _ = read_limits(model)
    block_size = block_size or min(LONGEST_DEFAULT_BLOCK, context)
    if not 2 <= block_size <= context:
        raise InputError(f"block_size: expected 2 to {context}, the model's context, got {block_size}")
    settings = ProfileSettings(
        block_size=block_size,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
        dtype=dtype,
        extrapolate=extrapolate,
    )
    for names in as_data_sets(data):
        resolve_inputs(names, "train")  # a missing file is found before a model is loaded
    teacher, identity = load_identified(model, device, dtype, cast=True, kind=None)
    require_iterations(teacher)
    if identity.tolerance is not None:
        identity = identity.model_copy(update={"tolerance": None})
        teacher.follow_plan(identity)
        print_status("profiled without its tolerance: all iterations run")
    sets = draw_calibration(model, data, settings, text_field, cache_dir, limits=limits)
    _require_small(identity, sets, chosen, batch_size)
    identities = [part.identity for part in sets]
    where = f"profiling {label_models([model])[0]} on {device}"
    remedies = ["a smaller batch", "shorter blocks", "bfloat16"]
    with (
        nullcontext() if output is None else lock_file(output),
        memory_explained(where, teacher, batch_size, block_size, cached=False, remedies=remedies),
    ):
        journal = None if output is None else _open_journal(output, identity, identities, settings, chosen)
        if journal is not None and not resume:
            journal.remove()
        records = _measure(teacher, identity, sets, chosen, settings, memory, journal)
        profile = Profile.of(records, identity, identities, settings)
        if output is not None and journal is not None:
            profile.save(output)
            journal.remove()
    return profile


def _measure(
    teacher: IteratedModel,
    identity: ModelIdentity,
    sets: Sequence[CalibrationSet],
    metrics: Sequence[str],
    settings: ProfileSettings,
    memory: int | None,
    journal: Journal[BatchRecord] | None,
) -> list[BatchRecord]:
    """Return the records of all batches of all sets; those in the journal are not measured again."""
    batch_size = settings.batch_size
    records = _read_finished(journal, identity, sets, metrics, batch_size) if journal is not None else []
    if journal is not None:
        journal.start(records)  # without a last line that was cut off
    num_finished, total = len(records), sum(part.identity.num_tokens for part in sets)
    times = num_profile_evaluations(identity, metrics) / identity.num_evaluations
    sizes = batch_sizes(sets, batch_size)
    largest = max(kept_bytes(teacher, *size) for size in sizes)
    taken = format_size(int(USUAL * largest) if memory is None else max(memory, largest))
    print_status(
        f"{total:,} tokens, at the cost of {times:.1f} forward passes; about {taken} beside "
        f"weights of {format_size(weight_bytes(teacher))}"
    )
    if records:
        print_status(f"{num_finished} batches were finished before")
    positions = [rows * sum(lengths) for rows, lengths in sizes]
    with progress("profiling", sum(positions[num_finished:]), "tokens") as advance:
        for index, (number, batch) in enumerate(numbered_batches(sets, batch_size)):
            if index < num_finished:
                continue
            record = profile_batch(
                teacher,
                batch,
                metrics,
                extrapolate=settings.extrapolate,
                data=number,
                memory=memory,
                where=f"batch {index + 1}",
                advance=partial(_advance, advance, positions[index]),
            )
            records.append(record)
            if journal is not None:
                journal.append(record)
    return records


def _advance(advance: Callable[[float], None], size: int, share: float) -> None:
    advance(share * size)


def _require_small(
    identity: ModelIdentity, sets: Sequence[CalibrationSet], metrics: Sequence[str], batch_size: int
) -> None:
    """Raise InputError for a profile that would be larger than what is read as an artefact."""
    steps = sum(identity.num_iterations) + identity.num_layers * (identity.num_start_evaluations - 1)
    each = len(metrics) + 6 + (len(TOLERANCES) if identity.cache_policy == "shared" else 0)
    size = len(batch_sizes(sets, batch_size)) * steps * each * BYTES_PER_NUMBER
    if size > MOST_JSON_BYTES:
        raise InputError(
            f"batch_size: expected larger batches, or a lower max_tokens: a profile of about {format_size(size)} "
            f"would exceed the {format_size(MOST_JSON_BYTES)} that can be read, got {batch_size}"
        )


def _read_finished(
    journal: Journal[BatchRecord],
    identity: ModelIdentity,
    sets: Sequence[CalibrationSet],
    metrics: Sequence[str],
    batch_size: int,
) -> list[BatchRecord]:
    """Return the batches of a journal. Raises InputError where they cannot be the first ones of this measurement."""
    records = journal.read()
    num_batches = len(batch_sizes(sets, batch_size))
    for number, record in enumerate(records, 1):
        where = f"{journal.path}: line {number + 1}"
        if number > num_batches:
            raise InputError(f"{where}: expected {num_batches} batches, got more")
        try:
            record.require_fit(identity, len(sets), metrics, whole=True)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
    return records


def partial_path(output: str | Path) -> Path:
    """The file with the finished batches of the profile `output` until that is written."""
    return Path(f"{output}.partial")


def require_no_partial(output: str | Path) -> None:
    """Raise InputError where an interrupted run left batches of this profile."""
    path = partial_path(output)
    if path.exists():
        raise InputError(
            f"{path}: expected no batches of an interrupted run; continue it with --resume, or start again with "
            "--overwrite"
        )


def _open_journal(
    output: str | Path,
    model: ModelIdentity,
    data: Sequence[DataIdentity],
    settings: ProfileSettings,
    metrics: Sequence[str],
) -> Journal[BatchRecord]:
    """The journal of finished batches, bound to all that their scores depend on."""
    heading = {
        "kind": "unfinished profile",
        "model": model.model_dump(exclude={"name"}),
        "data": [entry.model_dump(exclude={"names"}) for entry in data],
        "settings": settings.model_dump(),
        "metrics": list(metrics),
    }
    return Journal(partial_path(output), heading, BatchRecord)
