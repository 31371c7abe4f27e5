"""Parameters, operations and memory of a recipe's training, estimated from its sections alone. All ours.

Legend: D model width, F MLP width, N query heads, K key/value heads, E head width, L layers of a stack, T tokens of a
block, S of a source, t the layer from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from iiad.identities import ModelShape
from iiad.memory import machine_bytes
from iiad.progress import format_size

from .recipes import BatchShape, DistillRecipe, TrainRecipe
from .sections import ModelSection, OptimizationSection, TrainingSection

__all__ = [
    "StageWork",
    "count_parameters",
    "describe_count",
    "evaluations_of_stacks",
    "evaluations_per_layer",
    "find_excess",
    "forward_flops",
    "teacher_work",
    "training_bytes",
    "training_flops",
]

USUAL_VOCABULARY = 32_000
"""Vocabulary to assume for a tokenizer that is named and not loaded yet."""

# Bytes per parameter.
WEIGHT_BYTES = 4  # in float32
STATE_BYTES = 16  # the parameter, its gradient and Adam's two averages, each in float32
AUTOCAST_BYTES = 2  # a copy in bfloat16, kept for the backward pass
# Bytes per token and feature that autograd keeps, in bf16 at F = 2.75 D, counted on the models.
SAVED_PER_EVALUATION = 64
SAVED_PER_CROSS = 12  # more, with cross-attention
SAVED_PER_LAYER = 10  # a recomputed layer


class _Stack(NamedTuple):
    """Layers of a model that run one after another, from one table of embeddings."""

    plan: list[int]
    """r_t of each layer; zeros without iterations."""
    cross: bool
    """Layers attend to another stack's output, too."""


def _stacks(model: ModelSection) -> list[_Stack]:
    """Return the encoder, if there is one, and the decoder."""
    default = {"transformer": 0, "pcformer": 1, "iiet": 3}[model.solver]

    def plan(given: int | list[int] | None, num_layers: int) -> list[int]:
        r = default if given is None or model.solver != "iiet" else given
        return r if isinstance(r, list) else [r] * num_layers

    decoder = plan(model.num_iterations, model.num_layers)
    if model.num_encoder_layers is None:
        return [_Stack(decoder, cross=False)]
    encoder = plan(model.num_encoder_iterations, model.num_encoder_layers)
    return [_Stack(encoder, cross=False), _Stack(decoder, cross=True)]


def count_parameters(model: ModelSection, vocab_size: int) -> int:
    """Return the number of parameters, those that the plan leaves idle included."""
    D, stacks = model.hidden_size, _stacks(model)
    tables = (1 if model.shared_embeddings else len(stacks)) + (not model.tie_word_embeddings)
    most = max(r for stack in stacks for r in stack.plan)
    return D * vocab_size * tables + sum(_count_stack(model, stack, most) for stack in stacks)


def _count_stack(model: ModelSection, stack: _Stack, most: int) -> int:
    """Count the parameters of a stack and its final norm. most: r of the longest plan."""
    D, L = model.hidden_size, len(stack.plan)
    attention, mlp = _block_weights(model)
    count = L * (attention + mlp + 2 * D) + D
    if stack.cross:
        count += L * (attention + D)
    if model.solver == "pcformer":
        count += model.predictor_order * 2 * D + (model.coefficients == "ema")
    if model.solver == "pcformer" or (model.solver == "iiet" and model.history):
        count += L * 4 * D + sum(2 * (t + 1) for t in range(1, L + 1))
    elif model.solver == "iiet" and model.relaxation:
        count += L * most
    return count


def find_excess(
    recipe: TrainRecipe | DistillRecipe, vocab_size: int | None = None, states: bool = False
) -> str | None:
    """Say if the weights of a new model do not fit this machine's memory, whatever else is there; None if they may.

    vocab_size: default: the recipe's or, where a tokenizer is loaded, 1. states: with gradients and Adam's.
    """
    if isinstance(recipe, DistillRecipe) or recipe.model.path is not None:
        return None
    count = count_parameters(recipe.model, vocab_size or recipe.tokenizer.vocab_size or 1)
    size, most = count * (STATE_BYTES if states else WEIGHT_BYTES), machine_bytes()
    if size <= most:
        return None
    what = "weights, gradients and Adam's averages" if states else "weights"
    return (
        f"model: expected {what} within this machine's memory of {format_size(most)}, got {format_size(size)}, for "
        f"{describe_count(count)} parameters"
    )


def evaluations_per_layer(model: ModelSection) -> list[int]:
    """Return the block evaluations of each layer for one token, an encoder's layers first."""
    return [runs for stack in evaluations_of_stacks(model) for runs in stack]


def evaluations_of_stacks(model: ModelSection) -> list[list[int]]:
    """Return the block evaluations of each layer of each stack."""
    start = model.predictor_order if model.solver == "pcformer" else 1
    return [[start + r for r in stack.plan] for stack in _stacks(model)]


def forward_flops(
    model: ModelSection, vocab_size: int, lengths: Sequence[int], evaluations: Sequence[float]
) -> tuple[float, float]:
    """Return the floating-point operations for one token of a block: of the evaluations, of the head.

    lengths: as in `BatchShape`. evaluations: of all layers of each stack. As a plan's cost counts them, without the
    sums over the history.
    """
    shape = ModelShape(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads or model.num_attention_heads,
        head_dim=_head_dim(model),
        vocab_size=vocab_size,
        history=False,
        relaxation=False,
    )
    shared = model.cache_policy == "shared" and model.solver != "transformer"
    stacks, blocks = _stacks(model), 0.0
    for number, (stack, length, runs) in enumerate(zip(stacks, lengths, evaluations, strict=True)):
        bidirectional = number < len(stacks) - 1
        attended = length * length if bidirectional else length * (length + 1) // 2
        evaluation, keys_and_values = shape.evaluation_flops(length, attended)
        blocks += runs * evaluation + (len(stack.plan) if shared else runs) * keys_and_values
        if stack.cross:
            each, once = shape.cross_flops(length, lengths[0])
            blocks += runs * each + len(stack.plan) * once
    tokens = sum(lengths)
    return blocks / tokens, 2 * model.hidden_size * vocab_size * lengths[-1] / tokens


def training_flops(
    model: ModelSection, training: TrainingSection, vocab_size: int, batch: BatchShape
) -> float:
    """Return the floating-point operations of a training: 3 forward passes a step, 4 where layers are recomputed.

    The first phase of an IIET runs no iterations.
    """
    start = training.iterations_start if model.solver == "iiet" else 0.0
    evaluations = [start * len(runs) + (1 - start) * sum(runs) for runs in evaluations_of_stacks(model)]
    layers, head = forward_flops(model, vocab_size, batch.lengths, evaluations)
    tokens = training.max_steps * training.gradient_accumulation_steps * batch.tokens
    return tokens * ((4 if training.gradient_checkpointing else 3) * layers + 3 * head)


@dataclass(frozen=True)
class StageWork:
    """Work of a stage's steps: `before` each up to step `switch`, `after` from there on, in any unit."""

    switch: int = 0
    before: float = 1.0
    after: float = 1.0

    def between(self, start: int, end: int) -> float:
        """Work of the steps from start (the number of those made) to end."""
        first = max(0, min(end, self.switch) - start)
        return first * self.before + (max(0, end - start) - first) * self.after


def teacher_work(recipe: TrainRecipe) -> StageWork:
    """Work of a training's steps in evaluations of a decoder's layer: fewer without iterations, and the head."""
    model, training = recipe.model, recipe.training
    if model.path is not None or model.solver != "iiet":
        return StageWork()

    def flops(evaluations: Sequence[float]) -> float:
        lengths, vocab_size = recipe.batch.lengths, recipe.vocab_size or USUAL_VOCABULARY
        return sum(forward_flops(model, vocab_size, lengths, evaluations))

    runs = evaluations_of_stacks(model)
    first = [len(stack) for stack in runs]
    one = flops([*first[:-1], first[-1] + 1]) - flops(first)
    switch = math.ceil(training.iterations_start * training.max_steps)
    return StageWork(switch, flops(first) / one, flops([sum(stack) for stack in runs]) / one)


def training_bytes(
    model: ModelSection, training: OptimizationSection, vocab_size: int, batch: BatchShape
) -> float:
    """Return the bytes of one process: weights, gradients, Adam's state and activations; no logits, nothing sharded.

    Activations are those of autocast to bf16; in float32 they take up to twice as much.
    """
    each_parameter = STATE_BYTES + (AUTOCAST_BYTES if training.bf16 else 0)
    total: float = each_parameter * count_parameters(model, vocab_size)
    for stack, length, runs in zip(_stacks(model), batch.lengths, evaluations_of_stacks(model), strict=True):
        each = SAVED_PER_EVALUATION + SAVED_PER_CROSS * stack.cross
        recomputed = {False: 0, "evaluation": 1}.get(training.gradient_checkpointing, max(runs))
        if recomputed:
            kept = sum(runs) if training.gradient_checkpointing == "evaluation" else len(runs)
            saved = SAVED_PER_LAYER * kept + each * recomputed
        else:
            saved = each * sum(runs) + SAVED_PER_LAYER * len(runs)
        total += batch.tokens * length / sum(batch.lengths) * model.hidden_size * saved
    return total


def _block_weights(model: ModelSection) -> tuple[int, int]:
    """Return the weights of an attention and of an MLP."""
    D, N, E = model.hidden_size, model.num_attention_heads, _head_dim(model)
    K = model.num_key_value_heads or N
    return D * E * (2 * N + 2 * K), 3 * D * model.intermediate_size


def _head_dim(model: ModelSection) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def describe_count(count: int) -> str:
    """Return a count in words of three digits."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,}"
