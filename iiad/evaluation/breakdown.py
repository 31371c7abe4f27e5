"""Seconds of a forward call by part of the model, by torch.profiler in runs of their own. Ours.

A profiled call is slower than a timed one by some microseconds an operation.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import DynamicCache

from iiad.clock import now

from .bench_artefact import PARTS, Breakdown
from .timing import new_cache, run_calls
from .tracing import traced_events

__all__ = ["can_be_profiled", "median_breakdown", "profile_run", "seconds_by_part"]

PROFILED_STEPS = 8
"""Decoding steps at most: enough for a mean, few enough for the profiler's memory."""
PREFIX = "iiad."
"""Of the spans' names in the trace."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class _ProfiledCache(DynamicCache):
    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values, as a span."""
        with record_function(f"{PREFIX}cache"):
            return super().update(*args, **kwargs)


def can_be_profiled(model: Any) -> bool:
    """Return whether the modules have Llama's names."""
    stacks = _stacks(model)
    named = all(hasattr(stack, name) for stack in stacks for name in ("embed_tokens", "layers", "norm"))
    return named and all(
        all(hasattr(layer, name) for name in ("self_attn", "mlp", "input_layernorm"))
        for stack in stacks
        for layer in stack.layers
    )


def _stacks(model: Any) -> Sequence[Any]:
    """Return the modules that each hold layers: of ours an encoder and a decoder, or the model without its head."""
    base = model.base_model
    return getattr(base, "stacks", (base,))


@torch.inference_mode()
def profile_run(model: Any, prompts: Tensor, num_steps: int) -> dict[str, Breakdown]:
    """Profile a run as `time_model` does it: "prefill", and "decode", the mean of at most PROFILED_STEPS steps.

    prompts: (B, T) token ids on the model's device. The model must be one that `can_be_profiled`.
    """
    calls = run_calls(model, prompts, new_cache(model, kind=_ProfiledCache))
    with _spans(model):
        return {
            phase: _profile_calls(calls, number, model.device)
            for phase, number in (("prefill", 1), ("decode", min(num_steps, PROFILED_STEPS)))
        }


def median_breakdown(breakdowns: list[Breakdown]) -> Breakdown:
    """Return the median of each part over runs of the same kind."""
    hosts = [each.host_share for each in breakdowns if each.host_share is not None]
    return Breakdown(
        seconds={part: median(each.seconds[part] for each in breakdowns) for part in PARTS},
        host_share=median(hosts) if hosts else None,
    )


def seconds_by_part(spans: Iterable[tuple[str, float, float]], whole: float) -> dict[str, float]:
    """Return the time of each of PARTS: a span's own, without the spans inside it; "rest" is outside of all.

    spans: (part, start, end) on one clock, nested or apart, in the order in which they began. whole: of the call.
    """
    seconds = {**dict.fromkeys(PARTS, 0.0), "rest": whole}
    open_spans = [("rest", float("inf"))]
    for part, start, end in sorted(spans, key=lambda span: (span[1], -span[2])):
        while open_spans[-1][1] <= start:
            open_spans.pop()
        seconds[part] += end - start
        seconds[open_spans[-1][0]] -= end - start
        open_spans.append((part, end))
    return {part: max(0.0, value) for part, value in seconds.items()}  # clocks differ in the last digits


def _profile_calls(calls: Iterator[Tensor], number: int, device: torch.device) -> Breakdown:
    on_gpu, clock = device.type == "cuda", []

    def run() -> None:
        clock.append(now(device))
        for _ in range(number):
            next(calls)
        clock.extend([time.perf_counter(), now(device)])

    # On a GPU a span is there twice: as the host launched it, and as the device ran it.
    category = "gpu_user_annotation" if on_gpu else "user_annotation"
    spans = [
        (event["name"].removeprefix(PREFIX), event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in traced_events(run, on_gpu=on_gpu)
        if event.get("cat") == category and event["name"].startswith(PREFIX)
    ]
    started, asked, ended = clock
    seconds = {part: value / number for part, value in seconds_by_part(spans, ended - started).items()}
    return Breakdown(seconds=seconds, host_share=(asked - started) / (ended - started) if on_gpu else None)


@contextmanager
def _spans(model: Any) -> Iterator[None]:
    """While the block runs, record each module's runs under the name of its part."""
    modules = [("head", model.get_output_embeddings())]
    for stack in _stacks(model):
        modules += [("embedding", stack.embed_tokens), ("head", stack.norm)]
        for layer in stack.layers:
            modules += [("solver", layer), ("mlp", layer.mlp)]
            for name, module in layer.named_children():
                modules += [("norms", module)] * name.endswith("_layernorm")
                if name.endswith("_attn"):
                    modules += [("attention", module)]
                    modules += [("projections", getattr(module, part)) for part in PROJECTIONS]
    with ExitStack() as patches:
        for part, module in modules:
            recorded = record_function(f"{PREFIX}{part}")(module.forward)
            patches.enter_context(patch.object(module, "forward", recorded))
        yield
