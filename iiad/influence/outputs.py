"""What stopping a layer does to the model's output: exact KL and loss, with no second copy of the logits.

Legend: B batch, T tokens, D model width, V vocabulary, n stops in a stack, m tokens of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from iiad.errors import InputError

from .metrics import wide

__all__ = ["CHUNK_COPIES", "FullOutput", "choose_chunk_tokens"]

CHUNK_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits that are compared at a time: 16 and 128 MiB in float32."""

LEAST_CHUNK_TOKENS = {"cpu": 64, "cuda": 512}
"""With fewer the head's weights are read more often than they are worth; only small batches go below."""

CHUNK_COPIES = 3
"""A chunk's probabilities, differences and terms."""


def choose_chunk_tokens(num_tokens: int, vocab_size: int, device_type: str) -> int:
    """m: a small part of a batch's tokens, so that a chunk's copies are small beside the logits."""
    numbers = CHUNK_NUMBERS.get(device_type, CHUNK_NUMBERS["cpu"])
    least = LEAST_CHUNK_TOKENS.get(device_type, LEAST_CHUNK_TOKENS["cpu"])
    share = max(num_tokens // 32, min(least, num_tokens // 16))
    return max(1, min(share, numbers // vocab_size))


class FullOutput:
    """The full model's output on one batch, to which stopped models are compared.

    Keeps the logits (B, T, V) as the head makes them; everything else is made for a few tokens at a time.

    With p the full distribution, h and h' the full and the stopped model's final states and W the head, the logits
    differ by d = W (h' - h). Shifted so that the mean of d under p is 0 (ours):

        KL(full || stopped) = log(1 + s),  NLL(stopped) - NLL(full) = log(1 + s) - d[target],
        s = sum_v p_v (e^{d_v} - 1 - d_v)

    No term of s is negative and nothing cancels, so that even the influence of an iteration that has nearly
    converged, far below the rounding of the logits, keeps its digits.
    """

    def __init__(self, head: nn.Linear, hidden_states: Tensor, input_ids: Tensor, where: str = "the model"):
        """hidden_states: (B, T, D), after the final norm; input_ids: (B, T). where: what errors call it.

        Raises InputError for logits that hold NaN or infinity.
        """
        self.head = head
        self.hidden_states = hidden_states.flatten(0, 1)  # (B * T, D)
        input_ids = input_ids.long()
        targets = torch.full_like(input_ids, -1)  # the last token of a block predicts nothing
        targets[:, :-1] = input_ids[:, 1:]
        self.targets = targets.flatten()  # (B * T,)
        self.num_predicted = max(1, int((self.targets >= 0).sum()))
        self.logits = head(self.hidden_states)  # (B * T, V)
        self.chunk_tokens = choose_chunk_tokens(
            len(self.targets), self.logits.shape[1], self.logits.device.type
        )
        total = sum(self._nll(chunk).sum(dtype=torch.float64) for chunk in self._chunks())
        self.loss = float(total) / self.num_predicted
        if not math.isfinite(self.loss):
            raise InputError(f"{where}: the model's logits hold NaN or infinity; accepted: finite logits")

    def harms(self, stopped: Tensor, where: str = "the stopped model") -> list[dict[str, float]]:
        """What each of n stopped models loses against the full one.

        stopped: (n, B, T, D), final states after the norm. For each: `kl`, mean over all tokens of
        KL(full || stopped), and `loss`, mean over the predicted tokens of the growth of their NLL, in nats.
        Raises InputError where one of them has NaN or infinity for an output.
        """
        stopped = stopped.flatten(1, 2)  # (n, B * T, D)
        # Written over and over: memory that is new for every chunk costs more than what is computed in it.
        space = wide(self.logits[:0]).new_empty(2, self.chunk_tokens, self.logits.shape[1])
        totals = torch.zeros(2, len(stopped), dtype=torch.float64, device=stopped.device)
        for chunk in self._chunks():
            logits = wide(self.logits[chunk])
            full, terms = space[:, : len(logits)]  # (m, V)
            torch.softmax(logits, -1, out=full)
            for n, states in enumerate(stopped):
                change = wide(states[chunk]) - wide(self.hidden_states[chunk])
                difference = wide(self.head(change.to(states.dtype)))  # (m, V)
                kl, nll = _compare(full, logits, difference, terms, self.targets[chunk])
                totals[0, n] += kl.sum(dtype=torch.float64)
                totals[1, n] += nll.sum(dtype=torch.float64)
        if not totals.isfinite().all():
            raise InputError(f"{where}: its logits hold NaN or infinity; accepted: finite logits")
        kls, nlls = totals.tolist()
        return [
            {"kl": kl / len(self.targets), "loss": nll / self.num_predicted}
            for kl, nll in zip(kls, nlls, strict=True)
        ]

    def forget(self) -> None:
        """Free the logits; nothing but `loss` can be asked after that."""
        del self.logits

    def loss_gradient(self) -> Tensor:
        """d loss / d hidden_states, (B * T, D), in the states' type: (softmax - one-hot) W / predicted tokens."""
        gradient = torch.empty_like(self.hidden_states)
        for chunk in self._chunks():
            slope = wide(self.logits[chunk]).softmax(-1)  # (m, V)
            targets = self.targets[chunk]
            slope[torch.arange(len(targets), device=targets.device), targets.clamp(min=0)] -= 1
            slope.masked_fill_((targets < 0)[:, None], 0.0).div_(self.num_predicted)
            gradient[chunk] = slope.to(gradient.dtype) @ self.head.weight
        return gradient

    def _chunks(self) -> list[slice]:
        starts = range(0, len(self.targets), self.chunk_tokens)
        return [slice(start, start + self.chunk_tokens) for start in starts]

    def _nll(self, chunk: slice) -> Tensor:
        return nn.functional.cross_entropy(
            wide(self.logits[chunk]), self.targets[chunk], ignore_index=-1, reduction="none"
        )


def _compare(
    full: Tensor, logits: Tensor, difference: Tensor, terms: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """KL and growth of the NLL of m tokens, each (m,).

    full, logits, difference: (m, V), the full model's probabilities and logits, and what the stopped model's logits
    have more; `difference` is overwritten. terms: (m, V), room to compute in. targets: (m,), -1 where nothing is
    predicted.
    """
    difference -= torch.bmm(full[:, None], difference[:, :, None])[:, 0]  # the mean under p, (m, 1)
    torch.expm1(difference, out=terms)
    kl = terms.sub_(difference).mul_(full).sum(-1).log1p()
    if not kl.isfinite().all():  # e^d overflows though p e^d need not
        kl = (logits.log_softmax(-1) + difference).logsumexp(-1)
    chosen = difference.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return kl, torch.where(targets >= 0, kl - chosen, 0.0)
