"""The metrics: comparisons of two outputs of a layer, or of two outputs of the model.

Legend: B batch, T tokens, D model width, V vocabulary, t the layer, i the iteration, z(i) its iterates, x_{t+1}(i)
the output of layer t stopped after iteration i, n stopped models, b of the B sequences, m tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iiad.data import output_labels
from iiad.errors import InputError
from iiad.models.solvers import relative_change

from .convergence import TOLERANCES, FixedPoint, Settling, StepProducts

__all__ = [
    "ITERATE_METRICS",
    "FullOutput",
    "asked_positions",
    "cosine",
    "fixed_point",
    "relative_l2",
    "settling",
    "step_products",
    "wide",
]

NUM_CHUNKS = 16
"""Parts of a batch's tokens in which logits are compared: their probabilities, differences and terms stay small."""


def cosine(before: Tensor, after: Tensor) -> float:
    """1 - mean over tokens of cos(before, after), in [0, 2] (the paper's kind of score, ShortGPT's block influence).

    before, after: x_{t+1}(i - 1) and x_{t+1}(i), each (N, D) or (B, T, D). Computed as |a/|a| - b/|b||^2 / 2, which
    equals 1 - cos and stays exact where the cosine is so near to 1 that the difference would be rounding alone.
    """
    gap = F.normalize(wide(before), dim=-1) - F.normalize(wide(after), dim=-1)  # (B, T, D)
    return gap.square().sum(-1).mean(dtype=torch.float64).item() / 2


def relative_l2(before: Tensor, after: Tensor) -> float:
    """Mean over tokens of |after - before| / |before|: the fixed-point residual of the layer's output (ours).

    before, after: x_{t+1}(i - 1) and x_{t+1}(i), each (B, T, D). 0 where nothing changes, also from zero.
    """
    before, after = wide(before), wide(after)
    return _ratio((after - before).norm(dim=-1), before.norm(dim=-1)).mean(dtype=torch.float64).item()


ITERATE_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"cosine": cosine, "relative_l2": relative_l2}
"""Metrics of one layer's outputs: f(x_{t+1}(i - 1), x_{t+1}(i)) is the score of iteration i."""


def fixed_point(iterates: Sequence[Tensor]) -> FixedPoint:
    """Residuals, contractions and turns of z(0), ..., z(r), each (B, T, D) (ours; the terms are those of Picard).

    A residual is a mean over tokens, relative; a contraction is the ratio of the mean lengths of two successive
    changes (a mean of ratios would hang on the tokens that hardly change); a turn is the mean cosine between
    them. Where nothing changes, they are 0.
    """
    residuals = [relative_l2(a, b) for a, b in pairwise(iterates)]
    contractions, turns = [], []
    for a, b, c in zip(iterates, iterates[1:], iterates[2:], strict=False):
        earlier, later = wide(b) - wide(a), wide(c) - wide(b)  # (B, T, D)
        lengths = torch.stack([earlier.norm(dim=-1), later.norm(dim=-1)]).flatten(1).double()  # (2, B * T)
        contractions.append(_ratio(lengths[1].mean(), lengths[0].mean()).item())
        turns.append(F.cosine_similarity(earlier, later, dim=-1, eps=1e-30).mean(dtype=torch.float64).item())
    return FixedPoint(residuals=residuals, contractions=contractions, turns=turns)


def step_products(points: Sequence[Tensor]) -> StepProducts:
    """Inner products of the steps between z(-1), ..., z(r), each (N, D) or (B, T, D), mean over tokens."""
    steps = [wide(b) - wide(a) for a, b in pairwise(points)]
    pairs = ((steps[j], steps[k]) for j in range(len(steps)) for k in range(j + 1))
    return StepProducts(products=[(a * b).sum(-1).mean(dtype=torch.float64).item() for a, b in pairs])


def settling(iterates: Sequence[Tensor]) -> Settling:
    """Count tokens that would have stopped by each iteration but the last: z(0), ..., z(r), each (N or B, T, D)."""
    shares: list[float] = []
    least = torch.full((), torch.inf)
    for before, after in pairwise(iterates[:-1]):
        # A state that is 0 and stays so has stopped.
        least = torch.minimum(
            least.to(before.device), relative_change(before, after).nan_to_num(0.0, torch.inf)
        )
        values, number = least.flatten().double().sort().values, least.numel()
        found = torch.searchsorted(
            values, torch.tensor(TOLERANCES, dtype=values.dtype, device=values.device), right=True
        )
        shares += [count / number for count in found.tolist()]
    return Settling(shares=shares)


class FullOutput:
    """The full model's logits on one batch, with which the outputs of stopped models are compared, exactly.

    With p the full distribution, h and h' the full and the stopped model's final states and W the head, the logits
    differ by d = W (h' - h). Shifted so that the mean of d under p is 0 (ours):

        KL(full || stopped) = log(1 + s),  NLL(stopped) - NLL(full) = log(1 + s) - d[target],
        s = sum_v p_v (e^{d_v} - 1 - d_v)

    No term of s is negative and nothing cancels, so that even the influence of an iteration that has nearly
    converged, far below the rounding of the logits, keeps its digits. Only the full logits are kept; everything else
    of the vocabulary's size is made for a chunk of tokens at a time.
    """

    def __init__(
        self,
        head: nn.Linear,
        hidden_states: Tensor,
        batch: Mapping[str, Tensor],
        where: str = "the model",
    ):
        """hidden_states: (B, T, D), after the final norm. batch: with `labels` (B, T), negative for none.

        where: the batch, for errors. Outputs that are asked for nothing do not count.

        Raises InputError for logits that hold NaN or infinity.
        """
        self.head, self.hidden_states = head, hidden_states
        self.targets, self.asked = output_labels(batch).long(), asked_positions(batch)  # (B, T)
        self.num_predicted = max(1, int((self.targets >= 0).sum()))
        self.chunk_tokens = max(1, self.targets.numel() // NUM_CHUNKS)
        self.logits = head(hidden_states)  # (B, T, V)
        chunks = zip(*map(self._chunks, (self.logits, self.targets)), strict=True)
        total = sum(
            F.cross_entropy(wide(logits), targets.clamp(min=-1), ignore_index=-1, reduction="none").sum(
                dtype=torch.float64
            )
            for logits, targets in chunks
        )
        self.loss = float(total) / self.num_predicted
        if not math.isfinite(self.loss):
            raise InputError(f"{where}: expected finite logits, got NaN or infinity")

    def harms(
        self, stopped: Tensor, where: str = "the stopped model", rows: slice = slice(None)
    ) -> dict[str, list[float]]:
        """Compare n stopped models with the full one.

        stopped: (n, b, T, D), final states after the norm, of the batch's sequences `rows`.
        Returns for each of n: `kl`, KL(full || stopped), and `loss`, the growth of the NLL, in nats: means over the
        asked positions and over the targets of the whole batch, to which other sequences add nothing.
        Raises InputError where one of them has NaN or infinity for an output.
        """
        own = (self.logits[rows], self.hidden_states[rows], self.targets[rows], self.asked[rows], *stopped)
        totals = torch.zeros(2, len(stopped), dtype=torch.float64, device=stopped.device)
        for logits, states, targets, asked, *others in zip(*map(self._chunks, own), strict=True):
            full = wide(logits).softmax(-1)  # p, (m, V)
            for n, other in enumerate(others):
                d = wide(self.head((wide(other) - wide(states)).to(other.dtype)))  # (m, V)
                d -= (full * d).sum(-1, keepdim=True)
                kl = d.expm1().sub_(d).mul_(full).sum(-1).log1p()  # (m,)
                if not kl.isfinite().all():  # e^d overflows though p e^d need not
                    kl = (wide(logits).log_softmax(-1) + d).logsumexp(-1)
                growth = kl - d.gather(1, targets.clamp(min=0)[:, None])[:, 0]
                totals[0, n] += kl.masked_fill(~asked, 0.0).sum(dtype=torch.float64)
                totals[1, n] += growth[targets >= 0].sum(dtype=torch.float64)
        if not totals.isfinite().all():
            raise InputError(f"{where}: expected finite logits, got NaN or infinity")
        return {
            "kl": (totals[0] / self.asked.sum()).tolist(),
            "loss": (totals[1] / self.num_predicted).tolist(),
        }

    def loss_gradient(self) -> Tensor:
        """d loss / d hidden_states, (B, T, D), in the states' type: (softmax - one-hot) W / predicted tokens."""
        gradients = []
        for logits, targets in zip(self._chunks(self.logits), self._chunks(self.targets), strict=True):
            slope = wide(logits).softmax(-1)  # (m, V)
            slope[torch.arange(len(targets), device=targets.device), targets.clamp(min=0)] -= 1
            slope.masked_fill_((targets < 0)[:, None], 0.0).div_(self.num_predicted)
            gradients.append(slope.to(self.hidden_states.dtype) @ self.head.weight)
        return torch.cat(gradients).view_as(self.hidden_states)

    def _chunks(self, values: Tensor) -> Sequence[Tensor]:
        """(b, T, ...) -> views (m, ...)."""
        return values.flatten(0, 1).split(self.chunk_tokens)


def asked_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the outputs that count, (B, T) bool: those asked for a token; of text all, also a block's last."""
    labels = batch["labels"]
    return (
        output_labels(batch) >= 0 if bool((labels < 0).any()) else torch.ones_like(labels, dtype=torch.bool)
    )


def wide(states: Tensor) -> Tensor:
    """In float32, or float64 where they are that."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 for 0 / 0."""
    return torch.where(above == 0, 0.0, above / below)
