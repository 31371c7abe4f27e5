"""Which token comes next, and which of a draft's tokens the teacher lets stand.

Legend: k drafted tokens, n positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

__all__ = ["Chooser", "verify"]


@dataclass(frozen=True)
class Chooser:
    """Greedy choice or sampling, with transformers' own warpers in its order.

    temperature: 0 is greedy. top_k: among the k likeliest tokens; None: all. top_p: among the likeliest tokens that
    hold this share of probability; None: all. `iiad.generation.check_sampling` says what is accepted.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
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
        """How many drafted tokens stand, and the teacher's token after them, (1,).

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
    """Speculative sampling: what is returned is distributed as if drawn from the target token by token.

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
