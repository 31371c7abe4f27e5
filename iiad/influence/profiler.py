"""The profiler: run a teacher on calibration text and score each of its iterations.

Legend: B batch, T tokens, D model width, L layers, V vocabulary, t the layer (1-based as in the paper, from 0 in
code), i the iteration, r_t the iterations of layer t, H_t its state, x_{t+1} its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from iiad.artefacts import ModelIdentity
from iiad.errors import InputError
from iiad.models import IIETForCausalLM

from .averages import Scores
from .metrics import ITERATE_METRICS, fixed_point, wide
from .outputs import FullOutput
from .pass_memory import MemoryPlan
from .passes import FullPass, SolvedLayer, Stop
from .profile import METRICS, BatchRecord, FixedPoint

__all__ = [
    "OUTPUT_METRICS",
    "num_profile_evaluations",
    "profile_batch",
    "profile_model",
    "require_iterations",
    "require_metrics",
]

OUTPUT_METRICS = ("kl", "loss")
"""Metrics of the model's output: the layers above a stopped one are run again."""


def profile_model(
    model: IIETForCausalLM,
    batches: Iterable[Tensor],
    metrics: Sequence[str] = tuple(METRICS),
    advance: Callable[[float], None] | None = None,
    memory: int | None = None,
) -> list[BatchRecord]:
    """Score every iteration of a model, one batch after the other.

    batches: token ids, each (B, T), without padding. advance: called with the tokens of each batch when it is
    done. The rest as in `profile_batch`, which also says what is raised; and InputError for no batches.
    """
    records = []
    for number, batch in enumerate(batches, 1):
        records.append(profile_batch(model, batch, metrics, memory=memory, where=f"batch {number}"))
        if advance is not None:
            advance(batch.numel())
    if not records:
        raise InputError("batches: found none; accepted: at least one")
    return records


@torch.no_grad()
def profile_batch(
    model: IIETForCausalLM,
    input_ids: Tensor,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    data: int = 0,
    memory: int | None = None,
    where: str = "the batch",
) -> BatchRecord:
    """All scores of one batch, from one full pass and what the metrics need beside it.

    Stopping layer t after iteration i sets H_t = z(i); all other layers run in full. `kl` and `loss` run the model
    so for i = 0, ..., r_t - 1, but only the layers above t, as z(i) is at hand, and several stops as one batch.
    `taylor` takes one backward pass, `cosine` and `relative_l2` nothing more (`num_profile_evaluations` counts).
    A predictor of several stages (PCformer's) is scored likewise: truncated after each stage, the corrector in full.

    Args:
        model: an IIET or PCformer with at least one iteration, in evaluation mode. It is not changed.
        input_ids: (B, T), without padding; moved to the model's device.
        metrics: names from `METRICS`.
        data: the data set that the batch is from, for the record.
        memory: bytes that may be taken beside the weights; by it the number of stops in one batch is chosen, and
            no result depends on it. Default: see `iiad.influence.pass_memory.MemoryPlan`.
        where: what errors call the batch.

    Raises:
        InputError: a model without iterations or in training mode, an unknown metric or none, a batch that does
            not hold token ids of the model, logits with NaN or infinity (the message says where).
    """
    require_iterations(model)
    require_metrics(metrics)
    if model.training:
        raise InputError("model: found in training mode; accepted: evaluation mode, model.eval()")
    _require_token_ids(model, input_ids, where)
    scoring = _Scoring(model, input_ids.to(model.device), metrics, memory, where)
    return BatchRecord(
        data=data,
        num_tokens=input_ids.numel(),
        loss=scoring.output.loss,
        scores=scoring.iterations,
        stages=scoring.stages if model.config.num_start_evaluations > 1 else {},
        fixed_point=scoring.fixed_points,
    )


class _Scoring:
    """One batch on its way through all metrics.

    iterations, stages: metric -> for each layer the scores of its chain of iterates, or of its predictor's stages.
    A chain is a list of states of one layer, each (B, T, D), in the order in which its parts run; the last is H_t.
    """

    def __init__(
        self,
        model: IIETForCausalLM,
        input_ids: Tensor,
        metrics: Sequence[str],
        memory: int | None,
        where: str,
    ):
        self.where, self.memory = where, MemoryPlan.of(model, len(input_ids), input_ids.shape[1], memory)
        num_layers = model.config.num_layers
        self.iterations: dict[str, Scores] = {metric: [[] for _ in range(num_layers)] for metric in metrics}
        self.stages: dict[str, Scores] = {metric: [[] for _ in range(num_layers)] for metric in metrics}
        self.fixed_points: list[FixedPoint] = []
        stopping = any(metric in metrics for metric in OUTPUT_METRICS)
        num_kept = self.memory.num_kept_layers() if stopping else 0
        self.full = FullPass(model, input_ids, self._look, num_kept)
        self.output = FullOutput(model.lm_head, model.model.norm(self.full.last), input_ids, where)
        if stopping:
            self._stop_layers()
        if "taylor" in metrics:
            self._go_back()

    def _chains(self, solved: SolvedLayer) -> list[tuple[list[Tensor], dict[str, Scores]]]:
        """What is scored of a layer, and where the scores go."""
        return [(solved.iterates, self.iterations), (solved.stages, self.stages)]

    def _look(self, full: FullPass, layer: int) -> None:
        """Score by the metrics of a layer's outputs, as long as they are at hand."""
        solved = full.layers[layer]
        if not solved.state.isfinite().all():
            found = f"the state of layer {layer + 1} holds NaN or infinity"
            raise InputError(f"{self.where}: {found}; accepted: finite states")
        self.fixed_points.append(fixed_point(solved.iterates))
        for chain, into in self._chains(solved):
            for metric in set(ITERATE_METRICS) & set(into):
                outputs = (full.output(layer, state) for state in chain)
                into[metric][layer] = [ITERATE_METRICS[metric](a, b) for a, b in pairwise(outputs)]

    def _stop_layers(self) -> None:
        """Score by `kl` and `loss`: from the last layer down, so that iterates are freed as the stops get dearer."""
        waiting: list[int] = []  # layers whose stops wait for a full stack
        for layer in reversed(range(len(self.full.layers))):
            waiting.insert(0, layer)
            self.full.recall(layer, self.memory.num_stopped_rows())
            num_stops = sum(
                len(chain[:-1]) for t in waiting for chain, _ in self._chains(self.full.layers[t])
            )
            if layer == 0 or num_stops >= self.memory.num_stops(waiting[-1]):
                self._run_stops(waiting)
                waiting.clear()

    def _run_stops(self, layers: Sequence[int]) -> None:
        chains = [(t, chain, into) for t in layers for chain, into in self._chains(self.full.layers[t])]
        stops = [Stop(t, state) for t, chain, _ in chains for state in chain[:-1]]
        size = self.memory.num_stops(layers[-1])
        harms: list[dict[str, float]] = []
        for first in range(0, len(stops), size):
            stack = stops[first : first + size]
            numbers = sorted({stop.layer + 1 for stop in stack})
            at = f"{self.where}: the model stopped early in layer {' or '.join(map(str, numbers))}"
            harms.extend(self.output.harms(self._run_stack(stack), at))
        remaining = iter(harms)
        for layer, chain, into in chains:
            own = [next(remaining) for _ in chain[:-1]]
            for metric in set(OUTPUT_METRICS) & set(into):
                # Stopping at the last is the full model, which loses nothing.
                steps = [*(harm[metric] for harm in own), 0.0] if own else []
                into[metric][layer] = [before - after for before, after in pairwise(steps)]
        for layer in layers:
            self.full.forget(layer)

    def _run_stack(self, stack: Sequence[Stop]) -> Tensor:
        """Final states (n, B, T, D) of n stops: of all rows at once, or of some at a time where memory is short."""
        size = self.memory.num_stopped_rows()
        if size == self.memory.num_rows:
            return self.full.run_stops(stack)
        parts = []
        for first in range(0, self.memory.num_rows, size):
            rows = slice(first, first + size)
            parts.append(self.full.select(rows).run_stops([Stop(s.layer, s.state[rows]) for s in stack]))
        return torch.cat(parts, 1)

    def _go_back(self) -> None:
        """Score by `taylor`, some rows at a time: summed over all tokens, the products are the change of the mean."""
        gradient = self.output.loss_gradient().view_as(self.full.last)
        self.output.forget()
        size = self.memory.num_backward_rows()
        for first in range(0, len(gradient), size):
            rows = slice(first, first + size)
            self.full.select(rows).run_back(gradient[rows], self._look_back)

    def _look_back(self, layer: int, solved: SolvedLayer, gradient: Tensor) -> None:
        for chain, into in self._chains(solved):
            found = [
                ((wide(a) - wide(b)) * wide(gradient)).sum(dtype=torch.float64).item()
                for a, b in pairwise(chain)
            ]
            before = into["taylor"][layer] or [0.0] * len(found)
            into["taylor"][layer] = [a + b for a, b in zip(before, found, strict=True)]


def num_profile_evaluations(model: ModelIdentity, metrics: Sequence[str] = tuple(METRICS)) -> int:
    """Block evaluations per token that `profile_batch` costs where memory is ample.

    The full pass; with `kl` or `loss` also, for each stop, all evaluations of the layers above it; with `taylor` the
    layers once more, for their backward pass, which itself is not counted. A predictor of s stages (PCformer's) adds
    s - 1 truncations of each layer, and as many stops. Where memory is short, `kl` and `loss` run some or all layers
    once more, rather than keep their iterates.
    """
    start, plan = model.num_start_evaluations, model.num_iterations
    costs = [start + r for r in plan]
    truncations = sum(stage + r for r in plan for stage in range(1, start))
    stops = sum((start - 1 + r) * sum(costs[t + 1 :]) for t, r in enumerate(plan))
    total = sum(costs) + truncations
    total += stops if any(metric in OUTPUT_METRICS for metric in metrics) else 0
    return total + (sum(costs) if "taylor" in metrics else 0)


def require_iterations(model: Any) -> None:
    """Raise InputError for a model that has no iterations, whatever its kind."""
    if not isinstance(model, IIETForCausalLM) or not any(model.config.iterations):
        raise InputError(
            f"model: found type {model.config.model_type!r} and no iterations, so no influence to measure; "
            "accepted: an iiet or pcformer with an iteration in at least one layer"
        )


def require_metrics(metrics: Sequence[str]) -> None:
    """Raise InputError for a metric that there is not, and for none at all."""
    unknown = next((metric for metric in metrics if metric not in METRICS), None)
    if unknown is not None or not metrics:
        raise InputError(f"metric: found {unknown or 'none'!r}; accepted: {', '.join(METRICS)}")


def _require_token_ids(model: IIETForCausalLM, batch: Tensor, where: str) -> None:
    if batch.dim() != 2 or batch.numel() == 0 or batch.dtype not in (torch.int64, torch.int32):
        shape = f"{batch.dtype} of shape {tuple(batch.shape)}"
        raise InputError(f"{where}: found {shape}; accepted: token ids, int64 or int32 of shape (B, T)")
    lowest, highest = int(batch.min()), int(batch.max())
    if lowest < 0 or highest >= model.config.vocab_size:
        found = lowest if lowest < 0 else highest
        raise InputError(f"{where}: found token id {found}; accepted: 0 to {model.config.vocab_size - 1}")
