"""What a forward call's time goes to: modules, attention and cache, watched by hooks in runs of their own. Ours.

A watched call is slower than a timed one by what the marks take, some microseconds an evaluation on the CPU.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .bench_artefact import PARTS, Breakdown
from .timing import mark, now, run_calls, seconds_between

__all__ = ["WatchedCall", "can_be_watched", "summarise_calls", "watch_run"]


@dataclass(frozen=True)
class WatchedCall:
    """Seconds of one call, or the mean of several, for each of PARTS; and the host's share of it (None: CPU)."""

    seconds: dict[str, float]
    host_share: float | None


@dataclass
class _Spans:
    """Marks of when what began and ended. Of spans of one name inside each other the outermost alone counts."""

    device: torch.device
    marks: dict[str, list[tuple[Any, Any]]] = field(default_factory=lambda: defaultdict(list))
    open: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def begin(self, name: str) -> None:
        """A span of that name begins."""
        self.open[name].append(None if self.open[name] else mark(self.device))

    def end(self, name: str) -> None:
        """The span of that name that began last ends."""
        start = self.open[name].pop()
        if start is not None:
            self.marks[name].append((start, mark(self.device)))

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its runs marked."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.begin(name)
            result = function(*args, **kwargs)
            self.end(name)
            return result

        return marked

    def seconds(self, name: str) -> float:
        """Of all spans of that name, once the device has passed them."""
        return sum(seconds_between(start, end) for start, end in self.marks[name])


def can_be_watched(model: Any) -> bool:
    """Whether the parts are where Llama and our models have them."""
    base = model.base_model
    named = all(hasattr(base, name) for name in ("embed_tokens", "layers", "norm"))
    return named and all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in base.layers)


@torch.inference_mode()
def watch_run(model: Any, prompts: Tensor, num_steps: int) -> dict[str, WatchedCall]:
    """A run as `time_model` does it: the "prefill", and the mean of its "decode" steps, in seconds by parts.

    prompts: (B, T) token ids on the model's device. The model must be one that `can_be_watched`.
    """
    cache = DynamicCache(config=model.config)
    calls = run_calls(model, prompts, cache)
    phases = {"prefill": 1, "decode": num_steps}
    return {phase: _watch_calls(model, cache, calls, number) for phase, number in phases.items()}


def summarise_calls(calls: list[WatchedCall]) -> Breakdown:
    """Medians of each part over calls of the same kind."""
    hosts = [call.host_share for call in calls if call.host_share is not None]
    return Breakdown(
        seconds={part: median(call.seconds[part] for call in calls) for part in PARTS},
        host_share=median(hosts) if hosts else None,
    )


def _watch_calls(model: Any, cache: DynamicCache, calls: Iterator[Tensor], number: int) -> WatchedCall:
    device = model.device
    spans = _Spans(device)
    with _watched(model, cache, spans):
        started = now(device)
        for _ in range(number):
            next(calls)
        asked = time.perf_counter() - started
        whole = now(device) - started
    parts = {part: seconds / number for part, seconds in _parts(spans, whole).items()}
    return WatchedCall(parts, asked / whole if device.type == "cuda" else None)


def _parts(spans: _Spans, whole: float) -> dict[str, float]:
    """Seconds of each of PARTS: what a span holds beside the spans inside it. Clocks differ, so none below 0."""
    inside = {
        "attention": ("attention",),
        "cache": ("cache",),
        "projections": ("self_attn", "attention", "cache"),
        "mlp": ("mlp",),
        "norms": ("evaluation", "self_attn", "mlp"),
        "solver": ("layer", "evaluation"),
        "embedding": ("embedding",),
        "head": ("head",),
    }
    total = {name: spans.seconds(name) for names in inside.values() for name in names}
    parts = {
        part: max(0.0, total[outer] - sum(total[name] for name in inner))
        for part, (outer, *inner) in inside.items()
    }
    rest = whole - total["layer"] - total["embedding"] - total["head"]
    return {**parts, "rest": max(0.0, rest)}


@contextmanager
def _watched(model: Any, cache: DynamicCache, spans: _Spans) -> Iterator[None]:
    """While this lasts, mark when modules, attention functions, evaluations and cache updates run."""
    base = model.base_model
    modules = [("embedding", base.embed_tokens), ("head", base.norm)]
    modules.append(("head", model.get_output_embeddings()))
    for layer in base.layers:
        modules += [("layer", layer), ("self_attn", layer.self_attn), ("mlp", layer.mlp)]
    with ExitStack() as stack:
        for name, module in modules:
            stack.enter_context(_hooked(module, name, spans))
        for layer in base.layers:
            if hasattr(layer, "evaluate"):  # ours: a layer runs its block several times
                stack.enter_context(_replaced(layer, "evaluate", partial(spans.wrap, "evaluation")))
            else:
                stack.enter_context(_hooked(layer, "evaluation", spans))
            if getattr(model.config, "cache_policy", None) == "shared":
                _watch_shared(layer, spans, stack)
        stack.enter_context(_replaced(cache, "update", partial(spans.wrap, "cache")))
        stack.enter_context(_attention(model.config._attn_implementation, spans))
        yield


def _watch_shared(layer: Any, spans: _Spans, stack: ExitStack) -> None:
    """Mark norm, keys and values that a layer of shared ones runs before its evaluations, and for all of them."""
    stack.enter_context(_hooked(layer.input_layernorm, "evaluation", spans))

    def change(method: Callable[..., Any]) -> Callable[..., Any]:
        return spans.wrap("evaluation", spans.wrap("self_attn", method))

    stack.enter_context(_replaced(layer.self_attn, "keys_and_values", change))


@contextmanager
def _hooked(module: Any, name: str, spans: _Spans) -> Iterator[None]:
    def before(*_: Any) -> None:
        spans.begin(name)

    def after(*_: Any) -> None:
        spans.end(name)

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced(owner: Any, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """An object's method changed for a while, by an attribute of its own that hides its class's."""
    setattr(owner, name, change(getattr(owner, name)))
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def _attention(implementation: str, spans: _Spans) -> Iterator[None]:
    """The attention function marked, under its own name, by which masks are chosen.

    `eager` is not in transformers' table; its time stays among the projections.
    """
    known = ALL_ATTENTION_FUNCTIONS
    if implementation not in known:
        yield
        return
    own = known._local_mapping.get(implementation)
    known[implementation] = spans.wrap("attention", known[implementation])
    try:
        yield
    finally:
        del known[implementation]
        if own is not None:
            known[implementation] = own
