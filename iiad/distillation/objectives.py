"""Objectives of the stages that learn from a teacher, which they receive as its signal.

Legend: B batch, T tokens, D model width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from iiad.data import stack_inputs
from iiad.identities import layer_name
from iiad.training.batches import Batch
from iiad.training.distillation_sections import DistillationSection
from iiad.training.head import asked_labels, asked_values, head_loss
from iiad.training.learner import Learner, hidden_states

from .divergences import TeacherDivergence
from .hidden_losses import hidden_state_loss
from .teacher_signals import LiveTeacher, Signal, Teacher

__all__ = ["LayerRecord", "LearnFromTeacher", "LearnLayers", "hidden_layers", "needs_signals"]


def hidden_layers(section: DistillationSection, num_layers: int) -> list[int]:
    """Return the hidden states, from 0 to L, to learn from; none where they have no weight."""
    if not section.hidden_weight:
        return []
    return list(range(num_layers + 1)) if section.hidden_layers is None else section.hidden_layers


def needs_signals(section: DistillationSection) -> bool:
    """Return whether stage distill learns from a teacher other than the student itself."""
    return section.elastic.teacher == "teacher" and bool(section.kl_weight or section.hidden_weight)


class LearnFromTeacher:
    """Stage distill (paper): ce_weight CE + kl_weight T^2 divergence + hidden_weight hidden-state loss."""

    def __init__(self, teacher: Teacher | None, section: DistillationSection, num_layers: int):
        """teacher: None where no loss needs one. num_layers: L, of the student or its decoder."""
        self.teacher, self.section = teacher, section
        self.layers = hidden_layers(section, num_layers)

    def signal(self, batch: Batch) -> Signal | None:
        """Return the teacher's signal."""
        return None if self.teacher is None else self.teacher.signal(batch)

    def __call__(
        self, learner: Learner, batch: Batch, signal: Signal | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for input_ids and labels (B, T), and its parts ce, kl and hidden, each a scalar."""
        section = self.section
        output = learner.states(batch, output_hidden_states=bool(self.layers))
        loss, parts = output.last_hidden_state.new_zeros((), dtype=torch.float32), {}
        if section.ce_weight or section.kl_weight:
            divergence = None
            if signal is not None and section.kl_weight:
                divergence = TeacherDivergence(signal.target, section.divergence, section.temperature)
            found = head_loss(
                asked_values(output.last_hidden_state, batch),
                learner.head,
                asked_labels(batch),
                divergence,
                ce_weight=section.ce_weight,
                kl_weight=section.kl_weight,
            )
            loss, parts = found.loss, {"ce": found.ce}
            if found.kl is not None:
                parts["kl"] = found.kl
        if self.layers:
            assert signal is not None
            states = [asked_values(hidden_states(output)[layer], batch) for layer in self.layers]
            hidden = hidden_state_loss(signal.hidden_states, states, section.hidden_loss)
            loss = loss + section.hidden_weight * hidden
            parts["hidden"] = hidden.detach()
        return loss, parts


class LayerRecord(NamedTuple):
    """Input of a layer of the teacher, x_t and H_0, ..., H_{t-1}, and its output, x_{t+1} and H_t.

    context: what else the layer is given, a decoder's the encoder's output. positions: those of its tokens that
    count, (N,), through all B T; None: all.
    """

    x: Tensor
    history: tuple[Tensor, ...]
    targets: tuple[Tensor, Tensor]
    context: dict[str, Any]
    positions: Tensor | None


class LearnLayers:
    """Stage layerwise (ours): each changed layer learns the teacher's output for the teacher's own input.

    So no layer corrects another's errors, and all learn at once. The loss of a layer is ||y' - y||^2 / ||y||^2, mean
    over tokens, for its output x_{t+1} and, where later layers read it, its state H_t; the stage's is the mean over
    layers.
    """

    def __init__(self, teacher: LiveTeacher, layers: Sequence[int]):
        """layers: those that changed, from 0."""
        self.teacher, self.layers = teacher, list(layers)
        num_encoder_layers = getattr(teacher.learner.model.config, "num_encoder_layers", 0)
        self.names = [layer_name(layer, num_encoder_layers).replace(" ", "_") for layer in layers]

    def signal(self, batch: Batch) -> list[LayerRecord]:
        """Return the teacher's inputs and outputs of each of the layers."""
        with torch.no_grad():
            return self.teacher.learner.run(_record_layers, batch, self.layers)

    def __call__(
        self, learner: Learner, batch: Batch, signal: Sequence[LayerRecord]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for the teacher's signal, and that of each layer, by its name, as its part."""
        losses = learner.run(_layer_losses, self.layers, signal)
        parts = {name: loss.detach() for name, loss in zip(self.names, losses, strict=True)}
        return torch.stack(losses).mean(), parts


def _record_layers(base: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> list[LayerRecord]:
    found, places, padding = [], iter(range(max(layers) + 1)), batch.get("attention_mask")
    source = None
    for stack, (input_ids, own_padding) in zip(base.stacks, stack_inputs(batch), strict=True):
        x, context = stack.prepare(input_ids, own_padding)
        if source is not None:
            context |= stack.attended_source(x, source, padding)
        positions = batch.get("asked")
        if own_padding is not None:  # an encoder's tokens are none that are asked for
            positions = own_padding.flatten().nonzero()[:, 0]
        history: tuple[Tensor, ...] = (x,)
        for layer, place in zip(range(len(stack.layers)), places, strict=False):
            before = (x, history)
            x, history = stack.run_layer(layer, x, history, **context)
            if place in layers:
                found.append(LayerRecord(*before, (x, history[-1]), context, positions))
        source = stack.norm(x)
    return found


def _layer_losses(
    base: PreTrainedModel, layers: Sequence[int], signal: Sequence[LayerRecord]
) -> list[Tensor]:
    places = [(stack, layer) for stack in base.stacks for layer in range(len(stack.layers))]
    losses = []
    for number, record in zip(layers, signal, strict=True):
        stack, layer = places[number]
        x, history = stack.run_layer(layer, record.x, record.history, **record.context)
        found = (x, history[-1]) if stack.layers[layer].corrector.uses_history else (x,)
        errors = [
            _relative_error(_take(mine, record.positions), _take(wanted, record.positions))
            for mine, wanted in zip(found, record.targets, strict=False)
        ]
        losses.append(torch.stack(errors).mean())
    return losses


def _take(values: Tensor, positions: Tensor | None) -> Tensor:
    """(B, T, D) -> (N, D)."""
    values = values.flatten(0, 1)
    return values if positions is None else values[positions]


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return ||found - wanted||^2 / ||wanted||^2 of (N, D), mean over tokens, in float32."""
    found, wanted = found.float(), wanted.float()
    scale = wanted.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((found - wanted).square().sum(-1) / scale).mean()
