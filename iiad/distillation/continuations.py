"""Stage onpolicy: the student's own continuations of the data's prompts in place of the data (GKD, Agarwal et al.
2024, arXiv 2306.13649, algorithm 1).

Legend: b rows of a batch, S tokens of its longest prompt, T tokens of its longest row, n positions asked for.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from accelerate import PartialState

from iiad.data import AnyBlocks, PairBlocks, RowBlocks
from iiad.data.labelled import NOT_ASKED
from iiad.errors import InputError
from iiad.generation.guards import finite_logits
from iiad.generation.prompting import Prompting, prompting
from iiad.generation.searching import Search, search_batch
from iiad.generation.speculation import Chooser
from iiad.training.batches import Batch, derive_seed
from iiad.training.distillation_sections import OnPolicySection
from iiad.training.rewriting import Rewriting

__all__ = ["Continuations"]

Rows = list[list[int]]
FIELD = "distillation.onpolicy"


class Continuations(Rewriting):
    """The student's own continuations in some steps, the data in the others.

    A step is one or the other as a whole. Those of a fraction f are spaced evenly, step s (from 0) being one where
    floor((s + 1) f) > floor(s f): every stretch of steps has its share, and generating costs f of what it costs in
    every step. Replacing a share of each batch's rows would cost nearly all of it: a decoding step of half the rows
    takes hardly less time.

    No gradient passes through the sampling. The continuation, with the token that ends it, is asked for, prompt and
    padding are not, and no label is given: the cross-entropy is 0. Random numbers follow from seed, step, micro-batch
    and process alone, and those of dropout stay as they were.
    """

    def __init__(self, section: OnPolicySection, blocks: AnyBlocks, student: Any, tokenizer: Any):
        """student: generates with its own plan, in float32 whatever it trains in: under autocast every token would
        cast all weights anew.

        Raises InputError for prompts or lengths that blocks or student do not have.
        """
        self.section = section
        kind = prompting(student, tokenizer)
        if isinstance(blocks, PairBlocks):
            _refuse_prompt_length(section, "pairs")
            self.source: _Source = _Sources(kind)
        elif isinstance(blocks, RowBlocks):
            _refuse_prompt_length(section, "labelled rows")
            _require_tokens(blocks)
            self.source = _Prompts(kind, None)
        else:
            self.source = _Prompts(kind, _fit_prompt(section, blocks.block_size, student.config))
        self.own, self.place, self.number = False, (0, 0), 0
        self.tokens, self.seconds, self.since = 0, 0.0, time.monotonic()

    def draw(self, seed: int, step: int) -> None:
        """Begin a step."""
        fraction = self.section.fraction
        self.own = math.floor((step + 1) * fraction) > math.floor(step * fraction)
        self.place, self.number = (seed, step), 0

    def rewrite(self, batch: Batch) -> Batch:
        """Return continuations of the batch's prompts in a step that learns from them."""
        if not self.own:
            return batch
        started = time.monotonic()
        prompts, longest = self.source.read(batch)
        longest = min(self.section.max_new_tokens or longest, self.source.room(prompts))
        seed = derive_seed("continuations", *self.place, self.number, PartialState().process_index)
        new = self._generate(prompts, longest, seed)
        self.number += 1
        self.tokens += sum(map(len, new))
        self.seconds += time.monotonic() - started
        return self.source.arrange(batch, prompts, new)

    def _generate(self, prompts: Rows, longest: int, seed: int) -> Rows:
        model = self.source.kind.model
        devices = [model.device] if model.device.type == "cuda" else []
        search = Search(longest, chooser=Chooser(self.section.temperature), static_cache=True)
        was_training = model.training
        model.eval()
        try:
            with torch.random.fork_rng(devices=devices), finite_logits(model):
                torch.manual_seed(seed)
                return search_batch(self.source.kind, prompts, search)
        finally:
            model.train(was_training)

    def take_figures(self) -> dict[str, float]:
        """Return the tokens generated a second, if any were, and the share of the time that it took."""
        now = time.monotonic()
        figures = {"generation_share": self.seconds / max(now - self.since, 1e-9)}
        if self.tokens:
            figures["generated_tokens_per_second"] = self.tokens / max(self.seconds, 1e-9)
        self.tokens, self.seconds, self.since = 0, 0.0, now
        return figures


class _Source(ABC):
    """Prompts of one kind of data, and batches of their continuations."""

    takes: str
    """Name of the batch's field that continuations are put into."""

    def __init__(self, kind: Prompting):
        self.kind = kind

    @abstractmethod
    def read(self, batch: Batch) -> tuple[Rows, int]:
        """Return the prompt of each row, and the tokens of the longest row after its prompt."""

    @abstractmethod
    def room(self, prompts: Rows) -> int:
        """Return how many new tokens the model has positions for."""

    @abstractmethod
    def before(self, batch: Batch, prompts: Rows) -> Rows:
        """Return what stands in each row before its first new token, at least one token."""

    def arrange(self, batch: Batch, prompts: Rows, new: Rows) -> Batch:
        """Return the batch (b, T) that asks for all new tokens, and has no labels."""
        before = self.before(batch, prompts)
        rows = [
            [*start, *tokens[:-1]] for start, tokens in zip(before, new, strict=True)
        ]  # what asks for them
        T = max(map(len, rows))
        inputs = torch.full((len(rows), T), self.kind.pad_token_id)
        asked = []
        for number, (start, row) in enumerate(zip(before, rows, strict=True)):
            inputs[number, : len(row)] = torch.tensor(row)
            asked.append(number * T + torch.arange(len(start) - 1, len(row)))
        made = {
            self.takes: inputs,
            "labels": torch.full_like(inputs, NOT_ASKED),
            "asked": torch.cat(asked),  # (n,)
        }
        device = batch["labels"].device
        return {**batch, **{name: value.to(device) for name, value in made.items()}}


class _Prompts(_Source):
    """Beginnings of text or of labelled rows, up to the first token that is asked for: a causal model goes on."""

    takes = "input_ids"

    def __init__(self, kind: Prompting, length: int | None):
        """length: of all prompts, of text."""
        super().__init__(kind)
        self.length = length

    def read(self, batch: Batch) -> tuple[Rows, int]:
        asked = (batch["labels"] >= 0).int().cpu()  # (b, T)
        last = asked.shape[1] - 1 - asked.flip(1).argmax(1)
        first = asked.argmax(1) if self.length is None else torch.full_like(last, self.length)
        rows = batch["input_ids"].tolist()
        prompts = [row[:start] for row, start in zip(rows, first.tolist(), strict=True)]
        return prompts, int((last + 1 - first).max())

    def room(self, prompts: Rows) -> int:
        return int(self.kind.model.config.max_position_embeddings) - max(map(len, prompts))

    def before(self, batch: Batch, prompts: Rows) -> Rows:
        return prompts


class _Sources(_Source):
    """Sources of pairs: an encoder-decoder makes targets of them."""

    takes = "decoder_input_ids"

    def read(self, batch: Batch) -> tuple[Rows, int]:
        rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
        return [row[:length] for row, length in rows], batch["labels"].shape[1]

    def room(self, prompts: Rows) -> int:
        return int(self.kind.model.config.max_position_embeddings) - 1  # beside the start token

    def before(self, batch: Batch, prompts: Rows) -> Rows:
        return batch["decoder_input_ids"][:, :1].tolist()


def _refuse_prompt_length(section: OnPolicySection, what: str) -> None:
    if section.prompt_length is not None:
        expected = f"none for {what}, which have prompts of their own"
        raise InputError(f"{FIELD}.prompt_length: expected {expected}, got {section.prompt_length}")


def _require_tokens(blocks: RowBlocks) -> None:
    """Raise InputError for rows that ask for other tokens than those that come next: nothing can be gone on with."""
    cells = blocks.corpus.cells
    asked = cells["label"] >= 0
    other = (asked & (cells["label"] != cells["token"])).nonzero()[0]
    if len(other):
        row = 1 + int((blocks.corpus.starts[1:] <= other[0]).sum())
        raise InputError(
            f"{FIELD}.max_steps: expected 0 for rows that ask for other tokens than those that come next, got "
            f"{cells['label'][other[0]]} asked for at {cells['token'][other[0]]} in row {row}"
        )


def _fit_prompt(section: OnPolicySection, block_size: int, config: Any) -> int:
    """Return the tokens of a prompt of text. Raises InputError for more than a block or the model has room for."""
    length = block_size // 2 if section.prompt_length is None else section.prompt_length
    if length >= block_size:
        raise InputError(
            f"{FIELD}.prompt_length: expected less than a block of {block_size} tokens, got {length}"
        )
    most = config.max_position_embeddings - length
    if (section.max_new_tokens or 1) > most:
        raise InputError(
            f"{FIELD}.max_new_tokens: expected at most {most}, the model's positions after a prompt of {length}, got "
            f"{section.max_new_tokens}"
        )
    return length
