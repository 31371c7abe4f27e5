"""The passes through one stack of layers: one in full, one more from the last layer down, those of stopped models.

All calls into a model's layers are here.

Legend: B batch, T tokens (of the source in an encoder), D model width, L layers, t the layer (1-based as in the
paper, from 0 in code), i the iteration, r_t the iterations of layer t, z(i) its iterates, H_t = z(r_t) its state, x_t
its input, n stopped models. A stopped model has another state in place of one H_t.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iiad.models.solvers import extrapolate

__all__ = ["Solved", "SolvedLayer", "StackPass"]


@dataclass(frozen=True)
class SolvedLayer:
    """One layer, solved. Both lists hold states (B, T, D) and end with H_t, which both chains lead to.

    input: x_t, (B, T, D).
    iterates: z(0), ..., z(r_t).
    stages: H_t by the first 1, 2, ... stages of the predictor, the corrector in full; empty if it has one stage.
    """

    input: Tensor
    iterates: list[Tensor]
    stages: list[Tensor]

    def extrapolated(self, coefficients: Sequence[Sequence[float]]) -> SolvedLayer:
        """The layer with its stops extrapolated; coefficients: of the stops 1, 2, ..., r - 1 at most."""
        stops = [
            extrapolate(self.iterates[: i + 1], self.input, found)[-1]
            for i, found in enumerate(coefficients, 1)
        ]
        return SolvedLayer(
            self.input, [self.iterates[0], *stops, *self.iterates[len(stops) + 1 :]], self.stages
        )

    @property
    def chains(self) -> tuple[list[Tensor], list[Tensor]]:
        """Both lists: steps along one are iterations, along the other stages."""
        return self.iterates, self.stages


Solved = tuple[int, SolvedLayer, Tensor | None]
"""A layer's number in the plan, itself, and the total derivative of a loss by its H_t (B, T, D), if it is made."""


class StackPass:
    """One stack of layers on one batch.

    Kept, each (B, T, D), are the embeddings H_0, every H_t and x_{L+1}, and the output (B, S, D) of the stack that
    the layers attend to, if there is one. Inputs and outputs of layers are weighted sums of these (method, section
    1.1) and are computed again when needed; so are iterates. Layers are numbered within the stack, from 0.
    """

    def __init__(
        self,
        stack: Any,
        input_ids: Tensor,
        padding: Tensor | None,
        num_stages: int,
        source_padding: Tensor | None,
    ):
        """stack: a LayerStack; input_ids: (B, T). padding, source_padding: (B, T) and (B, S), 0 where it is."""
        self.stack, self.num_stages = stack, num_stages
        self.padding, self.source_padding = padding, source_padding
        self.states: list[Tensor] = [stack.embed_tokens(input_ids)]
        self.last: Tensor = self.states[0]
        """x_{L+1}, (B, T, D), before the final norm, once the pass has run."""
        self.source: Tensor | None = None

    @property
    def num_layers(self) -> int:
        """Layers of the stack."""
        return len(self.stack.layers)

    def run(self, source: Tensor | None) -> Iterator[tuple[int, SolvedLayer]]:
        """Run the layers, from the first, and yield each with its number in the plan.

        source: (B, S, D), the output of the stack before this one.
        """
        self.source = source
        for layer in range(self.num_layers):
            solved = self._with_stages(layer, self._solve(layer)[1])
            self.states.append(solved.iterates[-1])
            yield self._place(layer), solved
        self.last = self._input(self.num_layers)

    def final_states(self) -> Tensor:
        """The normed final states (B, T, D)."""
        states: Tensor = self.stack.norm(self.last)
        return states

    def select(self, rows: slice) -> StackPass:
        """The same pass for some of the batch's sequences: views, nothing is run or copied."""
        part = copy.copy(self)
        part.states, part.last = [state[rows] for state in self.states], self.last[rows]
        for name in ("padding", "source_padding", "source"):
            given = getattr(self, name)
            setattr(part, name, None if given is None else given[rows])
        return part

    def output(self, layer: int, state: Tensor) -> Tensor:
        """x_{t+1} (B, T, D) where the layer's state is `state` (B, T, D)."""
        output: Tensor = self.stack.layers[layer].output(state, *self.states[: layer + 1])
        return output

    def run_stops(self, layer: int, states: Sequence[Tensor]) -> Tensor:
        """The normed final states (n * B, T, D) of n stacks that have `states`, each (B, T, D), as this layer's."""
        n = len(states)
        hidden_states = torch.cat([self.output(layer, state) for state in states])
        history = tuple(state.repeat(n, 1, 1) for state in self._history(layer))
        if self._uses_history(layer):
            history = (*history, torch.cat(list(states)))
        context = self._context(hidden_states, _repeat(self.source, n))
        output: Tensor = self.stack.run_layers(hidden_states, history, layer + 1, **context)
        return output

    def run_again(self, source: Tensor) -> Tensor:
        """The normed final states (n * B, T, D) with other outputs (n * B, S, D) of the stack before this one."""
        embeddings = self.states[0].repeat(len(source) // len(self.states[0]), 1, 1)
        output: Tensor = self.stack.run_layers(embeddings, (embeddings,), **self._context(embeddings, source))
        return output

    def run_down(self, gradient: Tensor | None) -> Generator[Solved, None, Tensor | None]:
        """Solve every layer again, from the last, and yield it with the total derivative of a loss by its H_t.

        gradient: the loss's derivative by the normed final states, (B, T, D); None: no derivatives are made.
        H_t reaches the loss through x_{t+1} and through the history that later layers read. The graph of one layer
        is held at a time; only states get gradients, weights do not. Returns the derivative by the source, (B, S, D),
        which each layer reads; None without either.
        """
        if gradient is None:
            for layer in reversed(range(self.num_layers)):
                yield self._place(layer), self._with_stages(layer, self._solve(layer)[1]), None
            return None
        with torch.enable_grad(), _frozen(self.stack):
            last = self.last.detach().requires_grad_()
            (by_output,) = torch.autograd.grad(self.stack.norm(last), last, gradient)
        # By H_0, ..., H_L and the source, what is known so far.
        by_state = [torch.zeros_like(by_output) for _ in self.states]
        by_source = None if self.source is None else torch.zeros_like(self.source)
        for layer in reversed(range(self.num_layers)):
            iterates, by_output = self._step_back(layer, by_output, by_state, by_source)
            yield self._place(layer), self._with_stages(layer, iterates), by_state.pop()
        return by_source

    def _step_back(
        self, layer: int, by_output: Tensor, by_state: list[Tensor], by_source: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """From dLoss/dx_{t+1} to the layer's iterates and dLoss/dx_t; adds to dLoss/dH_0, ..., dLoss/dH_t and to
        dLoss/dsource."""
        with torch.enable_grad(), _frozen(self.stack):
            x, *history = (h.detach().requires_grad_() for h in (self._input(layer), *self._history(layer)))
            source = None if self.source is None else self.source.detach().requires_grad_()
            output, iterates = self._solve(layer, x, *history, source=source)
            state = iterates[-1]
            by_state[layer + 1], by_input, *others = torch.autograd.grad(
                [output, state],
                [state, x, *history, *([] if source is None else [source])],
                [by_output, by_state[layer + 1]],
                materialize_grads=True,
            )
        if by_source is not None:
            by_source += others.pop()
        for total, more in zip(by_state, others, strict=False):
            total += more
        return [z.detach() for z in iterates], by_input

    def _solve(
        self, layer: int, *inputs: Tensor, source: Tensor | None = None, num_stages: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """x_{t+1} and z(0), ..., z(r_t); inputs: x_t and the history. Default of them and source: the pass's own."""
        x, *history = inputs or (self._input(layer), *self._history(layer))
        context = self._context(x, self.source if source is None else source)
        predict = self.stack.first_iterate
        solved: tuple[Tensor, list[Tensor]] = self.stack.layers[layer].solve(
            x, predict, *history, num_stages=num_stages, **context
        )
        return solved

    def _context(self, hidden_states: Tensor, source: Tensor | None) -> dict[str, Any]:
        """Return masks, angles and the source for hidden_states (n * B, T, D): n versions of the B sequences."""
        n = len(hidden_states) // len(self.states[0])
        # Without padding all sequences have the same mask and angles: one's are broadcast over any number of them.
        sample = hidden_states[:1] if self.padding is None else hidden_states
        _, context = self.stack.prepare(None, _repeat(self.padding, n), inputs_embeds=sample)
        if source is not None:
            context |= self.stack.attended_source(hidden_states, source, _repeat(self.source_padding, n))
        return dict(context)

    def _with_stages(self, layer: int, iterates: list[Tensor]) -> SolvedLayer:
        """The solved layer; each shorter predictor is run."""
        if self.num_stages == 1:
            return SolvedLayer(self._input(layer), iterates, [])
        shorter = [self._solve(layer, num_stages=j)[1][-1] for j in range(1, self.num_stages)]
        return SolvedLayer(self._input(layer), iterates, [*shorter, iterates[-1]])

    def _place(self, layer: int) -> int:
        """The layer's number in the plan, from 0."""
        return int(self.stack.layers[layer].place)

    def _uses_history(self, layer: int) -> bool:
        return bool(self.stack.layers[layer].corrector.uses_history)

    def _history(self, layer: int) -> list[Tensor]:
        """H_0, ..., H_{t-1}, which layer t reads; none in a model without history."""
        return self.states[: layer + 1] if self._uses_history(layer) else []

    def _input(self, layer: int) -> Tensor:
        """x_t; of layer L the final x_{L+1}."""
        return self.output(layer - 1, self.states[layer]) if layer else self.states[0]


def _repeat(values: Tensor | None, n: int) -> Tensor | None:
    """(B, ...) -> (n * B, ...), n times one after another."""
    return values if values is None or n == 1 else torch.cat([values] * n)


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
