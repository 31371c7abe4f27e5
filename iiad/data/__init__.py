"""Text and labelled rows to tokens: sources, tasks, documents, tokenizers, corpora, and blocks for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .documents import read_documents, require_readable
from .sources import KNOWN_SUFFIXES, Source, TaskSource, resolve_inputs
from .tasks import TASKS, parse_task
from .tokenizers import load_tokenizer, task_tokenizer, tokenizer_fingerprint, train_tokenizer

if TYPE_CHECKING:
    from .blocks import RowBlocks, TokenBlocks, Window, evaluation_windows, make_blocks, next_labels
    from .corpus import TokenCorpus
    from .labelled import LabelledCorpus
    from .labelled_files import labelled_fields, read_texts
    from .packing import pack

__all__ = [
    "KNOWN_SUFFIXES",
    "TASKS",
    "LabelledCorpus",
    "RowBlocks",
    "Source",
    "TaskSource",
    "TokenBlocks",
    "TokenCorpus",
    "Window",
    "evaluation_windows",
    "labelled_fields",
    "load_tokenizer",
    "make_blocks",
    "next_labels",
    "pack",
    "parse_task",
    "read_documents",
    "read_texts",
    "require_readable",
    "resolve_inputs",
    "task_tokenizer",
    "tokenizer_fingerprint",
    "train_tokenizer",
]

__getattr__ = lazy_names(
    __name__,
    {
        "blocks": ["RowBlocks", "TokenBlocks", "Window", "evaluation_windows", "make_blocks", "next_labels"],
        "corpus": ["TokenCorpus"],
        "labelled": ["LabelledCorpus"],
        "labelled_files": ["labelled_fields", "read_texts"],
        "packing": ["pack"],
    },
)
