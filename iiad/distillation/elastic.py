"""Elastic students: one student that learns several nested plans at once.

Legend: B batch, T tokens, N positions that are asked for, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.planning.family import Family, even_family
from iiad.planning.plan import Plan
from iiad.progress import print_status
from iiad.training.batches import Batch
from iiad.training.distillation_sections import DistillationSection, ElasticSection
from iiad.training.head import asked_labels, asked_values, head_loss
from iiad.training.learner import LanguageModelling, Learner, Objective, hidden_states
from iiad.training.turns import NamedPlan, NestedPlans, Scores, sandwich, single

from .divergences import FullTarget
from .objectives import LearnFromTeacher, hidden_layers
from .teacher_signals import Signal

__all__ = [
    "LearnAndTeach",
    "LearnPlans",
    "choose_family",
    "describe_plans",
    "elastic_objective",
    "give_plans",
    "make_turns",
    "report_cost",
]


def choose_family(
    budget: Plan | Family | None, section: DistillationSection, teacher: ModelIdentity
) -> Family | None:
    """Return the family that a student learns: the one given, or that of the recipe's cuts; None for a single plan.

    Raises InputError for both, for fields of families without one, and for what does not fit the family.
    """
    elastic, family = section.elastic, budget if isinstance(budget, Family) else None
    if elastic.cuts is not None:
        if budget is not None:
            raise InputError(f"distillation.elastic.cuts: expected none with a plan file, got {elastic.cuts}")
        family = even_family(teacher, elastic.cuts)
    if family is None:
        if elastic != ElasticSection():
            raise InputError(
                "distillation.elastic: expected nested plans with it (plans.json or cuts), got none"
            )
        return None
    count = len(family.plans)
    drawn = (count, "plan")
    if elastic.rule == "sandwich":
        drawn = (max(count - 2, 0), "plan between the largest and the smallest")
    for name, wanted, of in (("weights", *drawn), ("loss_weights", count, "plan")):
        given = getattr(elastic, name)
        if given is not None and len(given) != wanted:
            expected = f"{wanted} numbers, one a {of}"
            raise InputError(f"distillation.elastic.{name}: expected {expected}, got {len(given)}")
    for name, why in (
        ("layerwise", "under which each layer has several outputs"),
        ("onpolicy", "each of which has continuations of its own"),
    ):
        if steps := getattr(section, name).max_steps:
            raise InputError(
                f"distillation.{name}.max_steps: expected 0 with nested plans, {why}, got {steps}"
            )
    return family


def make_turns(family: Family, section: ElasticSection) -> NestedPlans:
    """Return the turns in which a student learns a family."""
    plans = [NamedPlan(each.name, each.num_iterations, each.tolerance) for each in family.plans]
    if section.rule == "single":
        return single(plans, section.weights)
    return sandwich(plans, section.num_between, section.weights)


class LearnAndTeach:
    """Cross-entropy of the text, and a signal for the plans that follow: in-place distillation (Yu & Huang 2019)."""

    def __init__(self, hidden_layers: Sequence[int] = ()):
        self.layers = tuple(hidden_layers)
        self.kept: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def signal(self, batch: Batch) -> None:
        """There is no teacher."""

    def __call__(self, learner: Learner, batch: Batch, signal: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch with its labels (B, T) -> mean nats per token that is asked for, and as the part "ce"."""
        output = learner.states(batch, output_hidden_states=bool(self.layers))
        states = asked_values(output.last_hidden_state, batch)
        hidden = (hidden_states(output)[layer] for layer in self.layers)
        self.kept = states.detach(), tuple(asked_values(each, batch).detach() for each in hidden)
        found = head_loss(states, learner.head, asked_labels(batch))
        return found.loss, {"ce": found.ce}

    def taught(self, learner: Learner) -> Signal:
        """Return what the model said at the last call: states (N, D), detached, below its own head."""
        assert self.kept is not None, "the largest plan runs first"
        states, hidden = self.kept
        return Signal(FullTarget(states, learner.head.detach()), hidden)


class LearnPlans:
    """The loss of each plan in its turn.

    objective: of all plans but the largest. largest: of that; default, the same. loss_weights: of each plan. Where
    a step runs several, parts are named by the plan's role, as in kl_smallest, and those of the plans between are
    means over them.
    """

    def __init__(
        self,
        objective: Objective,
        turns: NestedPlans,
        largest: Objective | None = None,
        loss_weights: Sequence[float] | None = None,
    ):
        self.objective, self.turns, self.largest = objective, turns, largest or objective
        self.loss_weights = loss_weights

    def signal(self, batch: Batch) -> Any:
        """Return the teacher's signal, one for all plans; None where the student teaches itself."""
        return (self.largest if self.turns.drawn == [0] else self.objective).signal(batch)

    def __call__(self, learner: Learner, batch: Batch, signal: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the plan that runs, and its parts."""
        turns, objective = self.turns, self.objective
        if turns.plan == 0:
            objective = self.largest
        elif isinstance(self.largest, LearnAndTeach):
            signal = self.largest.taught(learner)
        loss, parts = objective(learner, batch, signal)
        if self.loss_weights is not None:
            loss = self.loss_weights[turns.plan] * loss
        if turns.num_turns == 1:
            # Means are taken over steps of other plans, whose parts must be the same.
            return loss, parts if self.largest is self.objective else {}
        share = 1 / turns.num_drawn if turns.role == "between" else 1
        named = {"loss": loss.detach(), **parts}
        return loss, {f"{name}_{turns.role}": share * part for name, part in named.items()}


def elastic_objective(
    objective: Objective, turns: NestedPlans, section: DistillationSection, num_layers: int
) -> LearnPlans:
    """Let an objective be that of nested plans; in stage distill the largest may have its own, as the recipe says."""
    elastic = section.elastic
    largest: Objective | None = None
    if isinstance(objective, LearnFromTeacher):
        if elastic.teacher == "self":
            largest = LearnAndTeach(hidden_layers(section, num_layers))
        elif elastic.largest == "text":
            largest = LanguageModelling()
    return LearnPlans(objective, turns, largest, elastic.loss_weights)


def give_plans(student: PreTrainedModel, family: Family, scores: Scores | None = None) -> None:
    """List the family in the student's configuration, with validation figures where there are some.

    Coefficients of the plans' stops become the configuration's, too. The student then runs the largest plan.
    """
    listed, adaptive = [], any(each.tolerance for each in family.plans)
    for plan in reversed(family.members):
        student.follow_plan(plan)
    for each in family.plans:
        entry: dict[str, Any] = {"name": each.name, "num_iterations": list(each.num_iterations)}
        if adaptive:
            entry["cut"] = each.cut
        if each.tolerance:
            entry["tolerance"] = list(each.tolerance)
        if scores is not None:
            entry |= {"nll": scores[each.name].nll, "accuracy": scores[each.name].accuracy}
        listed.append(entry)
    student.reconfigure(plans=listed)


def report_cost(turns: NestedPlans, config: Any, seed: int) -> dict[str, float]:
    """Say and return what a step costs in block evaluations, beside students of one plan each."""
    mean, alone = turns.count_evaluations(config, seed)
    print_status(
        f"elastic: {len(alone)} plans of {', '.join(map(str, alone))} evaluations a token; a step runs {mean:.1f}, "
        f"forward and back, and a step of {len(alone)} students of one plan each {sum(alone)} in all"
    )
    return {"trained_evaluations_per_token": mean, "single_students_evaluations_per_token": sum(alone)}


def describe_plans(family: Family, scores: Scores, teacher: Any) -> list[dict[str, Any]]:
    """Return validation figures of each plan. teacher: its score."""
    return [
        {
            "name": each.name,
            "overhead_cut": each.cut,
            "validation_nll": scores[each.name].nll,
            "retained": scores[each.name].retained(teacher),
        }
        for each in family.plans
    ]
