"""Speculative decoding at batch 1: the tokens are the teacher's, most of the calls are the draft's.

Legend: T prompt tokens, k drafted tokens of a round, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .reader import Reader
from .token_choice import Chooser

__all__ = ["Speculation", "speculate"]


@dataclass
class Speculation:
    """What a draft and its teacher said, and what it took.

    Attributes:
        length: the most tokens drafted at a time.
        tokens: the new tokens, the one that ends a text included.
        num_calls: forward calls of the teacher, the one that reads the prompt included.
        num_tested: drafted tokens that the teacher looked at: all up to the first that it rejected.
        num_accepted: those of them that stand.
        draft_seconds: in rounds, until the draft's tokens are there; on a GPU until they are asked for.
        verify_seconds: in rounds, the teacher's calls and the choice; on a GPU also what it waits for the draft.
        seconds: everything, reading the prompt included.
    """

    length: int
    tokens: list[int] = field(default_factory=list)
    num_calls: int = 0
    num_tested: int = 0
    num_accepted: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of tested tokens that were accepted, 0 to 1 (alpha of Leviathan et al. 2023); 0 for none tested."""
        return self.num_accepted / max(self.num_tested, 1)

    @property
    def tokens_per_call(self) -> float:
        """New tokens for each forward call of the teacher."""
        return len(self.tokens) / max(self.num_calls, 1)

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"draft: length {self.length}, {self.acceptance_rate:.1%} of {self.num_tested} tokens accepted, "
            f"{self.tokens_per_call:.2f} tokens per call of the teacher"
        )


@torch.inference_mode()
def speculate(
    teacher: Any,
    draft: Any,
    prompt_ids: Tensor,
    max_new_tokens: int,
    length: int,
    chooser: Chooser | None = None,
    ends: Collection[int] = (),
    on_tokens: Callable[[list[int]], None] | None = None,
) -> Speculation:
    """Continue a prompt as the teacher would, in rounds of up to `length` drafted tokens and one call of the teacher.

    Greedy tokens are the teacher's own, and sampled ones distributed as its own (`iiad.speculation.verify`). A
    call that reads k + 1 tokens and one that reads a single token add up in different orders, so they differ in the
    last bits of a float: where the teacher's two best logits are tied within that rounding, either may be taken.

    Args:
        teacher: a causal language model in evaluation mode.
        draft: another, of the same vocabulary, on the same device.
        prompt_ids: (1, T) token ids on that device, T at least 1; T + max_new_tokens within both models' positions.
        max_new_tokens: the most tokens to add, at least 1.
        length: the most tokens to draft at a time; 0 is the teacher alone.
        chooser: greedy or sampling; default: greedy. Sampling uses torch's random state.
        ends: tokens that end a text.
        on_tokens: told new tokens as they come.

    Raises InputError for a model whose cache cannot be rolled back.
    """
    run = _Run(teacher, draft, prompt_ids, max_new_tokens, chooser or Chooser(), on_tokens)
    result = Speculation(length)
    started = time.perf_counter()
    done = run.start(result, ends)
    while not done:
        done = run.round(result, min(length, max_new_tokens - len(result.tokens) - 1), ends)
    result.seconds = time.perf_counter() - started
    return result


class _Run:
    """One sequence, what is known of it, and two readers of it."""

    def __init__(
        self,
        teacher: Any,
        draft: Any,
        prompt_ids: Tensor,
        max_new_tokens: int,
        chooser: Chooser,
        on_tokens: Callable[[list[int]], None] | None,
    ):
        self.teacher, self.draft, self.chooser = Reader(teacher), Reader(draft), chooser
        self.known = prompt_ids.shape[1]
        self.limit = self.known + max_new_tokens
        self.sequence = prompt_ids.new_zeros(1, self.limit)  # known tokens, then those being drafted
        self.sequence[:, : self.known] = prompt_ids
        self.on_tokens = on_tokens

    def start(self, result: Speculation, ends: Collection[int]) -> bool:
        """The teacher reads the prompt and chooses the first token. Returns whether the text has ended."""
        logits = self.teacher.read(self.sequence[:, : self.known])  # (1, V)
        self.sequence[0, self.known] = self.chooser.choose(logits)[0][0]
        return self._emit(result, 1, ends)

    def round(self, result: Speculation, k: int, ends: Collection[int]) -> bool:
        """Draft k tokens, let the teacher choose up to k + 1. Returns whether the text has ended."""
        known, started = self.known, time.perf_counter()
        by = self._draft(k)
        drafted = time.perf_counter()
        logits = self.teacher.read(self.sequence[:, known - 1 : known + k], keep=k + 1)  # (k + 1, V)
        accepted, following = self.chooser.verify(logits, self.sequence[0, known : known + k], by)
        # Both take back what they read of rejected tokens. Of k accepted ones the draft has not read the last: it
        # reads that together with the token after it, when it drafts next.
        self.teacher.rollback(known + accepted)
        self.draft.rollback(min(known + accepted, self.draft.length))
        self.sequence[0, known + accepted] = following[0]
        result.draft_seconds += drafted - started
        result.verify_seconds += time.perf_counter() - drafted
        before = len(result.tokens)
        done = self._emit(result, accepted + 1, ends)
        used = len(result.tokens) - before  # fewer than accepted + 1 where the text ended within the draft
        result.num_accepted += min(accepted, used)
        result.num_tested += min(accepted + 1, used, k)
        return done

    def _draft(self, k: int) -> list[Tensor]:
        """Write k drafted tokens behind the known ones; the probabilities (1, V) of each, when sampling."""
        by = []
        for end in range(self.known, self.known + k):
            token, probabilities = self.chooser.choose(
                self.draft.read(self.sequence[:, self.draft.length : end])
            )
            self.sequence[0, end] = token[0]
            if probabilities is not None:
                by.append(probabilities)
        return by

    def _emit(self, result: Speculation, count: int, ends: Collection[int]) -> bool:
        """Take the next `count` tokens, up to one that ends the text, as known. Returns whether that is all."""
        tokens = self.sequence[0, self.known : self.known + count].tolist()
        end = next((i for i, token in enumerate(tokens, 1) if token in ends), None)
        tokens = tokens[:end]
        self.known += len(tokens)
        result.num_calls += 1
        result.tokens += tokens
        if self.on_tokens is not None:
            self.on_tokens(tokens)
        return end is not None or self.known == self.limit
