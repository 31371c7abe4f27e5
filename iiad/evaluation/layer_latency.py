"""Seconds of each layer at each number of iterations, checked against whole models. All ours.

A layer is timed inside whole models of which every layer runs r iterations, for r = 0, ..., R: L layers by R + 1
models, and what is left is the fixed part. Alone, a layer would be too fast, its weights in the processor's caches;
as a difference of whole models it would drown in their noise.

Of an encoder-decoder a prefill is what comes before the first target token, the encoder and one step of the decoder,
and a decoding step is one in the middle of the target. A sentence is a prefill and the steps that are left.

Legend: B sequences, T tokens of context, L layers, t the layer, r iterations, R_t those of the model's own plan.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiad.checkpoints import (
    choose_device,
    choose_dtype,
    label_models,
    load_config,
    load_identified,
    read_limits,
)
from iiad.clock import now
from iiad.errors import InputError, require_least, require_seed
from iiad.influence.batches import IteratedModel
from iiad.memory import memory_explained
from iiad.models import IIETConfig
from iiad.planning.binding import AnyPlan, bind_plan, read_plan
from iiad.planning.latency import LatencySettings, LatencyTable, PhaseLatency
from iiad.progress import progress

from .timing import describe_machine, new_cache, random_prompts, reads_sources, require_positions

__all__ = ["choose_check_plans", "measure_latency", "time_layers"]

STEPS_PER_TURN = 4
"""Decoding steps before the next plan's turn: few, so that a machine that slows down slows all plans alike; more
than one, so that a GPU is not waited for after every step."""

Clock = Callable[[torch.device], float]


def measure_latency(
    model: str | Path,
    *,
    plan: AnyPlan | None = None,
    batch_size: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> LatencyTable:
    """Measure the latency table of a model on this machine, as `iiad bench MODEL --layers` does.

    Args:
        model: folder or hub name of a model with iterations; layers are measured up to its own plan.
        plan: a plan or its file, also measured whole, beside those of `choose_check_plans`.
        batch_size: sequences at a time.
        prompt_tokens: the context, random tokens; of an encoder-decoder the source.
        new_tokens: decoding steps of each plan in a round, each at that context; of an encoder-decoder the target,
            each step in its middle.
        repeats: measured rounds.
        seed: of the context.
        device: default: CUDA where there is one, else the CPU.
        dtype: of weights and cache, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.

    Raises:
        InputError: a model without iterations, one that cannot be used, a wrong value, a plan of another model, or
            memory runs out.
    """
    require_least(
        1, batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats
    )
    require_seed(seed)
    device = choose_device(device)
    is_pair = bool(load_config(model).is_encoder_decoder)
    settings = LatencySettings(
        dtype=choose_dtype(dtype, device),
        batch_size=batch_size,
        context=prompt_tokens,
        target_tokens=new_tokens if is_pair else None,
        repeats=repeats,
        **describe_machine(device),
    )
    budget = read_plan(plan)
    _, vocab_size = read_limits(model)
    if is_pair:
        require_positions(model, prompt_tokens, new_tokens)
    else:
        _require_room(model, prompt_tokens)
    _require_iterations(model)
    loaded, identity = load_identified(model, device, settings.dtype, cast=True, kind=None)
    plans = choose_check_plans(identity.num_iterations)
    if budget is not None:
        own = bind_plan(budget, identity).num_iterations
        plans += [own] if own not in plans else []
    where = f"{label_models([model])[0]} on {device}"
    # No smaller plan would help: the table goes up to the model's own.
    remedies = ("a smaller batch", "a shorter context", "bfloat16")
    with memory_explained(where, loaded, batch_size, prompt_tokens + 1, remedies=remedies):
        prompts = random_prompts(batch_size, prompt_tokens, vocab_size, seed).to(device)
        phases = time_layers(loaded, prompts, plans, new_tokens, repeats)
    return LatencyTable(model=identity, settings=settings, **phases)


def _require_room(model: str | Path, prompt_tokens: int) -> None:
    """Raise InputError for a context that leaves no position to decode."""
    limit, _ = read_limits(model)
    if prompt_tokens >= limit:
        raise InputError(
            f"prompt_tokens: expected at most {limit - 1}, which leaves one of the {limit} positions of {model} to "
            f"decode, got {prompt_tokens}"
        )


def _require_iterations(model: str | Path) -> None:
    """Raise InputError for a model without iterations, before its weights are read."""
    config = load_config(model)
    if not isinstance(config, IIETConfig) or not any(config.iterations):
        raise InputError(
            f"{model}: expected an iiet or pcformer with an iteration in at least one layer, got type "
            f"{config.model_type!r} without iterations"
        )


def choose_check_plans(num_iterations: Sequence[int]) -> list[list[int]]:
    """Return the plans that check a table, each once: R_t, half of it, none, and 0, 1, 2, ... by turns.

    The last mixes budgets, as plans do and the models that are timed for the table do not.
    """
    mixed = [t % (most + 1) for t, most in enumerate(num_iterations)]
    plans = [list(num_iterations), [most // 2 for most in num_iterations], [0] * len(num_iterations), mixed]
    return [plan for number, plan in enumerate(plans) if plan not in plans[:number]]


def time_layers(
    model: IteratedModel,
    prompts: Tensor,
    plans: Sequence[Sequence[int]],
    num_steps: int,
    repeats: int,
    clock: Clock = now,
) -> dict[str, PhaseLatency]:
    """Time each layer at each number of iterations up to its own plan's, and whole models under other plans.

    In each round the models whose layers are timed and the whole models that check them take turns, in an order
    drawn anew each time, so that none always finds the processor's caches as the same one left them; the first round
    warms up. A round's times are means over its calls, because means add up over layers and medians do not. Rounds
    are scaled to equal length, as the machine may be slower in one than in another, and each number is the median
    over rounds. It is left as measured: an iteration that takes no time calls for more rounds.

    Args:
        model: with at least one iteration, in evaluation mode. All of them run, whatever its tolerance; that and
            its plan are restored at the end.
        prompts: (B, T) token ids on the model's device, the context.
        plans: r_t for each layer, to be measured whole; at least one.
        num_steps: decoding steps of each plan in a round, each at the context: what a step adds is taken back. Of an
            encoder-decoder also the tokens of the target, each step being in its middle.
        repeats: measured rounds.
        clock: seconds, once a device has done its work.

    Returns the phases "decode" and "prefill".
    """
    own, tolerance = list(model.config.iterations), model.config.tolerance
    levels = [[min(r, most) for most in own] for r in range(max(own) + 1)]
    turns = [(plan, True) for plan in levels] + [(list(plan), False) for plan in plans]
    steps = [min(STEPS_PER_TURN, num_steps - done) for done in range(0, num_steps, STEPS_PER_TURN)]
    passes = [("prefill", 1), *(("decode", number) for number in steps)]
    shape = (repeats + 1, len(turns), 1 + len(own))
    seconds = {phase: np.zeros(shape) for phase in ("decode", "prefill")}
    shuffler = random.Random(0)
    try:
        model.reconfigure(tolerance=None)
        # With a slot for each evaluation of the model's own plan. All plans decode from it, from as many slots as
        # they have evaluations: the time does not depend on what keys and values say.
        filled = new_cache(model)
        inputs = _fill(model, prompts, num_steps, filled)
        with progress("timing", (repeats + 1) * len(passes) * len(turns), "turns") as advance:
            for number in range(repeats + 1):
                for phase, num_calls in passes:
                    for turn in shuffler.sample(range(len(turns)), len(turns)):
                        plan, timed = turns[turn]
                        model.set_num_iterations(plan)
                        given = inputs[phase], new_cache(model) if phase == "prefill" else filled
                        seconds[phase][number, turn] += _time_calls(model, *given, timed, num_calls, clock)
                        advance(1)
    finally:
        model.set_num_iterations(own)
        model.reconfigure(tolerance=tolerance)
    seconds["decode"] /= num_steps
    return {phase: _summarise(found[1:], own, plans) for phase, found in seconds.items()}


def _fill(model: IteratedModel, prompts: Tensor, target_tokens: int, cache: Any) -> dict[str, dict[str, Any]]:
    """Fill the cache with what is before a decoding step. Return what a call of each phase is given.

    prompts: (B, T), of an encoder-decoder the sources.
    """
    if not reads_sources(model):
        inputs = {"prefill": {"input_ids": prompts}, "decode": {"input_ids": prompts[:, -1:]}}
        _call(model, inputs["prefill"], cache)
        return inputs
    start = torch.full_like(prompts[:, :1], model.config.decoder_start_token_id)
    with torch.inference_mode():
        encoded = model.get_encoder()(input_ids=prompts)
    step = {"decoder_input_ids": start, "encoder_outputs": encoded}
    seen = start.repeat(1, max(1, target_tokens // 2))
    _call(model, {**step, "decoder_input_ids": seen}, cache)
    return {"prefill": {"input_ids": prompts, "decoder_input_ids": start}, "decode": step}


def _time_calls(
    model: IteratedModel, inputs: dict[str, Any], cache: Any, timed: bool, num_calls: int, clock: Clock
) -> np.ndarray:
    """Return seconds of num_calls forward calls together: of the whole model, then of each layer if those are timed.

    Every call reads the same inputs from the same cache, which is left as it was.
    """
    # An update concatenates into new tensors, so the old ones stay as they are. Those of a source are not updated.
    own = getattr(cache, "self_attention_cache", cache)
    kept = [(slot, slot.keys, slot.values) for slot in own.layers if slot.is_initialized]
    with _layer_marks(model, timed, clock) as marks:
        started = clock(model.device)
        for _ in range(num_calls):
            _call(model, inputs, cache)
            for slot, keys, values in kept:
                slot.keys, slot.values = keys, values
        whole = clock(model.device) - started
    seconds = np.zeros(1 + len(model.base_model.layers))
    seconds[0] = whole
    for (layer, start), (_, end) in pairwise(marks):
        if layer is not None:
            seconds[1 + layer] += _seconds_between(start, end)
    return seconds


@torch.inference_mode()
def _call(model: IteratedModel, inputs: dict[str, Any], cache: Any) -> Tensor:
    """Run the model -> the next token of each sequence, (B, 1)."""
    logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1:].argmax(-1)


@contextmanager
def _layer_marks(model: IteratedModel, timed: bool, clock: Clock) -> Iterator[list[tuple[int | None, Any]]]:
    """While the block runs, note when each layer begins, with its number, and each final norm, with None."""
    marks: list[tuple[int | None, Any]] = []

    def note(layer: int | None, *_: Any) -> None:
        if model.device.type != "cuda":
            marks.append((layer, clock(model.device)))
            return
        # An event in the stream: waiting for the GPU at every mark would slow what is measured.
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(model.device))
        marks.append((layer, event))

    base = model.base_model
    modules = [*enumerate(base.layers), *((None, stack.norm) for stack in base.stacks)] if timed else []
    handles = [module.register_forward_pre_hook(partial(note, layer)) for layer, module in modules]
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def _seconds_between(start: Any, end: Any) -> float:
    """Return seconds from one mark to another, once the device has passed both."""
    if isinstance(start, torch.cuda.Event):
        return float(start.elapsed_time(end)) / 1000  # it counts milliseconds
    return float(end - start)


def _summarise(seconds: np.ndarray, own: Sequence[int], plans: Sequence[Sequence[int]]) -> PhaseLatency:
    """Return the medians of one phase over the rounds.

    seconds: (rounds, turns, 1 + L), of the whole and of each layer; turns are r = 0, 1, ... and then the plans.
    """
    lengths = seconds[:, :, 0].sum(1)
    scaled = seconds * (np.median(lengths) / lengths)[:, None, None]
    levels, checks = np.split(scaled, [-len(plans)], axis=1)
    # Clocks of a GPU and of its host differ in the last digits: what is left may be just below 0.
    fixed = np.maximum(0.0, levels[:, :, 0] - levels[:, :, 1:].sum(2))
    layers = np.median(levels[:, :, 1:], axis=0)  # (R + 1, L)
    whole = np.median(checks[:, :, 0], axis=0)
    return PhaseLatency.of(
        float(np.median(fixed)),
        [layers[: most + 1, t].tolist() for t, most in enumerate(own)],
        list(zip(plans, whole.tolist(), strict=True)),
    )
