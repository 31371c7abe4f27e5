"""Parameters, operations and memory of a recipe's training, estimated from its sections alone. All ours.

Legend: D model width, F MLP width, N query heads, K key/value heads, E head width, L layers of a stack, T tokens of a
block, S of a source, t the layer from 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from iiad.artefacts import ModelShape
from iiad.memory import machine_bytes
from iiad.progress import format_duration, format_size

from .recipes import BatchShape, DistillRecipe, TrainRecipe
from .sections import ModelSection, OptimizationSection, TrainingSection

__all__ = [
    "StageWork",
    "count_parameters",
    "evaluations_per_layer",
    "find_excess",
    "forward_flops",
    "measure_cpu",
    "summarize_recipe",
    "teacher_work",
    "training_bytes",
    "training_flops",
]

CPU_SHARE = 0.5
"""Part of the speed of a matrix product that training is assumed to reach on a CPU."""
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
        f"{_describe_count(count)} parameters"
    )


def evaluations_per_layer(model: ModelSection) -> list[int]:
    """Return the block evaluations of each layer for one token, an encoder's layers first."""
    return [runs for stack in _evaluations(model) for runs in stack]


def _evaluations(model: ModelSection) -> list[list[int]]:
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
    evaluations = [start * len(runs) + (1 - start) * sum(runs) for runs in _evaluations(model)]
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

    runs = _evaluations(model)
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
    for stack, length, runs in zip(_stacks(model), batch.lengths, _evaluations(model), strict=True):
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


def summarize_recipe(recipe: TrainRecipe | DistillRecipe) -> dict[str, str]:
    """Describe a recipe in a few named lines: model or student, evaluations, tokens, estimates, unused fields."""
    block = recipe.data.block_size
    if isinstance(recipe, DistillRecipe):
        stages = {name: stage.max_steps for name, stage in recipe.distillation.stages().items()}
        return {
            "student": f"starts from {recipe.student.init}; its plan decides on its evaluations per token",
            "stages": ", ".join(f"{name} {steps:,} steps" for name, steps in stages.items()),
            "tokens": _describe_tokens(recipe.training, sum(stages.values()), block),
            "time": "depends on the teacher and its plan; distill says it in its first seconds",
        }
    if recipe.model.path is not None:
        return {
            "model": f"trains on from {recipe.model.path}, in its shape",
            "tokens": _describe_tokens(recipe.training, recipe.training.max_steps, block),
            "time": "depends on the model; train says it in its first seconds",
        }
    return _summarize_new_model(recipe)


def _summarize_new_model(recipe: TrainRecipe) -> dict[str, str]:
    model, training, vocab_size = recipe.model, recipe.training, recipe.vocab_size
    size = f"{_describe_count(count_parameters(model, vocab_size or 0))} parameters"
    if vocab_size is None:
        size += f", and {count_parameters(model, 1) - count_parameters(model, 0):,} a token of the vocabulary"
    runs, layers = sum(evaluations_per_layer(model)), len(evaluations_per_layer(model))
    evaluations = (
        f"{runs} per token"
        if model.num_encoder_layers is None
        else (
            " + ".join(str(sum(stack)) for stack in _evaluations(model)) + " per token of encoder and decoder"
        )
    )
    if model.solver == "iiet" and runs > layers and training.iterations_start:
        evaluations += f"; {layers} in the first {training.iterations_start:.0%} of the steps"
    lines = {
        "model": f"{model.solver}, {size}",
        "evaluations": evaluations,
        "tokens": _describe_batches(recipe),
    }
    if vocab_size is not None:
        flops = training_flops(model, training, vocab_size, recipe.batch)
        gigabytes = training_bytes(model, training, vocab_size, recipe.batch) / 1e9
        lines["estimated"] = (
            f"{flops:.1e} floating-point operations; {gigabytes:.1f} GB and logits, in one process"
        )
        duration = format_duration(flops / (CPU_SHARE * measure_cpu()))
        lines["time"] = f"roughly {duration} on this CPU; train says it better in its first seconds"
    if unused := model.unused_fields():
        lines["not used"] = ", ".join(f"model.{field}" for field in unused)
    return lines


def _describe_batches(recipe: TrainRecipe) -> str:
    """Describe the tokens of a new model's run in one process."""
    training, batch = recipe.training, recipe.batch
    if len(batch.lengths) == 1:
        return _describe_tokens(training, training.max_steps, *batch.lengths)
    count = training.gradient_accumulation_steps
    total = _describe_count(training.max_steps * count * batch.tokens)
    return (
        f"at most {total}: {training.max_steps:,} steps of {count} x {batch.tokens:,}, padding included, in each "
        "process"
    )


def measure_cpu() -> float:
    """Measure the floating-point operations a second of a matrix product in float32.

    In numpy, which loads in a tenth of a second; torch takes several.
    """
    import numpy as np

    matrix = np.ones((512, 512), np.float32)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return 2 * 512**3 / best


def _describe_tokens(training: OptimizationSection, steps: int, block: int | None) -> str:
    """Describe the tokens of a run in one process. block: None where the model's context decides."""
    blocks = training.blocks_per_process
    batch = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps} blocks"
    if block is None:
        return f"{steps:,} steps of {batch} of 512 tokens, or of the model's context if shorter"
    total = _describe_count(steps * blocks * block)
    return f"{total}: {steps:,} steps of {blocks * block:,} tokens ({batch} of {block:,}), in each process"


def _describe_count(count: int) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,}"
