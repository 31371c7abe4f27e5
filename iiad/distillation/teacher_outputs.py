"""A teacher's signals for a batch, without a second copy of its logits.

Legend: B blocks of a batch, T tokens, k entries kept, n hidden states kept, D model width, V vocabulary, m tokens
of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from iiad.errors import InputError
from iiad.training.batches import Batch
from iiad.training.head import asked_values
from iiad.training.learner import hidden_states
from iiad.training.scoring import logits_in_chunks, run_trunk

__all__ = ["BatchSignals", "TeacherOutputs", "top_gaps"]


class BatchSignals(NamedTuple):
    """Signals of a batch, before they are rounded."""

    ids: (
        Tensor | None
    )  # (B, T, k) int64, the likeliest first; None where the final hidden state is kept instead
    gaps: (
        Tensor | None
    )  # (B, T, k) float32: how far entries 2, ..., k and the tail lie below the likeliest, in nats
    kept_mass: float  # probability of what is kept, summed over the positions that are asked for
    states: Tensor | None  # (B, n, T, D)


def top_gaps(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest tokens and how far below the first of them the others and the tail lie (ours).

    logits: (m, V), float32, which is overwritten. Returns ids (m, k), gaps (m, k) in nats, of entries 2, ..., k and
    then the tail, NaN where the logits hold NaN or +inf, and the mass of the k (m,) in float64. Gaps need no
    normalisation, and the tail is summed up over its own tokens: nothing cancels, however peaked the distribution is.
    """
    logits = logits.div_(temperature)
    top, ids = logits.topk(top_k)  # (m, k), falling
    tail = logits.scatter_(1, ids, -torch.inf).logsumexp(1)  # (m,); -inf where k = V
    first = top[:, :1] + 0 * top[:, :1]  # NaN where it is infinite, which shows then in every gap
    gaps = torch.cat([first - top[:, 1:], first - tail[:, None]], dim=1)
    kept = torch.sigmoid((top.logsumexp(1) - tail).double())
    return ids, gaps, kept


def _spread(values: Tensor, batch: Batch, fill: Tensor) -> Tensor:
    """Return the values (N, k) of asked positions in their places, `fill` (k,) in the others: (B * T, k)."""
    if "asked" not in batch:
        return values
    return fill.to(values).repeat(batch["labels"].numel(), 1).index_copy(0, batch["asked"], values)


class TeacherOutputs:
    """A teacher that is asked for signals, batch by batch.

    Where the head is known to be a plain matrix it runs on a few tokens at a time; other models make the logits
    of the whole batch themselves, and should be given one block at a time.
    """

    def __init__(
        self,
        model: Any,
        top_k: int | None,
        temperature: float,
        hidden_layers: list[int],
        dtype: str = "float32",
        chunk_tokens: int | None = None,
    ):
        """top_k: None for hidden states alone. dtype: "bfloat16" runs all but the head under autocast.

        chunk_tokens: m; default: 64 MiB of logits.
        """
        self.model = model.eval()
        self.top_k, self.temperature, self.hidden_layers = top_k, temperature, hidden_layers
        self.dtype = dtype
        self.chunk_tokens = chunk_tokens

    @torch.inference_mode()
    def __call__(self, batch: Batch, where: str) -> BatchSignals:
        """batch: the model's inputs and labels (B, T). Signals of positions that are not asked for mean nothing.

        where: what an error calls the batch. Raises InputError for NaN or infinity.
        """
        states, output = run_trunk(self.model, batch, self.dtype, bool(self.hidden_layers))
        hidden = None
        if self.hidden_layers:
            hidden = torch.stack([hidden_states(output)[layer] for layer in self.hidden_layers], dim=1)
            if not hidden.isfinite().all():
                raise InputError(
                    f"{where}: the teacher's hidden states: expected finite numbers, got NaN or infinity"
                )
        del output
        asked = asked_values(states, batch)
        if self.top_k is None:  # of the last state the head makes the rest
            return BatchSignals(None, None, float(len(asked)), hidden)
        ids, gaps, kept = self._top(asked, self.top_k, where)
        shape = (*batch["labels"].shape, self.top_k)
        fill = torch.arange(self.top_k), torch.zeros(self.top_k)  # the ids of a token are different ones
        ids, gaps = (
            _spread(values, batch, other).view(shape) for values, other in zip((ids, gaps), fill, strict=True)
        )
        return BatchSignals(ids, gaps, kept, hidden)

    def _top(self, states: Tensor, top_k: int, where: str) -> tuple[Tensor, Tensor, float]:
        """States (N, D or V) -> ids and gaps (N, k), and the mass of the k, summed."""
        ids, gaps, kept = [], [], torch.zeros((), dtype=torch.float64, device=states.device)
        for logits in logits_in_chunks(self.model, states, self.chunk_tokens):  # (m, V)
            chunk_ids, chunk_gaps, mass = top_gaps(logits.float(), top_k, self.temperature)
            ids.append(chunk_ids)
            gaps.append(chunk_gaps)
            kept += mass.sum()
        all_gaps = torch.cat(gaps)
        if all_gaps.isnan().any():
            raise InputError(f"{where}: the teacher's logits: expected finite numbers, got NaN or infinity")
        return torch.cat(ids), all_gaps, float(kept)
