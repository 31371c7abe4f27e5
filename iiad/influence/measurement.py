"""`iiad profile`: from a model folder and text to a profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from iiad.artefacts import DataIdentity, Journal, ModelIdentity
from iiad.checkpoints import choose_device, choose_dtype, label_models, load_identified, read_limits
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs
from iiad.errors import InputError
from iiad.memory import memory_explained
from iiad.models import IIETForCausalLM
from iiad.progress import print_status, progress

from .calibration import calibration_batches, sample_blocks
from .partial_profile import profile_journal
from .profile import METRICS, BatchRecord, Profile, ProfileSettings
from .profiler import num_profile_evaluations, profile_batch, require_iterations, require_metrics

__all__ = ["CalibrationSet", "as_data_sets", "draw_calibration", "measure_influence"]

LONGEST_DEFAULT_BLOCK = 512


@dataclass(frozen=True)
class CalibrationSet:
    """Blocks drawn of one data set."""

    blocks: TokenBlocks
    indices: list[int]
    identity: DataIdentity

    @property
    def num_tokens(self) -> int:
        """Tokens that were drawn."""
        return len(self.indices) * self.blocks.block_size

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The drawn blocks as batches (B, T); the last may be smaller."""
        return calibration_batches(self.blocks, self.indices, batch_size)


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
    cache_dir: str | Path | None = None,
    output: str | Path | None = None,
    resume: bool = False,
) -> Profile:
    """Score what each iteration of a model contributes on a sample of a text's blocks.

    Args:
        model: a folder, with its tokenizer, or a hub name.
        data: files, patterns, folders or `stdlib`, which here is its training split. Several lists of them are
            several data sets, of each of which blocks are drawn; the profile can then tell them apart.
        metrics: names from `METRICS`; default: all of them.
        text_field: the jsonl field or parquet column with the text.
        block_size: tokens of a block; default: 512, or the model's context where that is less.
        batch_size: blocks at a time.
        max_tokens: tokens to draw of each data set, as whole blocks from all of it; None: all of it.
        seed: of the draw.
        device: default: CUDA where there is one, else the CPU.
        dtype: weights are put in it, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.
        memory: bytes that the pass may take beside the weights; the scores do not depend on it.
        cache_dir: where tokenized text is kept.
        output: where the profile is written when it is done, and beside it, until then, the finished batches.
            Default: nothing is written.
        resume: go on from the finished batches of an earlier call that was interrupted, if there are any.

    Raises InputError for a model without iterations, and where a model, a file or a value cannot be used or memory
    runs out; what is finished then can be resumed.
    """
    chosen = list(dict.fromkeys(metrics or METRICS))
    require_metrics(chosen)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    context, _ = read_limits(model)
    block_size = block_size or min(LONGEST_DEFAULT_BLOCK, context)
    if not 2 <= block_size <= context:
        raise InputError(f"block_size: found {block_size}; accepted: 2 to {context}, the model's context")
    settings = ProfileSettings(
        block_size=block_size, batch_size=batch_size, max_tokens=max_tokens, seed=seed, dtype=dtype
    )
    for names in as_data_sets(data):
        resolve_inputs(names, "train")  # a missing file is found before a model is loaded
    teacher, identity = load_identified(model, device, dtype, cast=True)
    require_iterations(teacher)
    sets = draw_calibration(model, data, settings, text_field, cache_dir)
    journal, finished = None, []
    if output is not None:
        journal = profile_journal(output, identity, [part.identity for part in sets], settings, chosen)
        if resume:
            finished = journal.read()
        else:
            journal.remove()
    where = f"profiling {label_models([model])[0]} on {device}"
    remedies = ["a smaller batch", "shorter blocks", "bfloat16"]
    remedies += [] if memory is None else ["less memory for the pass (memory_gib)"]
    with memory_explained(where, teacher, batch_size, block_size, cached=False, remedies=remedies):
        records = _run(teacher, identity, sets, chosen, batch_size, memory, journal, finished)
    profile = Profile.of(records, identity, [part.identity for part in sets], settings)
    if output is not None and journal is not None:
        profile.save(output)
        journal.remove()
    return profile


def as_data_sets(data: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """One list of names is one data set; several lists are several. Raises InputError for none."""
    names = [part for part in data if isinstance(part, str)]
    sets = [list(part) for part in data if not isinstance(part, str)]
    sets = [names, *sets] if names else sets
    if not sets or not all(sets):
        raise InputError("data: found none; accepted: files, patterns, folders or stdlib")
    return sets


def draw_calibration(
    model: str | Path,
    data: Sequence[str] | Sequence[Sequence[str]],
    settings: ProfileSettings,
    text_field: str = "text",
    cache_dir: str | Path | None = None,
    split: str = "train",
) -> list[CalibrationSet]:
    """Tokenize each data set and draw its blocks.

    split: of `stdlib`, where no split is named. Raises InputError where text or tokenizer cannot be used.
    """
    tokenizer = load_tokenizer(model)
    drawn = []
    for names in as_data_sets(data):
        corpus = pack(resolve_inputs(names, split), tokenizer, text_field=text_field, cache_dir=cache_dir)
        blocks = TokenBlocks(corpus, settings.block_size)
        indices = sample_blocks(len(blocks), settings.block_size, settings.max_tokens, settings.seed)
        # The names as given: those of the embedded corpus run to hundreds, and the fingerprint covers their content.
        num_tokens = len(indices) * settings.block_size
        identity = DataIdentity(names=names, fingerprint=corpus.fingerprint, num_tokens=num_tokens)
        drawn.append(CalibrationSet(blocks, indices, identity))
    return drawn


def _run(
    teacher: IIETForCausalLM,
    identity: ModelIdentity,
    sets: Sequence[CalibrationSet],
    metrics: Sequence[str],
    batch_size: int,
    memory: int | None,
    journal: Journal[BatchRecord] | None,
    finished: Sequence[BatchRecord],
) -> list[BatchRecord]:
    """Return the records of all batches of all sets; the finished ones are not measured again."""
    records = list(finished)
    total = sum(part.num_tokens for part in sets)
    times = num_profile_evaluations(identity, metrics) / identity.num_evaluations
    print_status(f"{total:,} tokens, at the cost of {times:.1f} forward passes")
    if finished:
        print_status(f"{len(finished)} batches were finished before")
    batches = ((number, batch) for number, part in enumerate(sets) for batch in part.batches(batch_size))
    left = total - sum(record.num_tokens for record in records)
    with progress("profiling", left, "tokens") as advance:
        for index, (number, batch) in enumerate(batches):
            if index < len(finished):
                continue
            where = f"batch {index + 1}"
            record = profile_batch(teacher, batch, metrics, data=number, memory=memory, where=where)
            records.append(record)
            if journal is not None and index == len(finished):
                journal.start(records)  # without a last line that was cut off
            elif journal is not None:
                journal.append(record)
            advance(record.num_tokens)
    return records
