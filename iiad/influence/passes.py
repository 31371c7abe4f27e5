"""The passes through a model: one in full, one more from the last layer down, and those of stopped models.

All calls into a model's layers are here. Legend: B batch, T tokens, D model width, L layers, t the layer (1-based as
in the paper, from 0 in code), i the iteration, r_t the iterations of layer t, z(i) its iterates, H_t = z(r_t) its
state, x_t its input, n stopped models. A stopped model has another state in place of one H_t.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iiad.models import IIETForCausalLM

__all__ = ["FullPass", "SolvedLayer"]


@dataclass(frozen=True)
class SolvedLayer:
    """One layer, solved. Both lists hold states (B, T, D) and end with H_t, which both chains lead to.

    iterates: z(0), ..., z(r_t).
    stages: H_t by the first 1, 2, ... stages of the predictor, the corrector in full; empty if it has one stage.
    """

    iterates: list[Tensor]
    stages: list[Tensor]

    @property
    def chains(self) -> tuple[list[Tensor], list[Tensor]]:
        """Both lists: steps along one are iterations, along the other stages."""
        return self.iterates, self.stages


class FullPass:
    """The model on one batch: `run` in full, then `run_down` and `run_stops` on all sequences or a selection.

    Kept, each (B, T, D), are the embeddings H_0, every H_t and x_{L+1}. Inputs and outputs of layers are weighted
    sums of these (method, section 1.1) and are computed again when needed; so are iterates.
    """

    def __init__(self, model: IIETForCausalLM, input_ids: Tensor):
        """input_ids: (B, T), without padding."""
        self.model: Any = model.model  # an IIETModel
        self.num_stages = model.config.num_start_evaluations
        # Without padding all sequences have the same mask and angles: one's are broadcast over any number of them.
        _, self.context = self.model.prepare(input_ids[:1])
        self.states: list[Tensor] = [self.model.embed_tokens(input_ids)]
        self.last: Tensor = self.states[0]
        """x_{L+1}, (B, T, D), before the final norm, once the pass has run."""

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.model.layers)

    def run(self) -> Iterator[tuple[int, SolvedLayer]]:
        """Run the layers, from the first, and yield each (from 0) as long as its iterates are there."""
        for layer in range(self.num_layers):
            solved = self._with_stages(layer, self._solve(layer)[1])
            self.states.append(solved.iterates[-1])
            yield layer, solved
        self.last = self._input(self.num_layers)

    def final_states(self) -> Tensor:
        """The normed final states (B, T, D)."""
        return self.model.norm(self.last)

    def select(self, rows: slice) -> FullPass:
        """The same pass for some of the batch's sequences: views, nothing is run or copied."""
        part = copy.copy(self)
        part.states, part.last = [state[rows] for state in self.states], self.last[rows]
        return part

    def output(self, layer: int, state: Tensor) -> Tensor:
        """x_{t+1} (B, T, D) where the layer's state is `state` (B, T, D)."""
        return self.model.layers[layer].output(state, *self.states[: layer + 1])

    def run_stops(self, layer: int, states: Sequence[Tensor]) -> Tensor:
        """The normed final states (n, B, T, D) of n models that have `states`, each (B, T, D), as this layer's.

        Only the layers above are run, as one batch of n * B sequences.
        """
        n = len(states)
        hidden_states = torch.cat([self.output(layer, state) for state in states])
        history = tuple(state.repeat(n, 1, 1) for state in self._history(layer))
        if self._uses_history(layer):
            history = (*history, torch.cat(list(states)))
        for above in range(layer + 1, self.num_layers):
            hidden_states, history = self.model.run_layer(above, hidden_states, history, **self.context)
        return self.model.norm(hidden_states).unflatten(0, (n, -1))

    def run_down(self, gradient: Tensor | None = None) -> Iterator[tuple[int, SolvedLayer, Tensor | None]]:
        """Solve every layer again, from the last, and yield it with the total derivative of a loss by its H_t.

        gradient: the loss's derivative by the normed final states, (B, T, D); None: no derivatives are made.
        H_t reaches the loss through x_{t+1} and through the history that later layers read. The graph of one layer
        is held at a time; only states get gradients, weights do not.
        """
        if gradient is None:
            for layer in reversed(range(self.num_layers)):
                yield layer, self._with_stages(layer, self._solve(layer)[1]), None
            return
        with torch.enable_grad(), _frozen(self.model):
            last = self.last.detach().requires_grad_()
            (by_output,) = torch.autograd.grad(self.model.norm(last), last, gradient)
        by_state = [
            torch.zeros_like(by_output) for _ in self.states
        ]  # by H_0, ..., H_L, what is known so far
        for layer in reversed(range(self.num_layers)):
            iterates, by_output = self._step_back(layer, by_output, by_state)
            yield layer, self._with_stages(layer, iterates), by_state.pop()

    def _step_back(
        self, layer: int, by_output: Tensor, by_state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """From dLoss/dx_{t+1} to the layer's iterates and dLoss/dx_t; adds to dLoss/dH_0, ..., dLoss/dH_t."""
        with torch.enable_grad(), _frozen(self.model):
            x, *history = (h.detach().requires_grad_() for h in (self._input(layer), *self._history(layer)))
            output, iterates = self._solve(layer, x, *history)
            state = iterates[-1]
            by_state[layer + 1], by_input, *by_history = torch.autograd.grad(
                [output, state],
                [state, x, *history],
                [by_output, by_state[layer + 1]],
                materialize_grads=True,
            )
        for total, found in zip(by_state, by_history, strict=False):
            total += found
        return [z.detach() for z in iterates], by_input

    def _solve(
        self, layer: int, *inputs: Tensor, num_stages: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """x_{t+1} and z(0), ..., z(r_t); inputs: x_t and the history, default: the pass's own."""
        x, *history = inputs or (self._input(layer), *self._history(layer))
        predict = self.model.first_iterate
        return self.model.layers[layer].solve(x, predict, *history, num_stages=num_stages, **self.context)

    def _with_stages(self, layer: int, iterates: list[Tensor]) -> SolvedLayer:
        """The solved layer; each shorter predictor is run."""
        if self.num_stages == 1:
            return SolvedLayer(iterates, [])
        shorter = [self._solve(layer, num_stages=j)[1][-1] for j in range(1, self.num_stages)]
        return SolvedLayer(iterates, [*shorter, iterates[-1]])

    def _uses_history(self, layer: int) -> bool:
        return bool(self.model.layers[layer].corrector.uses_history)

    def _history(self, layer: int) -> list[Tensor]:
        """H_0, ..., H_{t-1}, which layer t reads; none in a model without history."""
        return self.states[: layer + 1] if self._uses_history(layer) else []

    def _input(self, layer: int) -> Tensor:
        """x_t; of layer L the final x_{L+1}."""
        return self.output(layer - 1, self.states[layer]) if layer else self.states[0]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside the block."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
