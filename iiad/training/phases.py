"""Teacher training in two phases: without iterations at first, with all of them at the end (paper, Sec. 4).

The plan is the model's configuration and the phase is the trainer's: `forward` knows nothing of either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

__all__ = ["TwoPhases"]


class TwoPhases(TrainerCallback):
    """Run no iterations before step ceil(iterations_start * max_steps), the whole plan from there on.

    The step decides, not what happened before, so that a resumed run is in the phase it would have been in.
    """

    def __init__(self, plan: Sequence[int], iterations_start: float, max_steps: int):
        self.plan = list(plan)
        self.first_step = math.ceil(iterations_start * max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Switch when the phase changes; `state.global_step` counts the steps already made."""
        wanted = self.plan if state.global_step >= self.first_step else [0] * len(self.plan)
        if model.config.num_iterations != wanted:
            model.set_num_iterations(wanted)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Leave the model with its whole plan, also when no step was left for it."""
        model.set_num_iterations(self.plan)
