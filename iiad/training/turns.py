"""Passes over each batch of a step: one of the model as it is, or one for each of several nested plans."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from .batches import derive_seed
from .scoring import TokenScore

__all__ = ["NestedPlans", "Turns", "iteration_parameters", "sandwich", "single", "summarize_scores"]

Scores = dict[str, TokenScore]
"""Of each plan by its name; of a model that has one plan alone, of that under "full"."""

_COUNTED_STEPS = 1000
"""Steps whose draws are counted for the mean cost of a step."""


class Turns:
    """One pass over each batch, of the model as it is."""

    num_turns = 1

    def draw(self, seed: int, step: int) -> None:
        """Begin a step, counted from 0: decide what runs in it by seed and step alone."""

    def enter(self, model: Any, turn: int) -> None:
        """Begin a pass, counted from 0."""

    def leave(self, model: Any) -> None:
        """End the step's passes: the model is what is saved, shown and scored."""

    def score(self, model: Any, score: Callable[[Any], TokenScore]) -> Scores:
        """Score what the passes train."""
        return {"full": score(model)}


class NamedPlan(NamedTuple):
    """A plan and its name. tolerance: of each layer; None: no token stops by itself."""

    name: str
    num_iterations: Sequence[int]
    tolerance: Sequence[float | None] | None = None

    def fields(self, config: Any) -> dict[str, Any]:
        """Fields of the configuration that say it."""
        return {**config.split_plan(self.num_iterations), "tolerance": self.tolerance}


class NestedPlans(Turns):
    """Nested plans, some in every step and some drawn, each a pass over the same batch.

    plans: the largest first; the model runs it between steps. always: numbers of those that run in every step.
    num_drawn: how many of the others do; fewer where fewer can be drawn. weights: how likely each of the others is to
    be drawn, in their order; default: all alike. All processes draw the same plans.
    """

    def __init__(
        self,
        plans: Sequence[NamedPlan],
        always: Sequence[int],
        num_drawn: int,
        weights: Sequence[float] | None = None,
    ):
        self.plans, self.always = list(plans), list(always)
        others = [number for number in range(len(plans)) if number not in self.always]
        weights = [1.0] * len(others) if weights is None else weights
        self.weights = {number: w for number, w in zip(others, weights, strict=True) if w > 0}
        self.num_drawn = min(num_drawn, len(self.weights))
        self.num_turns = len(self.always) + self.num_drawn
        self.drawn = self._draw(0, 0)
        self.turn = 0

    @property
    def plan(self) -> int:
        """Number of the plan that runs, from 0, the largest."""
        return self.drawn[self.turn]

    @property
    def role(self) -> str:
        """Part of the plan that runs: largest, between or smallest."""
        if self.plan in (0, len(self.plans) - 1):
            return "largest" if self.plan == 0 else "smallest"
        return "between"

    def draw(self, seed: int, step: int) -> None:
        """Decide on the plans of a step."""
        self.drawn = self._draw(seed, step)

    def _draw(self, seed: int, step: int) -> list[int]:
        numbers = random.Random(derive_seed("plans", seed, step))
        # The k largest u^(1/w) are a weighted sample without replacement (Efraimidis & Spirakis 2006).
        keys = {number: math.log(1 - numbers.random()) / w for number, w in self.weights.items()}
        return sorted([*self.always, *sorted(keys, key=lambda number: -keys[number])[: self.num_drawn]])

    def enter(self, model: Any, turn: int) -> None:
        """Give the model the plan of a pass. It keeps the largest plan's slots, which are enough without a cache.

        Making new ones would take 10 ms for 24 layers, and have torch.compile begin anew.
        """
        self.turn = turn
        _follow(model.config, self.plans[self.plan])

    def leave(self, model: Any) -> None:
        """Give the model the largest plan. Parameters that no plan of the step runs have no gradient.

        DDP and FSDP2 give them zeros, by which the optimizer would move them on.
        """
        self.turn = 0
        most = self.plans[self.drawn[0]]
        for layer, num_iterations in zip(model.base_model.layers, most.num_iterations, strict=True):
            for parameter in iteration_parameters(layer) if num_iterations == 0 else ():
                parameter.grad = None
        _follow(model.config, self.plans[0])

    def score(self, model: Any, score: Callable[[Any], TokenScore]) -> Scores:
        """Score the model under each plan."""
        found = {}
        for plan in self.plans:
            model.reconfigure(**plan.fields(model.config))
            found[plan.name] = score(model)
        model.reconfigure(**self.plans[0].fields(model.config))
        return found

    def count_evaluations(self, config: Any, seed: int) -> tuple[float, list[int]]:
        """Count block evaluations of a token in a step's passes, in the mean, and in one pass of each plan alone."""
        start = config.num_start_evaluations * len(config.iterations)
        alone = [start + sum(plan.num_iterations) for plan in self.plans]
        steps = [sum(alone[number] for number in self._draw(seed, step)) for step in range(_COUNTED_STEPS)]
        return sum(steps) / len(steps), alone


def sandwich(
    plans: Sequence[NamedPlan], num_between: int = 1, weights: Sequence[float] | None = None
) -> NestedPlans:
    """The largest plan, the smallest and num_between drawn from those between (Yu & Huang 2019, arXiv 1903.05134)."""
    return NestedPlans(plans, sorted({0, len(plans) - 1}), num_between, weights)


def single(plans: Sequence[NamedPlan], weights: Sequence[float] | None = None) -> NestedPlans:
    """One plan a step, drawn from all (ours): at the same evaluations more steps, each of a plan alone."""
    return NestedPlans(plans, (), 1, weights)


def iteration_parameters(layer: Any) -> Iterator[nn.Parameter]:
    """Yield what only a layer's iterations use, not its first evaluation."""
    for name, parameter in layer.corrector.named_parameters():
        if name.startswith("update_") or name == "relaxation":
            yield parameter


def _follow(config: Any, plan: NamedPlan) -> None:
    for field, value in plan.fields(config).items():
        setattr(config, field, value)


def summarize_scores(scores: Scores, teacher: TokenScore | None) -> dict[str, float]:
    """Return validation figures by name: of several plans the mean loss and accuracy and the least share retained,
    and those of each.
    """
    count = len(scores)
    figures = {
        "eval_loss": sum(score.nll for score in scores.values()) / count,
        "eval_accuracy": sum(score.accuracy for score in scores.values()) / count,
    }
    retained = {} if teacher is None else {name: score.retained(teacher) for name, score in scores.items()}
    known = {name: share for name, share in retained.items() if share is not None}
    if known:
        figures["retained"] = min(known.values())
    if count > 1:
        figures |= {f"eval_loss_{name}": score.nll for name, score in scores.items()}
        figures |= {f"retained_{name}": share for name, share in known.items()}
    return figures
