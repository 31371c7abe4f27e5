"""Choose the plan and length of a draft by a short measurement on the prompt's continuation.

Legend: T prompt tokens, n tokens of the measured continuation, k drafted tokens of a round, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiad.clock import now

from .drafts import Draft
from .speculation import Chooser, Reader

__all__ = ["Choice", "Estimate", "Probe", "choose_draft", "expected_tokens"]

MAX_LENGTH = 16
_NUM_CONTINUED = 32  # tokens of the continuation, n
_NUM_TIMED = 6  # calls of a draft that are timed
_SIZES = (1, 3, 9, 17)  # tokens of a teacher's call that are timed; between and beyond them on straight lines
_NUM_REPEATS = 4


@dataclass(frozen=True)
class Estimate:
    """The predicted speed of one draft.

    Attributes:
        plan: r_t for each layer of a self-draft; None for a model that runs as it is.
        acceptance: mean probability that the teacher accepts a token of it.
        draft_cost: a call of the draft, in calls of the teacher that read one token.
        length: the best of the lengths tried, 0 where the teacher alone is faster.
        speedup: tokens a second, as a multiple of the teacher's alone.
    """

    plan: tuple[int, ...] | None
    acceptance: float
    draft_cost: float
    length: int
    speedup: float

    def __str__(self) -> str:
        """Short, for a list of them."""
        plan = "" if self.plan is None else f"plan {list(self.plan)}, "
        return f"{plan}length {self.length}: {self.speedup:.2f}x"


@dataclass(frozen=True)
class Choice:
    """The best estimate, all that were made, their seconds, and True where the length was given."""

    best: Estimate
    tried: tuple[Estimate, ...]
    seconds: float
    given_length: bool = False

    def __str__(self) -> str:
        """One line for people."""
        best = self.best
        line = (
            f"draft: measured in {self.seconds:.1f} s: best is {best} predicted, {best.acceptance:.0%} accepted, "
            f"a call of it {best.draft_cost:.2f} of the teacher's"
        )
        if len(self.tried) > 1:
            line += f"; tried {', '.join(str(estimate) for estimate in self.tried if estimate is not best)}"
        if self.given_length and best.speedup < 1:
            line += "; slower than no draft: without --draft-length a length is chosen, 0 included"
        return line


@torch.inference_mode()
def choose_draft(
    teacher: Any,
    draft: Draft,
    prompt_ids: Tensor,
    max_new_tokens: int,
    chooser: Chooser,
    clock: Callable[[torch.device], float] = now,
) -> Choice:
    """Measure the draft, under each of its plans if it has any, and choose plan and length (ours).

    The teacher continues the prompt by a few tokens. Its calls and the draft's are timed, and the chance of the
    draft's next token to be accepted computed at every one of those tokens: sum over the vocabulary of min(p, q)
    (Leviathan et al. 2023, theorem 3.5), 0 or 1 when greedy. A length k is then predicted to give
    1 + sum over j <= k of the mean chance of j acceptances in a row, in k calls of the draft and one of the teacher
    over k + 1 tokens.

    prompt_ids: (1, T). max_new_tokens: bounds the lengths tried, a given one too; at least 1. clock: seconds on a
    device. Uses torch's random state when sampling. Leaves the draft under the best plan.
    """
    started = time.perf_counter()
    probe = Probe(teacher, prompt_ids, max_new_tokens, chooser, draft.length, clock)
    tried, plans = [], list[Sequence[int] | None](draft.plans) or [None]
    for plan in plans:
        if plan is not None:
            draft.model.set_num_iterations(list(plan))
        tried.append(probe.estimate(draft.model, plan))
    best = max(tried, key=lambda estimate: estimate.speedup)
    if best.plan is not None:
        draft.model.set_num_iterations(list(best.plan))
    return Choice(best, tuple(tried), time.perf_counter() - started, draft.length is not None)


class Probe:
    """The teacher's continuation of a prompt, and the seconds of its calls."""

    def __init__(
        self,
        teacher: Any,
        prompt_ids: Tensor,
        max_new_tokens: int,
        chooser: Chooser,
        length: int | None,
        clock: Callable[[torch.device], float] = now,
    ):
        self.chooser, self.num_prompt, self.clock = chooser, prompt_ids.shape[1], clock
        most = min(MAX_LENGTH, max_new_tokens - 1)
        # No round drafts more than is still to be said, whatever length was given.
        self.lengths = range(most + 1) if length is None else [min(length, max_new_tokens - 1)]
        reader, num = Reader(teacher), min(_NUM_CONTINUED, max_new_tokens)
        self.sequence, self.logits = _continue(reader, prompt_ids, num, chooser)
        self.sizes = [size for size in _SIZES if size <= num]
        found = [[self._time_call(reader, size) for size in self.sizes] for _ in range(_NUM_REPEATS)]
        # In turns, and the least of each: what else the machine does only ever adds. More tokens never take less.
        self.size_seconds = np.maximum.accumulate(np.min(found, 0))
        self.call_seconds = float(self.size_seconds[0])

    def _time_call(self, reader: Reader, size: int) -> float:
        """Seconds of the teacher's call over `size` tokens after the prompt, and of the choice from its logits."""
        reader.rollback(self.num_prompt)
        tokens = self.sequence[:, self.num_prompt : self.num_prompt + size]
        # Stand-ins for a draft's probabilities (1, V): what they say takes no other time.
        uniform = torch.full_like(self.logits[:1], 1 / self.logits.shape[1])
        started = self.clock(tokens.device)
        self.chooser.verify(reader.read(tokens, keep=size), tokens[0, 1:], [uniform] * (size - 1))
        return self.clock(tokens.device) - started

    def estimate(self, draft: Any, plan: Sequence[int] | None) -> Estimate:
        """Predict the draft's speed at its best length."""
        logits, seconds = self._follow(draft)
        if self.chooser.greedy:
            chances = (logits.argmax(-1) == self.logits.argmax(-1)).float()
        else:
            own, theirs = (self.chooser.probabilities(each) for each in (self.logits, logits))
            chances = torch.minimum(own, theirs).sum(-1)
        # By Laplace's rule of succession: n of n accepted do not make the next one certain.
        num = len(chances)
        rows = (chances * (num + 1) / (num + 2)).tolist()
        speedups = [self.speedup(expected_tokens(rows, k), k, seconds) for k in self.lengths]
        best = int(np.argmax(speedups))
        return Estimate(
            None if plan is None else tuple(plan),
            float(chances.mean()),
            seconds / self.call_seconds,
            self.lengths[best],
            speedups[best],
        )

    def _follow(self, draft: Any) -> tuple[Tensor, float]:
        """The draft's logits (n, V) where the teacher has its own, and seconds of a call over one token."""
        num, device = len(self.logits), self.sequence.device
        timed = min(_NUM_TIMED, num - 1)
        reader, whole = Reader(draft), self.num_prompt + num - 1
        parts, seconds = [reader.read(self.sequence[:, : whole - timed], keep=num - timed)], []
        for end in range(whole - timed + 1, whole + 1):
            started = self.clock(device)
            parts.append(reader.read(self.sequence[:, end - 1 : end]))
            self.chooser.choose(parts[-1])
            seconds.append(self.clock(device) - started)
        return torch.cat(parts), min(seconds, default=self.call_seconds)

    def speedup(self, tokens: float, k: int, draft_seconds: float) -> float:
        """Tokens a second with rounds of k drafted tokens that give so many, over the teacher's alone."""
        sizes, seconds, size = self.sizes, self.size_seconds, k + 1
        verification = float(np.interp(size, sizes, seconds))
        if size > sizes[-1] and len(sizes) > 1:  # go on along the line through the last two
            slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
            verification += float((size - sizes[-1]) * slope)
        return tokens * self.call_seconds / (k * draft_seconds + verification)


def _continue(reader: Reader, prompt_ids: Tensor, num: int, chooser: Chooser) -> tuple[Tensor, Tensor]:
    """The model's next `num` tokens: the sequence (1, T + num), and the logits (num, V) before each of them."""
    pieces, rows = [prompt_ids], []
    for _ in range(num):
        rows.append(reader.read(pieces[-1]))
        pieces.append(chooser.choose(rows[-1])[0][None])  # (1, 1)
    return torch.cat(pieces, 1), torch.cat(rows)


def expected_tokens(chances: Sequence[float], k: int) -> float:
    """1 + sum over j = 1..k of the mean over starts of the chance that j tokens in a row are accepted.

    Runs that are longer than the continuation are taken to end with the mean chance.
    """
    mean, total = sum(chances) / len(chances), 1.0
    runs = list(chances)  # of j tokens from each start
    for j in range(1, k + 1):
        row = sum(runs) / len(runs)
        total += row
        runs = [run * chance for run, chance in zip(runs, chances[j:], strict=False)] or [row * mean]
    return total
