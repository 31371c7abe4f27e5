"""Teacher training in two phases: without iterations at first, with all of them at the end (paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .processes import assign, gather_full

__all__ = ["TwoPhases", "continue_without_a_jump"]


class TwoPhases:
    """Run no iterations before step ceil(iterations_start * max_steps), the whole plan from there on.

    The step alone decides, so that a resumed run is in the phase it would have been in.
    smooth: begin the second phase with `continue_without_a_jump`.
    """

    def __init__(self, plan: Sequence[int], iterations_start: float, max_steps: int, smooth: bool = True):
        self.plan = list(plan)
        self.first_step = math.ceil(iterations_start * max_steps)
        self.smooth = smooth

    def enter(self, step: int, model: Any) -> None:
        """Give the model the plan of a step, counted from 0."""
        wanted = self.plan if step >= self.first_step else [0] * len(self.plan)
        if model.config.iterations != wanted:
            model.set_num_iterations(wanted)
        # At the switch alone, and again when resumed from the checkpoint that was saved just before it.
        if self.smooth and 0 < step == self.first_step:
            continue_without_a_jump(model.base_model)

    def leave(self, model: Any) -> None:
        """Give the model its whole plan, also when no step was left for it."""
        model.set_num_iterations(self.plan)


@torch.no_grad()
def continue_without_a_jump(model: Any) -> None:
    """Set the weights that only iterations use so that the iterations, at first, change nothing (ours).

    A model trained without iterations has not learnt w and LN; their initial values make z(1) another function
    than z(0), and what was learnt is lost. With w_t = (c_{t-1}, 0), the combination at each iteration is the
    layer's own input, u = x_t, and with LN = LN0 so z(i) = LN(F(x_t)) = z(0) for all i. The gradient by w[t,t] is
    not zero, so the iterations grow from there. A plain model has nothing to set: with relaxation, which starts
    at 0, it is continuous by itself; without, it cannot be.

    model: the base model, an encoder-decoder's with two stacks of layers.
    """
    for stack in model.stacks:
        _continue_stack(stack.layers)


def _continue_stack(layers: Any) -> None:
    before = None
    for layer in layers:
        corrector = layer.corrector
        if not corrector.uses_history:
            continue
        for new, old in zip(
            corrector.update_norm.parameters(), corrector.start_norm.parameters(), strict=True
        ):
            assign(new, gather_full(old))
        # x_1 = H_0; x_t is the combination by c that the layer before made
        weights = torch.zeros_like(gather_full(corrector.update_weights))
        weights[:-1] = 1.0 if before is None else gather_full(before.output_weights)
        assign(corrector.update_weights, weights)
        before = corrector
