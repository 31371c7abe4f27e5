"""Seconds of a forward call by part of the model, by torch.profiler in runs of their own. Ours.

A profiled call is slower than a timed one by some microseconds an operation.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
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
from .timing import run_calls
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
    base = model.base_model
    named = all(hasattr(base, name) for name in ("embed_tokens", "layers", "norm"))
    return named and all(
        all(hasattr(layer, name) for name in ("self_attn", "mlp", "input_layernorm")) for layer in base.layers
    )


@torch.inference_mode()
def profile_run(model: Any, prompts: Tensor, num_steps: int) -> dict[str, Breakdown]:
    """Profile a run as `time_model` does it: "prefill", and "decode", the mean of at most PROFILED_STEPS steps.

    prompts: (B, T) token ids on the model's device. The model must be one that `can_be_profiled`.
    """
    calls = run_calls(model, prompts, _ProfiledCache(config=model.config))
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
    base = model.base_model
    modules = [("embedding", base.embed_tokens), ("head", base.norm), ("head", model.get_output_embeddings())]
    for layer in base.layers:
        modules += [("solver", layer), ("attention", layer.self_attn), ("mlp", layer.mlp)]
        modules += [("norms", layer.input_layernorm), ("norms", layer.post_attention_layernorm)]
        modules += [("projections", getattr(layer.self_attn, name)) for name in PROJECTIONS]
    with ExitStack() as stack:
        for part, module in modules:
            recorded = record_function(f"{PREFIX}{part}")(module.forward)
            stack.enter_context(patch.object(module, "forward", recorded))
        yield
