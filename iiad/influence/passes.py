"""The full pass that keeps every iterate, and the passes that go on from a stopped layer.

Legend: B batch, T tokens, D model width, L layers, t the layer (1-based as in the paper, from 0 in code), i the
iteration, r_t the iterations of layer t, H_t its state, x_{t+1} its output, n stops in a stack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iiad.models import IIETForCausalLM

__all__ = ["FullPass", "SolvedLayer", "Stop"]


@dataclass(frozen=True)
class SolvedLayer:
    """One layer of the full pass.

    iterates: z(0), ..., z(r_t), each (B, T, D); of a layer that was forgotten z(r_t) alone.
    stage_states: H_t where the predictor is truncated to its first 1, 2, ... stages and the corrector runs in full;
        empty where the predictor has one stage.
    """

    iterates: list[Tensor]
    stage_states: list[Tensor]

    @property
    def state(self) -> Tensor:
        """H_t = z(r_t), (B, T, D)."""
        return self.iterates[-1]

    @property
    def stages(self) -> list[Tensor]:
        """H_t by a predictor of 1, 2, ... stages, the last being all; empty where there is one stage."""
        return [*self.stage_states, self.state] if self.stage_states else []


@dataclass(frozen=True)
class Stop:
    """A layer (from 0) whose state is not H_t but this one, (B, T, D); all other layers run in full."""

    layer: int
    state: Tensor


Look = Callable[["FullPass", int], None]
"""Looks at a layer (from 0) while all its iterates are there, which may be forgotten after that."""

LookBack = Callable[[int, SolvedLayer, Tensor], None]
"""Looks at a layer and the total derivative of the loss by its H_t, (B, T, D), in the backward pass."""


class FullPass:
    """The model run once, in full, on one batch.

    Kept, each (B, T, D): the embeddings and every layer's H_t, and its other iterates until they are forgotten. What
    follows from them by a weighted sum (inputs and outputs of layers) is computed again when it is needed.
    """

    def __init__(
        self,
        model: IIETForCausalLM,
        input_ids: Tensor,
        look: Look | None = None,
        num_kept_layers: int | None = None,
    ):
        """input_ids: (B, T). look: called once for every layer, from the first.

        num_kept_layers: layers, from the first, whose iterates are not forgotten then; default: all.
        """
        self.model: Any = model.model  # an IIETModel
        self.embeddings = self.model.embed_tokens(input_ids)  # H_0
        # Without padding all rows have the same mask and angles: one row's are broadcast over any number of them.
        _, self.context = self.model.prepare(input_ids[:1])
        self.layers: list[SolvedLayer] = []
        hidden_states = self.embeddings
        for layer in range(len(self.model.layers)):
            self.layers.append(self._solve(layer, hidden_states))
            hidden_states = self.output(layer, self.layers[layer].state)
            if look is not None:
                look(self, layer)
            if num_kept_layers is not None and layer >= num_kept_layers:
                self.forget(layer)
        self.last = hidden_states
        """x_{L+1}, (B, T, D), before the final norm."""

    def _solve(self, layer: int, hidden_states: Tensor, stages: bool = True) -> SolvedLayer:
        block, predictor = self.model.layers[layer], self.model.predictor
        known = block.corrector.prepare(hidden_states, self.history(layer), block.num_iterations)
        iterates = block.iterates(hidden_states, known, predictor, **self.context)
        shorter = [
            block.iterates(hidden_states, known, predictor.truncated(j), **self.context)[-1]
            for j in range(1, predictor.num_evaluations)
            if stages
        ]
        return SolvedLayer(iterates, shorter)

    def recall(self, layer: int, num_rows: int) -> None:
        """Run a layer again if its iterates were forgotten, num_rows rows of the batch at a time."""
        if len(self.layers[layer].iterates) == self.model.layers[layer].num_iterations + 1:
            return
        parts = [self.select(slice(k, k + num_rows)) for k in range(0, len(self.embeddings), num_rows)]
        solved = [part._solve(layer, part.input(layer), stages=False).iterates for part in parts]
        whole = [torch.cat(rows) for rows in zip(*solved, strict=True)]
        self.layers[layer] = SolvedLayer(
            [*whole[:-1], self.layers[layer].state], self.layers[layer].stage_states
        )

    def forget(self, layer: int) -> None:
        """Free a layer's iterates but the last."""
        self.layers[layer] = SolvedLayer([self.layers[layer].state], self.layers[layer].stage_states)

    def select(self, rows: slice) -> FullPass:
        """The same pass on some rows of the batch: views, nothing is run or copied."""
        part = copy.copy(self)
        part.embeddings, part.last = self.embeddings[rows], self.last[rows]
        part.layers = [
            SolvedLayer([z[rows] for z in solved.iterates], [h[rows] for h in solved.stage_states])
            for solved in self.layers
        ]
        return part

    def history(self, layer: int) -> tuple[Tensor, ...]:
        """H_0, ..., H_{t-1} before a layer; of models without history H_0 alone, which they ignore."""
        if not self.model.layers[layer].corrector.uses_history:
            return (self.embeddings,)
        return (self.embeddings, *(solved.state for solved in self.layers[:layer]))

    def input(self, layer: int) -> Tensor:
        """x_t, (B, T, D), computed again."""
        return self.output(layer - 1, self.layers[layer - 1].state) if layer else self.embeddings

    def output(self, layer: int, state: Tensor) -> Tensor:
        """x_{t+1} (B, T, D) where the layer's state is `state` (B, T, D)."""
        corrector = self.model.layers[layer].corrector
        if not corrector.uses_history:  # its output is its state, whatever came before
            return state
        return corrector.output(state, corrector.prepare(state, self.history(layer), num_iterations=0))

    def run_stops(self, stops: Sequence[Stop]) -> Tensor:
        """The final states (n, B, T, D), after the norm, of n models that are stopped at one layer each.

        Only the layers above a stop are run. The stops, in order of their layers, go through them as one batch:
        at each layer those join that were stopped right below it.
        """
        num_rows = len(self.embeddings)
        waiting = list(stops)
        hidden_states, history = self._join(waiting.pop(0))
        for layer in range(stops[0].layer + 1, len(self.model.layers) + 1):
            while waiting and waiting[0].layer == layer - 1:
                joining, before = self._join(waiting.pop(0))
                hidden_states = torch.cat([hidden_states, joining])
                history = tuple(map(torch.cat, zip(history, before, strict=True)))
            if layer < len(self.model.layers):
                hidden_states, history = self.model.run_layer(layer, hidden_states, history, **self.context)
        return self.model.norm(hidden_states).unflatten(0, (len(stops), num_rows))

    def _join(self, stop: Stop) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x_{t+1} and the history with which a stopped model enters the layer above."""
        before = self.history(stop.layer)
        uses_history = self.model.layers[stop.layer].corrector.uses_history
        return self.output(stop.layer, stop.state), (*before, stop.state) if uses_history else before

    def run_back(self, gradient: Tensor, look: LookBack) -> None:
        """One backward pass, which shows the total derivative of a loss by every H_t, from the last layer down.

        gradient: the derivative by the normed final states, (B, T, D). An H_t reaches the loss through x_{t+1} and
        through the history that later layers read. Layers are run again one at a time with gradients, so that what is
        held for the backward pass is one layer's; only states get gradients, weights do not.
        """
        with _frozen(self.model), torch.enable_grad():
            last = self.last.detach().requires_grad_()
            (by_output,) = torch.autograd.grad(self.model.norm(last), last, gradient)
            by_state: list[Tensor | None] = [None] * (len(self.model.layers) + 1)  # of H_0, ..., H_L
            for layer in reversed(range(len(self.model.layers))):
                iterates, by_output = self._layer_gradients(layer, by_output, by_state)
                by_own = by_state.pop()
                assert by_own is not None
                solved = SolvedLayer([z.detach() for z in iterates], self.layers[layer].stage_states)
                del iterates  # and with them what was held for the backward pass
                look(layer, solved, by_own)

    def _layer_gradients(
        self, layer: int, by_output: Tensor, by_state: list[Tensor | None]
    ) -> tuple[list[Tensor], Tensor]:
        """From dLoss/dx_{t+1} to the layer's iterates and dLoss/dx_t; adds to by_state what reaches H_0, ..., H_t."""
        block = self.model.layers[layer]
        hidden_states = self.input(layer).detach().requires_grad_()
        history = tuple(state.detach().requires_grad_() for state in self.history(layer))
        known = block.corrector.prepare(hidden_states, history, block.num_iterations)
        iterates = block.iterates(hidden_states, known, self.model.predictor, **self.context)
        state = iterates[-1]
        output, later = block.corrector.output(state, known), by_state[layer + 1]
        if later is None or not block.corrector.uses_history:
            outputs, received = [output], [by_output]
        else:
            outputs, received = [output, state], [by_output, later]
        inputs = [state, hidden_states, *(history if block.corrector.uses_history else ())]
        by_state[layer + 1], by_input, *by_history = torch.autograd.grad(
            outputs, inputs, received, allow_unused=True
        )
        for k, gradient in enumerate(by_history):
            earlier = by_state[k]
            by_state[k] = gradient if earlier is None else earlier + gradient
        return iterates, by_input


@contextmanager
def _frozen(module: torch.nn.Module) -> Iterator[None]:
    """Parameters ask for no gradients inside the block, and are then as they were."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
