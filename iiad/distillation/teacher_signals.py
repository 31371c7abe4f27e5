"""Teachers: a live model or a folder of stored signals, alike to what learns from them.

Legend: B batch, T tokens, N positions that are asked for, D model width, L layers, V vocabulary, k kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iiad.training.batches import Batch, Blocks
from iiad.training.head import asked_values
from iiad.training.learner import Learner, hidden_states, shard

from .divergences import FullTarget, TopTarget
from .stored_signals import SignalBlocks, StoredSignals

__all__ = ["LiveTeacher", "Signal", "StoredTeacher", "Teacher"]


class Signal(NamedTuple):
    """A teacher's output for the N positions of a batch that are asked for: of text all B * T."""

    target: FullTarget | TopTarget
    """Its next-token distribution."""
    hidden_states: tuple[Tensor, ...]
    """The hidden states asked for, each (N, D)."""


class Teacher(Protocol):
    """Signals for batches."""

    def blocks(self, blocks: Any) -> Blocks:
        """Return the blocks of text, with whatever the signals need of each in its item."""

    def signal(self, batch: Batch) -> Signal:
        """Return its signal for a batch."""


class LiveTeacher:
    """A model that is run beside the student; its logits are made in chunks, by the loss.

    hidden_layers: which of the L + 1 hidden states to hand out. bf16: run it under autocast, as the student is.
    sharded: over all processes, as the student is. Either way the model given is the teacher's from then on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        hidden_layers: Sequence[int] = (),
        bf16: bool = False,
        sharded: bool = False,
    ):
        model.requires_grad_(False).eval()
        self.learner, self.hidden_layers = Learner(model, bf16=bf16), tuple(hidden_layers)
        self.head: Tensor | None = None
        if bf16 and not sharded:
            # Autocast keeps what it has cast of weights that learn; these it would cast anew for every evaluation.
            for module in (each for layer in model.base_model.layers for each in layer.modules()):
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
            self.head = self.learner.head.to(torch.bfloat16)  # a copy: the embeddings may be the same tensor
        if sharded:
            shard(self.learner)

    def blocks(self, blocks: Any) -> Blocks:
        """Return the blocks as they are."""
        return blocks

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        """batch: inputs of the model, and what is asked for."""
        found = self.learner.states(batch, output_hidden_states=bool(self.hidden_layers))
        hidden = tuple(asked_values(hidden_states(found)[layer], batch) for layer in self.hidden_layers)
        head = self.learner.head if self.head is None else self.head
        return Signal(FullTarget(asked_values(found.last_hidden_state, batch), head), hidden)


class StoredTeacher:
    """Signals that `iiad capture` kept: of the likeliest tokens or of all, and maybe hidden states.

    Those of all tokens are final hidden states and the head, of which the loss makes the logits, as a live teacher's.
    bf16: the student runs under autocast.
    """

    def __init__(self, stored: StoredSignals, hidden_layers: Sequence[int] = (), bf16: bool = False):
        self.stored, self.hidden_layers = stored, tuple(hidden_layers)
        self.head: Tensor | None = None
        if stored.record.head is not None:
            head = stored.read_head()
            self.head = head.to(torch.bfloat16) if bf16 else head  # cast once, not in every step

    def blocks(self, blocks: Any) -> Blocks:
        """Return the blocks with their signals; as many as have some."""
        return SignalBlocks(blocks, self.stored, self.hidden_layers)

    def signal(self, batch: Batch) -> Signal:
        """batch: with what `StoredSignals.read` returns, (B, ...)."""
        target: FullTarget | TopTarget
        if self.head is not None:
            states = asked_values(batch["final_states"], batch)
            self.head = self.head.to(states.device)  # the student's; a copy in the first step alone
            target = FullTarget(states, self.head)
        else:
            target = TopTarget(
                *(asked_values(batch[f"top_{name}"], batch) for name in ("ids", "log_probs", "tail"))
            )
        hidden = batch["hidden_states"].unbind(1) if self.hidden_layers else ()
        return Signal(target, tuple(asked_values(state, batch) for state in hidden))
