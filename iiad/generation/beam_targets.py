"""A teacher's own beams as targets: pairs for sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947).

The folder holds pairs.jsonl, rows of `source` and `target` that training reads as any pairs, and beams.json, the
record of teacher, sources and settings. Legend: B sources of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from iiad.artefacts import Count, Journal, Record
from iiad.checkpoints import (
    choose_device,
    choose_dtype,
    load_config,
    load_identified,
    read_limits,
    require_kind,
)
from iiad.data import (
    PAIR,
    PairCorpus,
    PairLimits,
    load_tokenizer,
    pack_for,
    read_rows,
    resolve_inputs,
    tokenizer_fingerprint,
)
from iiad.errors import InputError
from iiad.files import atomic_file, file_sha256
from iiad.identities import DataIdentity
from iiad.outputs import lock_folder, require_capture_folder
from iiad.progress import print_status, progress

from .beam_record import BEAMS, BeamRecord
from .guards import end_tokens
from .prompting import Prompting, prompting
from .searching import Search, decode, search_all

__all__ = ["PAIRS", "capture_beams"]

PAIRS, JOURNAL = "pairs.jsonl", "beams.partial.jsonl"
ROWS_AT_ONCE = 256
"""Sources of which a kill can lose the targets."""
MOST_NEW_TOKENS = 128


class MadeTargets(Record):
    """Targets of some sources, in their order; finished: whether each came to its end."""

    first: Count
    targets: list[str]
    finished: list[bool]


def capture_beams(
    teacher_folder: str | Path,
    inputs: Sequence[str],
    output_dir: str | Path,
    *,
    num_beams: int,
    length_penalty: float | None = None,
    max_new_tokens: int | None = None,
    limits: PairLimits | None = None,
    batch_size: int = 8,
    device: str | None = None,
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
    resume: bool = False,
) -> BeamRecord:
    """Write what the teacher makes of each source, by beams, as pairs to learn from.

    teacher_folder: an encoder-decoder with its tokenizer, or a hub name; it runs its own plan.
    inputs: pairs, of which the targets are not read. output_dir: a new folder.
    length_penalty, max_new_tokens: as of `Search`; default: 1, and 128 or what the model has positions for.
    limits: of the pairs that are read; default: sources within the model's positions, whatever their targets.
    batch_size: sources at a time. device, dtype: default: CUDA where there is one, float32 on the CPU.
    resume: go on with the sources that an interrupted call did not come to.

    Raises InputError where a model, pairs, folder or value cannot be used, or what is to be resumed is of something
    else.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    config = load_config(teacher_folder)
    require_kind(teacher_folder, config, "pair")
    positions, _ = read_limits(teacher_folder)
    most = min(MOST_NEW_TOKENS, positions - 1) if max_new_tokens is None else max_new_tokens
    search = Search(most, num_beams, length_penalty)
    limits = limits or PairLimits()
    if not 2 <= (limits.source or positions) <= positions:
        raise InputError(
            f"max_source_tokens: expected 2 to {positions}, the teacher's positions, got {limits.source}"
        )
    limits = limits._replace(source=limits.source or positions)
    with lock_folder(output_dir):
        folder = require_capture_folder(Path(output_dir), resume, BEAMS, JOURNAL, "targets")
        sources, tokenizer = resolve_inputs(inputs, "train"), load_tokenizer(teacher_folder)
        where = f"{teacher_folder}: data"
        corpus = pack_for(config, sources, tokenizer, where=where, cache_dir=cache_dir, limits=limits)
        assert isinstance(corpus, PairCorpus)  # as an encoder-decoder reads
        model, identity = load_identified(teacher_folder, device, dtype, cast=True, kind="pair")
        kind = prompting(model, tokenizer)
        used = corpus.lengths[:, 0]
        record = BeamRecord(
            teacher=identity,
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            data=DataIdentity(names=list(inputs), fingerprint=corpus.fingerprint, num_tokens=int(used.sum())),
            dtype=dtype,
            num_beams=num_beams,
            length_penalty=search.options().get("length_penalty"),
            max_new_tokens=most,
            num_pairs=len(used),
            num_left_out=corpus.num_left_out,
            num_empty=0,
            num_unfinished=0,
        )
        made = _make_targets(kind, corpus, search, folder, record, batch_size)
        return _write(folder, record, corpus, sources, made)


def _make_targets(
    kind: Prompting,
    corpus: PairCorpus,
    search: Search,
    folder: Path,
    record: BeamRecord,
    batch_size: int,
) -> list[MadeTargets]:
    """Make the targets that are not there yet, and note some at a time."""
    heading = {
        "kind": "unfinished beams",
        **record.model_dump(exclude={"iiad_version": True, "teacher": {"name"}}),
    }
    journal = Journal(folder / JOURNAL, heading, MadeTargets)
    made, num_pairs, ends = journal.read(), corpus.num_documents, end_tokens(kind.model)
    done = sum(len(part.targets) for part in made)
    starts = [sum(len(part.targets) for part in made[:number]) for number in range(len(made))]
    if done > num_pairs or starts != [part.first for part in made]:
        raise InputError(f"{journal.path}: expected targets of {num_pairs} sources in order, got others")
    for number in range(done, num_pairs):  # before anything is written
        kind.require_room(corpus.row(number)[0].tolist(), search.max_new_tokens)
    journal.start(made)
    if done:
        print_status(f"{done:,} targets were made before")
    with progress("capturing", num_pairs - done, "targets") as advance:
        for first in range(done, num_pairs, ROWS_AT_ONCE):
            numbers = range(first, min(first + ROWS_AT_ONCE, num_pairs))
            prompts = [corpus.row(number)[0].tolist() for number in numbers]
            with torch.inference_mode():
                new = search_all(kind, prompts, search, batch_size, advance)
            targets = [decode(kind, *pair).strip() for pair in zip(prompts, new, strict=True)]
            finished = [bool(tokens) and tokens[-1] in ends for tokens in new]
            made.append(MadeTargets(first=first, targets=targets, finished=finished))
            journal.append(made[-1])
    return made


def _write(
    folder: Path, record: BeamRecord, corpus: PairCorpus, sources: Sequence[Any], made: list[MadeTargets]
) -> BeamRecord:
    """Write pairs and record, then take the journal away."""
    targets = [target for part in made for target in part.targets]
    num_empty = targets.count("")
    if num_empty == len(targets):
        raise InputError("teacher: expected texts of at least one source, got none: is it the trained model?")
    with atomic_file(folder / PAIRS) as file:
        for source, target in zip(_used(sources, corpus), targets, strict=True):
            if target:
                row = dict(zip(PAIR, (source, target), strict=True))
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    unfinished = [end for part in made for end in part.finished].count(False)
    record = record.model_copy(
        update={
            "num_pairs": len(targets) - num_empty,
            "num_empty": num_empty,
            "num_unfinished": unfinished,
            "sha256": file_sha256(folder / PAIRS),
        }
    )
    record.save(folder / BEAMS)
    (folder / JOURNAL).unlink()
    return record


def _used(sources: Sequence[Any], corpus: PairCorpus) -> Iterator[str]:
    """Yield the source of each pair that the limits left."""
    used = iter(corpus.numbers.tolist())
    wanted = next(used, None)
    rows = (values[0] for file in sources for _, values in read_rows(file, PAIR))
    for number, source in enumerate(rows):
        if number == wanted:
            yield source
            wanted = next(used, None)
