"""Speculative decoding at batch 1: the tokens are the teacher's, most of the calls are the draft's.

Legend: T prompt tokens, k drafted tokens of a round, n positions, V vocabulary.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from iiad.errors import InputError
from iiad.models.compatibility import cache_argument

__all__ = ["Chooser", "Reader", "Speculation", "Speculator", "speculate", "until_end", "verify"]

# Layers in whose cache the keys and values of a token do not depend on later ones: dropping them takes it back.
_CAN_ROLL_BACK = {"full_attention", "sliding_attention", "chunked_attention"}


class Reader:
    """A causal language model, its cache, and the number of tokens in that. Batch 1.

    length: tokens that the cache holds.
    """

    def __init__(self, model: Any):
        """model: any causal language model of transformers whose cache is keys and values alone.

        Raises InputError for one with states that cannot be taken back (Mamba, linear attention).
        """
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if not cache_argument(model) or not kinds <= _CAN_ROLL_BACK:
            found = ", ".join(sorted(kinds - _CAN_ROLL_BACK)) or "no keys and values"
            raise InputError(
                "draft: expected models whose cache is keys and values of every layer, which can be taken back, "
                f"got a {model.config.model_type} with {found}"
            )
        self.model = model
        # Not sized by the configuration: a sliding window's own layers forget what a rollback needs again. The mask
        # keeps to the window all the same.
        self.cache = DynamicCache()
        self.length = 0
        self._options = {cache_argument(model): self.cache, "use_cache": True}
        self._only_last = "logits_to_keep" in inspect.signature(model.forward).parameters

    def read(self, tokens: Tensor, keep: int = 1) -> Tensor:
        """Read the next tokens (1, n) -> float32 logits (keep, V) after each of the last `keep` of them."""
        self.length += tokens.shape[1]
        only_last = {"logits_to_keep": keep} if self._only_last else {}
        outputs = self.model(input_ids=tokens, **self._options, **only_last)
        return outputs.logits[0, -keep:].float()

    def rollback(self, length: int) -> None:
        """Forget all but the first `length` tokens; length is at most the tokens read."""
        if length < self.length:
            # Of crop's numbers only those below zero mean the same in all versions of transformers: drop so many.
            self.cache.crop(length - self.length)
            self.length = length


@dataclass(frozen=True)
class Chooser:
    """Greedy choice or sampling, with transformers' own warpers in its order.

    temperature: 0 is greedy. top_k: among the k likeliest tokens; None: all. top_p: among the likeliest tokens that
    hold this share of probability; None: all. Accepted values: `iiad.generation.text.check_sampling`.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def greedy(self) -> bool:
        """True where the likeliest token is taken each time."""
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """(n, V) logits -> (n, V) probabilities of the tokens that sampling may take; not for greedy choice."""
        scores = TemperatureLogitsWarper(float(self.temperature))(None, logits)
        if self.top_k is not None:
            scores = TopKLogitsWarper(self.top_k)(None, scores)
        if self.top_p is not None and self.top_p < 1:
            scores = TopPLogitsWarper(self.top_p)(None, scores)
        return scores.softmax(-1)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """(1, V) logits -> the next token (1,) and, when sampling, the probabilities (1, V) it was drawn by."""
        if self.greedy:
            return logits.argmax(-1), None
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1)[:, 0], probabilities

    def verify(self, logits: Tensor, drafted: Tensor, by: list[Tensor]) -> tuple[int, Tensor]:
        """Return the number of drafted tokens that stand, and the teacher's token after them, (1,).

        logits: (k + 1, V), the teacher's before each drafted token and after the last. drafted: (k,). by: for each
        the probabilities (1, V) it was drawn by; not looked at when greedy.
        """
        if not self.greedy:
            target = self.probabilities(logits)
            return verify(target, drafted, torch.cat(by) if by else target[:0])
        choices = logits.argmax(-1)  # (k + 1,)
        accepted = int((choices[:-1] == drafted).cumprod(0).sum())
        return accepted, choices[accepted : accepted + 1]


def verify(target: Tensor, drafted: Tensor, by: Tensor) -> tuple[int, Tensor]:
    """Speculative sampling: the returned tokens are distributed as if drawn from the target token by token.

    Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (arXiv 2302.01318), theorem 1. Token x_i,
    drawn from q_i, stands with probability min(1, p_i(x_i) / q_i(x_i)); the first that does not is replaced by one
    from (p_i - q_i)+ normalised, and where all stand one more comes from p_{k+1}.

    target: (k + 1, V), p. drafted: (k,), x. by: (k, V), q; q_i(x_i) > 0.
    Returns the number of tokens that stand, 0 to k, and the token after them, (1,).
    """
    k = len(drafted)
    ratio = target[:k].gather(1, drafted[:, None])[:, 0] / by.gather(1, drafted[:, None])[:, 0]  # (k,)
    accepted = int((torch.rand_like(ratio) < ratio).cumprod(0).sum())
    rest = target[accepted]  # (V,)
    if accepted < k:
        residual = (rest - by[accepted]).clamp(min=0)
        # Nothing is left only where p and q are equal but for rounding: then p itself is right.
        rest = residual if residual.sum() > 0 else rest
    return accepted, torch.multinomial(rest, 1)


@dataclass
class Speculation:
    """New tokens of a draft and its teacher, and the calls and seconds that they took.

    Attributes:
        length: the most tokens drafted at a time.
        tokens: the new tokens, the one that ends a text included.
        num_calls: forward calls of the teacher, the one that reads the prompt included.
        num_tested: drafted tokens that the teacher looked at: all up to the first that it rejected.
        num_accepted: those of them that stand.
        draft_seconds: in rounds, until the draft's tokens are there; on a GPU until they are asked for.
        verify_seconds: in rounds, the teacher's calls and the choice; on a GPU also the wait for the draft.
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

    Greedy tokens are the teacher's own, and sampled ones distributed as its own (`verify`). A call that reads k + 1
    tokens and one that reads a single token add up in different orders, so they differ in the last bits of a float:
    where the teacher's two best logits are tied within that rounding, either may be taken.

    Args:
        teacher: a causal language model in evaluation mode.
        draft: another, of the same vocabulary, on the same device.
        prompt_ids: (1, T) token ids on that device, T at least 1; T + max_new_tokens within both models' positions.
        max_new_tokens: the most tokens to add, at least 1.
        length: the most tokens to draft at a time; 0 is the teacher alone.
        chooser: greedy or sampling; default: greedy. Sampling uses torch's random state.
        ends: tokens that end a text.
        on_tokens: called with new tokens as they come.

    Raises InputError for a model whose cache cannot be rolled back.
    """
    started = time.perf_counter()
    run = Speculator(teacher, draft, prompt_ids, max_new_tokens, chooser or Chooser(), ends, on_tokens)
    run.result.length = length
    run.start()
    while not run.done:
        run.draft_round(min(length, max_new_tokens - len(run.result.tokens) - 1))
    run.result.seconds = time.perf_counter() - started
    return run.result


class Speculator:
    """One sequence, its known tokens, and two readers of it. `speculate` drives it.

    result: so far. known: tokens that stand, the prompt's included. done: the text has ended.
    """

    def __init__(
        self,
        teacher: Any,
        draft: Any,
        prompt_ids: Tensor,
        max_new_tokens: int,
        chooser: Chooser,
        ends: Collection[int] = (),
        on_tokens: Callable[[list[int]], None] | None = None,
    ):
        self.teacher, self.draft, self.chooser = Reader(teacher), Reader(draft), chooser
        self.ends, self.on_tokens = ends, on_tokens
        self.result, self.done = Speculation(length=0), False
        self.known = prompt_ids.shape[1]
        room = prompt_ids.new_zeros(1, max_new_tokens)
        self.sequence = torch.cat([prompt_ids, room], 1)  # known tokens, then those being drafted

    def start(self) -> None:
        """Let the teacher read the prompt and choose the first token."""
        logits = self.teacher.read(self.sequence[:, : self.known])  # (1, V)
        self.sequence[0, self.known] = self.chooser.choose(logits)[0][0]
        self._take(1)

    def draft_round(self, k: int) -> None:
        """Draft k tokens, let the teacher choose up to k + 1."""
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
        self.result.draft_seconds += drafted - started
        self.result.verify_seconds += time.perf_counter() - drafted
        used = self._take(accepted + 1)  # fewer where the text ended within the draft
        self.result.num_accepted += min(accepted, used)
        self.result.num_tested += min(accepted + 1, used, k)

    def _draft(self, k: int) -> list[Tensor]:
        """Write k drafted tokens behind the known ones; return the probabilities (1, V) of each, when sampling."""
        by = []
        for end in range(self.known, self.known + k):
            logits = self.draft.read(self.sequence[:, self.draft.length : end])
            token, probabilities = self.chooser.choose(logits)
            self.sequence[0, end] = token[0]
            if probabilities is not None:
                by.append(probabilities)
        return by

    def _take(self, count: int) -> int:
        """Take the next `count` tokens as known, up to one that ends the text; return their number."""
        tokens = until_end(self.sequence[0, self.known : self.known + count].tolist(), self.ends)
        self.known += len(tokens)
        self.result.num_calls += 1
        self.result.tokens += tokens
        if self.on_tokens is not None:
            self.on_tokens(tokens)
        self.done = tokens[-1] in self.ends or self.known == self.sequence.shape[1]
        return len(tokens)


def until_end(tokens: list[int], ends: Collection[int]) -> list[int]:
    """Return the tokens up to the first that ends a text, that one included."""
    return tokens[: next((i for i, token in enumerate(tokens, 1) if token in ends), None)]
