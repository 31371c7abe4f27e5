"""Tokens that an evaluation is for: all of a batch or, where iterations stop by themselves, those that go on.

Legend: B batch, T tokens, D model width, N query heads, K key/value heads, E head width, S positions attended to;
of a selection n tokens in b sequences, at most q of them in one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EVERY_TOKEN", "TokenSelection", "select_tokens"]


class TokenSelection:
    """All tokens: each is evaluated where it stands."""

    def take(self, states: Tensor) -> Tensor:
        """(B or 1, T, D) -> what is evaluated: all of it or, of n tokens, (1, n, D)."""
        return states

    def put(self, found: Tensor, states: Tensor) -> Tensor:
        """Return states (B, T, D) with what was found, shaped as `take` returns it, for the tokens selected."""
        return found

    def lay_out(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return what attention takes: queries by sequence, and the keys, values and mask of those sequences.

        query: (B, N, T, E) or, of n tokens, (1, N, n, E). key, value: (B, K, S, E). mask: (B or 1, heads or 1, T, S).
        """
        return query, key, value, mask

    def flatten(self, mixed: Tensor) -> Tensor:
        """Undo the layout of the queries: (b, q, N, E) -> (1, n, N, E)."""
        return mixed


class _MaskedTokens(TokenSelection):
    """All are evaluated, and those that have stopped keep what they had: for gradients and compiled graphs."""

    def __init__(self, going: Tensor):
        self.going = going[..., None]

    def put(self, found: Tensor, states: Tensor) -> Tensor:
        return torch.where(self.going, found, states)


class _GatheredTokens(TokenSelection):
    """The tokens that go on, one after another as one sequence; attention alone sees them by sequence.

    There each sequence is as long as the longest: its last token stands for those that it lacks.
    """

    def __init__(self, going: Tensor):
        self.batch, self.time = going.nonzero(as_tuple=True)  # (n,)
        self.num_sequences, self.num_positions = going.shape
        self.rows, counts = self.batch.unique_consecutive(return_counts=True)  # (b,)
        ends, slots = counts.cumsum(0)[:, None], torch.arange(int(counts.max()), device=going.device)
        self.filled = slots < counts[:, None]  # (b, q)
        self.order = torch.minimum(ends - counts[:, None] + slots, ends - 1)  # (b, q) of 0, ..., n - 1

    def take(self, states: Tensor) -> Tensor:
        return states.expand(self.num_sequences, -1, -1)[self.batch, self.time][None]

    def put(self, found: Tensor, states: Tensor) -> Tensor:
        return states.index_put((self.batch, self.time), found[0])

    def lay_out(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        query = query[0][:, self.order].transpose(0, 1)  # (b, N, q, E)
        if len(self.rows) < self.num_sequences:
            key, value = key[self.rows], value[self.rows]
        times = self.time[self.order]  # (b, q)
        if mask is not None:
            mask = mask.expand(self.num_sequences, -1, -1, -1)[self.rows[:, None], :, times].transpose(1, 2)
        elif is_causal and self.num_positions > 1:
            # What attention functions do without a mask: query t attends to keys 0, ..., t.
            mask = (torch.arange(key.shape[2], device=key.device) <= times[..., None])[:, None]
        return query, key, value, mask  # (b, N, q, E), (b, K, S, E) twice, (b, 1, q, S)

    def flatten(self, mixed: Tensor) -> Tensor:
        return mixed[self.filled][None]


EVERY_TOKEN = TokenSelection()


def select_tokens(going: Tensor | None, gathered: bool) -> TokenSelection | None:
    """Return the tokens that go on: (B, T), true where they do; None: all. Return None where none does.

    gathered: evaluate these alone, which waits for their number; otherwise all, and take theirs.
    """
    if going is None:
        return EVERY_TOKEN
    if not gathered:
        return _MaskedTokens(going)
    number = int(going.sum())
    if number == going.numel():
        return EVERY_TOKEN
    return _GatheredTokens(going) if number else None
