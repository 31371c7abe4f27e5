"""Texts that encoder-decoders make of pairs' sources, scored against the targets. Importing this loads no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from iiad.data import AnySource, TaskSource
from iiad.errors import InputError
from iiad.files import atomic_file
from iiad.progress import progress

from .quality_artefact import EvaluationResult, EvaluationSettings, TextSettings
from .text_metrics import require_metrics, require_several, score_texts

__all__ = ["Hypotheses", "Texts"]

_MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Texts:
    """Texts to make of the sources, and the metrics to score them by.

    metrics: names of `iiad.evaluation.text_metrics`. num_beams, length_penalty: as `iiad.generation.Search` takes
    them. max_new_tokens: of each text; default: 128, or less where a model has fewer positions. output: a jsonl file
    to write: of each pair source, target and, by model, the text made (`hypotheses`).
    Raises InputError for no metrics, or as `require_metrics`.
    """

    metrics: Sequence[str]
    num_beams: int = 4
    length_penalty: float | None = None
    max_new_tokens: int | None = None
    output: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.metrics:
            raise InputError("metrics: expected at least one, got none")
        require_metrics(self.metrics)


class Hypotheses:
    """The texts of each model in turn: `add` makes those of one, `score` compares all."""

    def __init__(
        self, texts: Texts, sources: Sequence[AnySource], numbers: np.ndarray, positions: int
    ) -> None:
        """sources: of the pairs, of which those of these numbers (n,) are used. positions: the fewest of a model.

        Raises InputError for a value out of range, and for fewer than two pairs.
        """
        from iiad.data import PAIR, read_rows
        from iiad.generation.searching import Search

        self.texts = texts
        require_several(len(numbers))
        limit = min(_MAX_NEW_TOKENS, positions - 1) if texts.max_new_tokens is None else texts.max_new_tokens
        self.search = Search(limit, texts.num_beams, texts.length_penalty)
        used = set(numbers.tolist())
        files = (source for source in sources if not isinstance(source, TaskSource))  # tasks have no pairs
        rows = (values for file in files for _, values in read_rows(file, PAIR))
        self.pairs = [
            (source, target)
            for number, (source, target) in enumerate(islice(rows, int(numbers[-1]) + 1))
            if number in used
        ]
        self.made: list[list[str]] = []

    def add(
        self,
        model: Any,
        tokenizer: Any,
        corpus: Any,
        name: str,
        settings: EvaluationSettings,
        share: float = 1.0,
    ) -> None:
        """Make a model's texts. corpus: the pairs as its tokens, a PairCorpus. share: of all work left.

        Raises InputError: fewer positions than tokens, a token outside the vocabulary, memory runs out.
        """
        import torch

        from iiad.generation.prompting import prompting
        from iiad.generation.searching import decode, search_all

        kind = prompting(model, tokenizer)
        prompts = [corpus.row(number)[0].tolist() for number in range(len(self.pairs))]
        for prompt in prompts:
            kind.require_room(prompt, self.search.max_new_tokens)
        with (
            progress(f"{name}: texts", len(prompts), "texts", share) as advance,
            torch.autocast(model.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"),
        ):
            new = search_all(kind, prompts, self.search, settings.batch_size, advance)
        self.made.append([decode(kind, *each) for each in zip(prompts, new, strict=True)])

    def score(self, results: Sequence[EvaluationResult]) -> tuple[TextSettings, list[EvaluationResult]]:
        """Return the settings, and each model's entry with its scores; write the texts where that is asked for."""
        scores = score_texts(self.made, [target for _, target in self.pairs], self.texts.metrics)
        if self.texts.output is not None:
            self._write(self.texts.output, [result.label for result in results])
        settings = TextSettings(
            num_texts=len(self.pairs),
            num_beams=self.search.num_beams,
            length_penalty=self.search.options().get("length_penalty"),
            max_new_tokens=self.search.max_new_tokens,
            signatures=scores.signatures,
        )
        return settings, [
            result.model_copy(update={"text_metrics": found})
            for result, found in zip(results, scores.by_model, strict=True)
        ]

    def _write(self, path: str | Path, labels: Sequence[str]) -> None:
        with atomic_file(path) as file:
            for (source, target), *made in zip(self.pairs, *self.made, strict=True):
                row = {"source": source, "target": target, "hypotheses": dict(zip(labels, made, strict=True))}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
