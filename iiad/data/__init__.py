"""Text, labelled rows and pairs to tokens: sources, tasks, documents, tokenizers, corpora, and blocks for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .documents import read_documents, require_readable
from .sources import (
    KNOWN_SUFFIXES,
    AnySource,
    FileSource,
    ParallelSource,
    Source,
    TaskSource,
    input_paths,
    resolve_inputs,
)
from .tasks import TASKS, parse_task
from .tokenizers import load_tokenizer, start_token_id, task_tokenizer, tokenizer_fingerprint, train_tokenizer

if TYPE_CHECKING:
    from .blocks import (
        AnyBlocks,
        AnyCorpus,
        EqualBatches,
        RowBlocks,
        TokenBlocks,
        Window,
        evaluation_windows,
        make_blocks,
        model_inputs,
        next_labels,
        output_labels,
        stack_inputs,
    )
    from .corpus import TokenCorpus
    from .labelled import LabelledCorpus
    from .packing import pack, pack_for
    from .pair_blocks import PairBlocks
    from .pairs import PairCorpus, PairLimits, limit_pairs
    from .rows import PAIR, read_rows, read_texts, row_fields

__all__ = [
    "KNOWN_SUFFIXES",
    "PAIR",
    "TASKS",
    "AnyBlocks",
    "AnyCorpus",
    "AnySource",
    "EqualBatches",
    "FileSource",
    "LabelledCorpus",
    "PairBlocks",
    "PairCorpus",
    "PairLimits",
    "ParallelSource",
    "RowBlocks",
    "Source",
    "TaskSource",
    "TokenBlocks",
    "TokenCorpus",
    "Window",
    "evaluation_windows",
    "input_paths",
    "limit_pairs",
    "load_tokenizer",
    "make_blocks",
    "model_inputs",
    "next_labels",
    "output_labels",
    "pack",
    "pack_for",
    "parse_task",
    "read_documents",
    "read_rows",
    "read_texts",
    "require_readable",
    "resolve_inputs",
    "row_fields",
    "stack_inputs",
    "start_token_id",
    "task_tokenizer",
    "tokenizer_fingerprint",
    "train_tokenizer",
]

__getattr__ = lazy_names(
    __name__,
    {
        "blocks": [
            "AnyBlocks",
            "AnyCorpus",
            "EqualBatches",
            "RowBlocks",
            "TokenBlocks",
            "Window",
            "evaluation_windows",
            "make_blocks",
            "model_inputs",
            "next_labels",
            "output_labels",
            "stack_inputs",
        ],
        "corpus": ["TokenCorpus"],
        "labelled": ["LabelledCorpus"],
        "packing": ["pack", "pack_for"],
        "pair_blocks": ["PairBlocks"],
        "pairs": ["PairCorpus", "PairLimits", "limit_pairs"],
        "rows": ["PAIR", "read_rows", "read_texts", "row_fields"],
    },
)
