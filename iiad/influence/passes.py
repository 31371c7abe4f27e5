"""The passes through a model: those of its stacks, one after another.

A model is a list of stacks: a causal model has one, an encoder-decoder two, of which the second attends to the output
of the first. Legend, see `stack_passes`: B batch, S source tokens, T tokens, D model width, n stopped models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from iiad.data import stack_inputs
from iiad.identities import layer_name

from .batches import IteratedModel
from .stack_passes import Solved, SolvedLayer, StackPass

__all__ = ["FullPass"]


class FullPass:
    """The model on one batch: `run` in full, then `run_down` and `run_stops` on all sequences or a selection.

    Layers are numbered as in the plan, from 0, through all stacks.
    """

    def __init__(self, model: IteratedModel, batch: Mapping[str, Tensor]):
        """batch: `input_ids` (B, T), without padding on the left, and of an encoder-decoder `attention_mask` (B, S),
        0 at padding (default: none), and `decoder_input_ids` (B, T)."""
        self.num_stages = model.config.num_start_evaluations
        self.stacks = [
            StackPass(stack, *given, self.num_stages, batch.get("attention_mask"))
            for stack, given in zip(model.base_model.stacks, stack_inputs(batch), strict=True)
        ]

    @property
    def num_layers(self) -> int:
        """L, of all stacks."""
        return sum(stack.num_layers for stack in self.stacks)

    def name(self, layer: int) -> str:
        """Name a layer for people, see `layer_name`."""
        return layer_name(layer, self.num_layers - self.stacks[-1].num_layers)

    @property
    def lengths(self) -> list[int]:
        """Tokens of a sequence in each stack: T, or S and T."""
        return [stack.states[0].shape[1] for stack in self.stacks]

    def run(self) -> Iterator[tuple[int, SolvedLayer]]:
        """Run the layers, from the first, and yield each as long as its iterates are there."""
        source = None
        for stack in self.stacks:
            yield from stack.run(source)
            source = stack.final_states()

    def final_states(self) -> Tensor:
        """The normed final states (B, T, D)."""
        return self.stacks[-1].final_states()

    def select(self, rows: slice) -> FullPass:
        """The same pass for some of the batch's sequences: views, nothing is run or copied."""
        part = copy.copy(self)
        part.stacks = [stack.select(rows) for stack in self.stacks]
        return part

    def output(self, layer: int, state: Tensor) -> Tensor:
        """x_{t+1} (B, T, D) where the layer's state is `state` (B, T, D)."""
        number, own = self.find(layer)
        return self.stacks[number].output(own, state)

    def run_stops(self, layer: int, states: Sequence[Tensor]) -> Tensor:
        """The normed final states (n, B, T, D) of n models that have `states`, each (B, T, D), as this layer's.

        Only the layers above are run, of this stack and those after it, as one batch of n * B sequences.
        """
        number, own = self.find(layer)
        output = self.stacks[number].run_stops(own, states)
        for stack in self.stacks[number + 1 :]:
            output = stack.run_again(output)
        return output.unflatten(0, (len(states), -1))

    def run_down(self, gradient: Tensor | None = None) -> Iterator[Solved]:
        """Solve every layer again, from the last, and yield it with the total derivative of a loss by its H_t.

        gradient: the loss's derivative by the normed final states, (B, T, D); None: no derivatives are made.
        """
        for stack in reversed(self.stacks):
            gradient = yield from stack.run_down(gradient)

    def find(self, layer: int) -> tuple[int, int]:
        """Return the number of the layer's stack, and its own in that, both from 0."""
        places = [(s, own) for s, stack in enumerate(self.stacks) for own in range(stack.num_layers)]
        return places[layer]
