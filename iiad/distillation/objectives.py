"""Objectives of the stages that learn from a teacher, which they receive as its signal.

Legend: B batch, T tokens, D model width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from iiad.training.batches import Batch
from iiad.training.distillation_sections import DistillationSection
from iiad.training.head import asked_labels, asked_values, head_loss
from iiad.training.learner import Learner

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
    """Return whether stage distill learns from a teacher."""
    return bool(section.kl_weight or section.hidden_weight)


class LearnFromTeacher:
    """Stage distill (paper): ce_weight CE + kl_weight T^2 divergence + hidden_weight hidden-state loss."""

    def __init__(self, teacher: Teacher | None, section: DistillationSection, num_layers: int):
        """teacher: None where no loss needs one. num_layers: L, of the student."""
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
            states = [asked_values(output.hidden_states[layer], batch) for layer in self.layers]
            hidden = hidden_state_loss(signal.hidden_states, states, section.hidden_loss)
            loss = loss + section.hidden_weight * hidden
            parts["hidden"] = hidden.detach()
        return loss, parts


class LayerRecord(NamedTuple):
    """Input of a layer of the teacher, x_t and H_0, ..., H_{t-1}, and its output, x_{t+1} and H_t."""

    x: Tensor
    history: tuple[Tensor, ...]
    targets: tuple[Tensor, Tensor]


class LearnLayers:
    """Stage layerwise (ours): each changed layer learns the teacher's output for the teacher's own input.

    So no layer corrects another's errors, and all learn at once. The loss of a layer is ||y' - y||^2 / ||y||^2, mean
    over tokens, for its output x_{t+1} and, where later layers read it, its state H_t; the stage's is the mean over
    layers.
    """

    def __init__(self, teacher: LiveTeacher, layers: Sequence[int]):
        """layers: those that changed, from 0."""
        self.teacher, self.layers = teacher, list(layers)

    def signal(self, batch: Batch) -> list[LayerRecord]:
        """Return the teacher's inputs and outputs of each of the layers."""
        with torch.no_grad():
            return self.teacher.learner.run(_record_layers, batch["input_ids"], self.layers)

    def __call__(
        self, learner: Learner, batch: Batch, signal: Sequence[LayerRecord]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for the teacher's signal, and that of each layer (numbered from 1) as its part."""
        losses = learner.run(_layer_losses, self.layers, signal, batch)
        parts = {f"layer_{layer + 1}": loss.detach() for layer, loss in zip(self.layers, losses, strict=True)}
        return torch.stack(losses).mean(), parts


def _record_layers(base: PreTrainedModel, input_ids: Tensor, layers: Sequence[int]) -> list[LayerRecord]:
    x, context = base.prepare(input_ids)
    history: tuple[Tensor, ...] = (x,)
    found = []
    for layer in range(max(layers) + 1):
        before = (x, history)
        x, history = base.run_layer(layer, x, history, **context)
        if layer in layers:
            found.append(LayerRecord(*before, (x, history[-1])))
    return found


def _layer_losses(
    base: PreTrainedModel, layers: Sequence[int], signal: Sequence[LayerRecord], batch: Batch
) -> list[Tensor]:
    _, context = base.prepare(None, inputs_embeds=signal[0].x)
    losses = []
    for layer, record in zip(layers, signal, strict=True):
        x, history = base.run_layer(layer, record.x, record.history, **context)
        found = (x, history[-1]) if base.layers[layer].corrector.uses_history else (x,)
        errors = [
            _relative_error(asked_values(mine, batch), asked_values(wanted, batch))
            for mine, wanted in zip(found, record.targets, strict=False)
        ]
        losses.append(torch.stack(errors).mean())
    return losses


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return ||found - wanted||^2 / ||wanted||^2 of (N, D), mean over tokens, in float32."""
    found, wanted = found.float(), wanted.float()
    scale = wanted.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((found - wanted).square().sum(-1) / scale).mean()
