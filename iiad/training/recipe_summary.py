"""A recipe in a few lines: model, evaluations, tokens, and roughly how long it takes on this CPU."""

from __future__ import annotations

import time

from iiad.progress import format_duration

from .estimates import (
    count_parameters,
    describe_count,
    evaluations_of_stacks,
    evaluations_per_layer,
    training_bytes,
    training_flops,
)
from .recipes import DistillRecipe, TrainRecipe
from .sections import OptimizationSection

__all__ = ["measure_cpu", "summarize_recipe"]

CPU_SHARE = 0.5
"""Part of the speed of a matrix product that training is assumed to reach on a CPU."""


def summarize_recipe(recipe: TrainRecipe | DistillRecipe) -> dict[str, str]:
    """Describe a recipe in a few named lines: model or student, evaluations, tokens, estimates, unused fields."""
    if isinstance(recipe, DistillRecipe):
        stages = {name: stage.max_steps for name, stage in recipe.distillation.stages().items()}
        return {
            "student": f"starts from {recipe.student.init}; its plan decides on its evaluations per token",
            "stages": ", ".join(f"{name} {steps:,} steps" for name, steps in stages.items()),
            "tokens": _describe_data(recipe, sum(stages.values())),
            "time": "depends on the teacher and its plan; distill says it in its first seconds",
        }
    if recipe.model.path is not None:
        return {
            "model": f"trains on from {recipe.model.path}, in its shape",
            "tokens": _describe_data(recipe, recipe.training.max_steps),
            "time": "depends on the model; train says it in its first seconds",
        }
    return _summarize_new_model(recipe)


def _summarize_new_model(recipe: TrainRecipe) -> dict[str, str]:
    model, training, vocab_size = recipe.model, recipe.training, recipe.vocab_size
    size = f"{describe_count(count_parameters(model, vocab_size or 0))} parameters"
    if vocab_size is None:
        size += f", and {count_parameters(model, 1) - count_parameters(model, 0):,} a token of the vocabulary"
    stacks = [sum(runs) for runs in evaluations_of_stacks(model)]
    evaluations = f"{' + '.join(map(str, stacks))} per token"
    if len(stacks) > 1:
        evaluations += " of encoder and decoder"
    layers = len(evaluations_per_layer(model))
    if model.solver == "iiet" and sum(stacks) > layers and training.iterations_start:
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
    return _describe_pairs(training, training.max_steps, batch.tokens)


def _describe_data(recipe: TrainRecipe | DistillRecipe, steps: int) -> str:
    """Describe the tokens of a run on text or, where the recipe bounds their batches, on pairs."""
    if recipe.data.max_batch_tokens is not None:
        return _describe_pairs(recipe.training, steps, recipe.data.max_batch_tokens)
    return _describe_tokens(recipe.training, steps, recipe.data.block_size)


def _describe_pairs(training: OptimizationSection, steps: int, batch_tokens: int) -> str:
    count = training.gradient_accumulation_steps
    total = describe_count(steps * count * batch_tokens)
    return (
        f"at most {total}: {steps:,} steps of {count} x {batch_tokens:,}, padding included, in each process"
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
    total = describe_count(steps * blocks * block)
    return f"{total}: {steps:,} steps of {blocks * block:,} tokens ({batch} of {block:,}), in each process"
