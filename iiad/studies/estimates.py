"""`iiad study --dry-run`: runs, tokens, operations and minutes, from one measured step of every arm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from iiad.progress import print_status
from iiad.training.batches import Batch
from iiad.training.estimates import USUAL_VOCABULARY, training_flops
from iiad.training.learner import LanguageModelling, Learner
from iiad.training.precision import bf16_is_faster
from iiad.training.recipes import TrainRecipe
from iiad.training.teacher import build_model

from .definition import Study

__all__ = ["RunEstimate", "estimate_runs", "measure_step"]

STEPS = 3  # after one that warms up


@dataclass(frozen=True)
class RunEstimate:
    """Runs of one kind. tokens, flops: of one; minutes: of all of them, by so many processes."""

    name: str
    num_runs: int
    tokens: int
    flops: float
    minutes: float


class _Words:
    """A tokenizer as far as a new model asks: its size."""

    bos_token_id, eos_token_id, pad_token_id = None, 0, 0

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


def measure_step(recipe: TrainRecipe) -> float:
    """Measure the seconds of one optimizer step with full iterations, on random tokens, in one thread."""
    vocab_size = recipe.vocab_size or USUAL_VOCABULARY
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build_model(recipe.model, _Words(vocab_size))
        bf16 = bf16_is_faster() if recipe.training.bf16 == "auto" else recipe.training.bf16
        learner = Learner(model, LanguageModelling(), bf16)
        batch = _random_batch(recipe, vocab_size)
        times = []
        for _ in range(1 + STEPS):
            started = time.perf_counter()
            learner(batch)[0].backward()
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return statistics.median(times[1:]) * recipe.training.gradient_accumulation_steps


def _random_batch(recipe: TrainRecipe, vocab_size: int) -> Batch:
    """Make a batch of random tokens; of pairs all of the longest."""
    lengths, tokens = recipe.batch
    ids = [torch.randint(vocab_size, (max(1, tokens // sum(lengths)), length)) for length in lengths]
    batch = {"input_ids": ids[0], "labels": ids[-1]}
    return batch if len(ids) == 1 else batch | {"decoder_input_ids": ids[1]}


def estimate_runs(study: Study, num_processes: int) -> list[RunEstimate]:
    """Estimate every kind of run. The minutes of an arm's first phase, which runs no iterations, are counted as less.

    A student counts as its teacher's forward pass and a training of the evaluations that the cut leaves; evaluation
    and planning are left out.
    """
    found = []
    seconds_of: dict[str, float] = {}
    for arm in study.arms:
        recipe = study.recipe_of(arm)
        if recipe.model.path is not None:
            print_status(f"{arm}: trains on from a model; not estimated")
            continue
        vocab_size = recipe.vocab_size or USUAL_VOCABULARY
        flops = training_flops(recipe.model, recipe.training, vocab_size, recipe.batch)
        whole = recipe.training.model_copy(update={"iterations_start": 0.0})
        share = flops / training_flops(recipe.model, whole, vocab_size, recipe.batch)
        seconds_of[arm] = measure_step(recipe) * recipe.training.max_steps * share
        num_runs = len(study.seeds) + max(0, len(study.learning_rates) - 1)
        tokens = recipe.training.max_steps * recipe.training.gradient_accumulation_steps * recipe.batch.tokens
        minutes = num_runs * seconds_of[arm] / 60 / min(num_processes, num_runs)
        found.append(RunEstimate(arm, num_runs, tokens, flops, minutes))
    if study.students is not None and study.students.teacher in seconds_of:
        teacher = next(run for run in found if run.name == study.students.teacher)
        found += _estimate_students(study, teacher, seconds_of[teacher.name], num_processes)
    return found


def _estimate_students(
    study: Study, teacher: RunEstimate, seconds: float, num_processes: int
) -> Iterator[RunEstimate]:
    """Estimate the students of each cut from their teacher's training, whose seconds are given."""
    section, lesson, recipe = study.students, study.lesson(), study.recipe_of(teacher.name)
    assert section is not None
    steps = max(stage.max_steps for stage in lesson.distillation.stages().values())
    tokens = steps * lesson.training.gradient_accumulation_steps
    tokens *= lesson.training.per_device_train_batch_size * sum(recipe.batch.lengths)
    num_runs = len(study.seeds) * (1 + len(section.baselines))
    for cut in section.cuts:
        share = tokens / teacher.tokens * (1 / 3 + 1 - cut)
        minutes = num_runs * seconds * share / 60 / min(num_processes, num_runs)
        yield RunEstimate(f"students at {100 * cut:g} %", num_runs, tokens, teacher.flops * share, minutes)
