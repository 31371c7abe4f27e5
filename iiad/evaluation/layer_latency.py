"""The time of each layer at each number of iterations, and whole models against what it predicts. All ours.

A layer is timed where it runs, inside whole models of which every layer runs r iterations, for r = 0, ..., R.
Alone and again and again, its weights would stay in the processor's caches, where a model reads them from memory
at every call: the sum over layers would be too short. Differences of whole models would drown a layer, a small
part of them, in their noise. Inside, L layers are timed by R + 1 models, and what is left is the fixed part.

Legend: B sequences, T tokens of context, L layers, t the layer, r iterations, R_t those of the model's own plan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, DynamicCache

from iiad.checkpoints import choose_device, choose_dtype, label_models, load_identified, read_limits
from iiad.errors import InputError
from iiad.memory import memory_explained
from iiad.models import IIETForCausalLM
from iiad.planning import Plan, check_plan
from iiad.planning.latency import LatencySettings, LatencyTable, PhaseLatency
from iiad.planning.plan import read_plan
from iiad.progress import progress

from .machine import device_name
from .speed import check_counts
from .timing import mark, now, random_prompts, seconds_between

__all__ = ["choose_check_plans", "measure_latency", "time_layers"]

STEPS_PER_TURN = 4
"""Decoding steps before the next plan's turn: so few that a machine that slows down slows all plans alike, enough
for a GPU not to be waited for after every step."""


@dataclass(frozen=True)
class _Turn:
    """A plan to be run, and whether its layers are timed or only the whole model."""

    num_iterations: list[int]
    watch: bool


@dataclass(frozen=True)
class _CallTime:
    """Seconds of a call, or of several, of a model and of each of its layers (of none that was not watched)."""

    whole: float
    layers: tuple[float, ...]

    @classmethod
    def total(cls, calls: Sequence[_CallTime], scale: float = 1.0) -> _CallTime:
        """All calls together, times a factor."""
        columns = zip(*(call.layers for call in calls), strict=True)
        return cls(scale * sum(call.whole for call in calls), tuple(scale * sum(c) for c in columns))


_Round = dict[str, list[_CallTime]]
"""For each phase the mean time of a call in each turn."""


def measure_latency(
    model: str | Path,
    *,
    plan: Plan | str | Path | None = None,
    batch_size: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> LatencyTable:
    """The latency table of a model on this machine: what `iiad bench MODEL --layers` writes.

    Args:
        model: folder or hub name of a model with iterations; its own plan is the most that is measured.
        plan: a plan or its file, to be measured whole beside the plans of `choose_check_plans`.
        batch_size: sequences at a time.
        prompt_tokens: the context, random tokens.
        new_tokens: decoding steps of each plan in a round, each at that context.
        repeats: measured rounds.
        seed: of the context.
        device: default: CUDA where there is one, else the CPU.
        dtype: of weights and cache, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.

    Raises:
        InputError: a model without iterations, one that cannot be used, a wrong value, a plan of another model, or
            memory runs out.
    """
    counts = {"batch_size": batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    check_counts({**counts, "repeats": repeats}, seed)
    device = choose_device(device)
    settings = LatencySettings(
        device=device,
        device_name=device_name(device),
        dtype=choose_dtype(dtype, device),
        batch_size=batch_size,
        context=prompt_tokens,
        num_threads=torch.get_num_threads(),
        repeats=repeats,
        torch_version=torch.__version__,
    )
    budget = read_plan(plan)
    limit, vocab_size = read_limits(model)
    if prompt_tokens >= limit:
        accepted = f"at most {limit - 1}, which leaves one of the {limit} positions of {model} to decode"
        raise InputError(f"prompt_tokens: found {prompt_tokens}; accepted: {accepted}")
    _require_iterations(model)
    loaded, identity = load_identified(model, device, settings.dtype, cast=True)
    plans = choose_check_plans(identity.num_iterations)
    if budget is not None:
        check_plan(budget, identity)
        plans += [budget.num_iterations] if budget.num_iterations not in plans else []
    where = f"{label_models([model])[0]} on {device}"
    # No smaller plan would help: the model's own is the most that is run, and the table is about all of it.
    remedies = ("a smaller batch", "a shorter context", "bfloat16")
    with memory_explained(where, loaded, batch_size, prompt_tokens + 1, remedies=remedies):
        prompts = random_prompts(batch_size, prompt_tokens, vocab_size, seed).to(device)
        phases = time_layers(loaded, prompts, plans, new_tokens, repeats)
    return LatencyTable(model=identity, settings=settings, **phases)


def _require_iterations(model: str | Path) -> None:
    """Raise InputError, before the weights are read, for a model that has nothing to be planned."""
    config = AutoConfig.from_pretrained(str(model))
    if not any(getattr(config, "iterations", [])):
        raise InputError(
            f"{model}: found type {config.model_type!r} and no iterations; accepted for the time of each layer: "
            "an iiet or pcformer with an iteration in at least one layer"
        )


def choose_check_plans(num_iterations: Sequence[int]) -> list[list[int]]:
    """The plans that a table is held against, each once: R_t, half of it, none, and 0, 1, 2, ... by turns.

    The last mixes budgets as plans do and as no run does that the table is made from.
    """
    mixed = [t % (most + 1) for t, most in enumerate(num_iterations)]
    plans = [list(num_iterations), [most // 2 for most in num_iterations], [0] * len(num_iterations), mixed]
    return [plan for number, plan in enumerate(plans) if plan not in plans[:number]]


def time_layers(
    model: IIETForCausalLM, prompts: Tensor, plans: Sequence[Sequence[int]], num_steps: int, repeats: int
) -> dict[str, PhaseLatency]:
    """Time each layer at each number of iterations up to its own plan's, and whole models under other plans.

    In each round the models whose layers are timed and the whole models that check them take turns, in an order
    drawn anew each time; the first round warms up. A round's times are means over its calls, because means add up
    over layers where medians do not. Rounds are scaled to equal length, as the machine may be slower in one than
    in another, and each number is the median over rounds. It is left as measured: an iteration that takes no time
    calls for more rounds.

    Args:
        model: with at least one iteration, in evaluation mode. Its plan is restored at the end.
        prompts: (B, T) token ids on the model's device, the context.
        plans: r_t for each layer, to be measured whole; at least one.
        num_steps: decoding steps of each plan in a round, each at the context: what a step adds is taken back.
        repeats: measured rounds.

    Returns the phases "decode" and "prefill".
    """
    own = list(model.config.iterations)
    levels = [[min(r, most) for most in own] for r in range(max(own) + 1)]
    turns = [_Turn(plan, True) for plan in levels] + [_Turn(list(plan), False) for plan in plans]
    turns_per_round = len(turns) * (1 + math.ceil(num_steps / STEPS_PER_TURN))
    shuffler = random.Random(0)
    try:
        filled = DynamicCache(config=model.config)
        _call(model, prompts, filled)
        with progress("timing", (repeats + 1) * turns_per_round, "turns") as advance:
            rounds = [
                _time_round(model, prompts, filled, turns, num_steps, shuffler, advance)
                for _ in range(repeats + 1)
            ]
    finally:
        model.set_num_iterations(own)
    return {phase: _summarise([one[phase] for one in rounds[1:]], own, plans) for phase in rounds[0]}


def _time_round(
    model: IIETForCausalLM,
    prompts: Tensor,
    filled: DynamicCache,
    turns: Sequence[_Turn],
    num_steps: int,
    shuffler: random.Random,
    advance: Callable[[float], None],
) -> _Round:
    """Every plan's prefill, then every plan's decoding steps, a few a turn.

    filled: a cache of the context with a slot for each evaluation of the model's own plan. All plans decode from
    it, with as many slots as they have evaluations: what keys and values say does not matter to the time.
    """
    calls: dict[str, list[list[_CallTime]]] = {phase: [[] for _ in turns] for phase in ("decode", "prefill")}
    steps = [min(STEPS_PER_TURN, num_steps - done) for done in range(0, num_steps, STEPS_PER_TURN)]
    for phase, num_calls in [("prefill", 1), *(("decode", number) for number in steps)]:
        # Never the same order: what ran before, and left the processor's caches to it, favours no plan.
        for number in shuffler.sample(range(len(turns)), len(turns)):
            model.set_num_iterations(turns[number].num_iterations)
            empty = DynamicCache(config=model.config)
            given = (prompts, empty) if phase == "prefill" else (prompts[:, -1:], filled)
            calls[phase][number].append(_time_calls(model, *given, turns[number].watch, num_calls))
            advance(1)
    return {
        "decode": [_CallTime.total(own, 1 / num_steps) for own in calls["decode"]],
        "prefill": [_CallTime.total(own) for own in calls["prefill"]],
    }


def _time_calls(
    model: IIETForCausalLM, input_ids: Tensor, cache: DynamicCache, watch: bool, num_calls: int
) -> _CallTime:
    """All of num_calls forward calls that read input_ids (B, T) from the same cache, which is left as it was."""
    # An update concatenates into new tensors, so the old ones stay as they are and cost no copy to keep.
    kept = [(slot, slot.keys, slot.values) for slot in cache.layers if slot.is_initialized]
    with _layer_marks(model, watch) as marks:
        started = now(input_ids.device)
        for _ in range(num_calls):
            _call(model, input_ids, cache)
            for slot, keys, values in kept:
                slot.keys, slot.values = keys, values
        whole = now(input_ids.device) - started
    per_call = len(marks) // num_calls
    calls = [marks[n * per_call : (n + 1) * per_call] for n in range(num_calls)]
    layers = (sum(seconds_between(call[t], call[t + 1]) for call in calls) for t in range(per_call - 1))
    return _CallTime(whole, tuple(layers))


@torch.inference_mode()
def _call(model: IIETForCausalLM, input_ids: Tensor, cache: DynamicCache) -> Tensor:
    """(B, T) token ids -> the next token of each sequence, (B, 1)."""
    logits = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1:].argmax(-1)


@contextmanager
def _layer_marks(model: IIETForCausalLM, watch: bool) -> Iterator[list[Any]]:
    """While this lasts, note when each layer begins and when the final norm does: L + 1 marks a call."""
    marks: list[Any] = []

    def note(*_: Any) -> None:
        marks.append(mark(model.device))

    modules = (*model.model.layers, model.model.norm) if watch else ()
    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def _summarise(
    rounds: Sequence[Sequence[_CallTime]], own: Sequence[int], plans: Sequence[Sequence[int]]
) -> PhaseLatency:
    """Medians of one phase over the rounds. Of a round's turns the last are the plans', those before r = 0, 1, ..."""
    lengths = [sum(call.whole for call in calls) for calls in rounds]
    scaled = [
        [_CallTime.total([call], median(lengths) / length) for call in calls]
        for calls, length in zip(rounds, lengths, strict=True)
    ]
    turns = list(zip(*scaled, strict=True))  # for each turn its time in each round
    levels, checks = turns[: -len(plans)], turns[-len(plans) :]
    # Clocks of a GPU and of its host differ in the last digits: what is left may be just below 0.
    fixed = median(max(0.0, call.whole - sum(call.layers)) for calls in levels for call in calls)
    layers = [
        [median(call.layers[t] for call in levels[r]) for r in range(most + 1)] for t, most in enumerate(own)
    ]
    measured = [
        (plan, median(call.whole for call in calls)) for plan, calls in zip(plans, checks, strict=True)
    ]
    return PhaseLatency.of(fixed, layers, measured)
