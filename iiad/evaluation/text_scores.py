"""Scores of one model on a text: loss, accuracy and, where tokens stop by themselves, evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iiad.checkpoints import label_models
from iiad.data import (
    AnyCorpus,
    AnySource,
    LabelledCorpus,
    TokenCorpus,
    Window,
    evaluation_windows,
    load_tokenizer,
    pack_for,
)
from iiad.memory import memory_explained
from iiad.models import count_evaluations
from iiad.progress import progress
from iiad.training.scoring import evaluate_model

from .evaluation_tally import EvaluationTally, token_classes
from .quality_artefact import EvaluationSettings, bits_per_byte, perplexity

__all__ = ["Reader", "make_readers", "score_text", "windows_of"]


class Reader(NamedTuple):
    """A model to evaluate and the text as its tokenizer reads it; corpus: None without a text."""

    model: str | Path
    label: str
    tokenizer: Any
    corpus: AnyCorpus | None


def make_readers(
    models: Sequence[str | Path],
    configs: Sequence[Any],
    sources: Sequence[AnySource],
    options: Mapping[str, Any],
) -> list[Reader]:
    """Tokenize the sources for each model. options: of `pack_for`."""
    readers = []
    for model, label, config in zip(models, label_models(models), configs, strict=True):
        tokenizer = load_tokenizer(model)
        corpus = pack_for(config, sources, tokenizer, where=f"{model}: data", **options) if sources else None
        readers.append(Reader(model, label, tokenizer, corpus))
    return readers


def windows_of(corpus: AnyCorpus, settings: EvaluationSettings) -> Iterable[Window]:
    """Cut the text into windows. Raises InputError for settings that it has none for; reads nothing yet."""
    assert settings.block_size is not None
    return evaluation_windows(corpus, settings.block_size, settings.max_tokens, settings.batch_size)


def score_text(
    name: str,
    model: Any,
    reader: Reader,
    settings: EvaluationSettings,
    share: float,
) -> dict[str, Any]:
    """Score a model on the text; return the fields of its entry. share: of all work left."""
    corpus = reader.corpus
    assert corpus is not None
    used = len(corpus.targets(settings.max_tokens or corpus.num_tokens)) - isinstance(corpus, TokenCorpus)
    where, size = f"{name} on {settings.device}", settings.batch_size
    with (
        progress(f"evaluating {name}", used, "tokens", share) as advance,
        memory_explained(where, model, size, settings.block_size, cached=False),
    ):
        windows, taken = windows_of(corpus, settings), {}
        options: dict[str, Any] = {"name": name, "dtype": settings.dtype, "advance": advance}
        if getattr(model.config, "tolerance", None) is None:
            score = evaluate_model(model, windows, **options)
        else:
            tally = _make_tally(model, reader)
            with count_evaluations(model) as counts:
                score = evaluate_model(model, tally.watch(windows, counts), **options)
            taken = tally.result()
    groups = (
        {f"{corpus.grouped_by} {group}": part for group, (_, part) in score.by_group.items()}
        if isinstance(corpus, LabelledCorpus)
        else {}
    )
    return {
        "data": corpus.fingerprint,
        "tokens": score.tokens,
        "nll": score.nll,
        "perplexity": perplexity(score.nll),
        "bits_per_byte": bits_per_byte(score.nll, corpus.tokens_per_byte),
        "accuracy": score.accuracy,
        "accuracy_by_group": groups,
        **taken,
    }


def _make_tally(model: Any, reader: Reader) -> EvaluationTally:
    """Tell tokens apart by their groups, or by the text of what is read."""
    if isinstance(reader.corpus, LabelledCorpus):
        return EvaluationTally(model, None, reader.corpus.grouped_by)
    return EvaluationTally(model, token_classes(reader.tokenizer, model.config.vocab_size))
