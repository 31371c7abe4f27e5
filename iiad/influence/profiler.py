"""The profiler: run a teacher on calibration text and score each of its iterations (method, section 3).

Legend: B batch, T tokens, D model width, L layers, V vocabulary, t the layer (1-based as in the paper, from 0 in
code), i the iteration, r_t the iterations of layer t, H_t its state, x_{t+1} its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from iiad.artefacts import ModelIdentity
from iiad.errors import InputError
from iiad.memory import is_out_of_memory
from iiad.models import IIETForCausalLM

from .metrics import ITERATE_METRICS, FullOutput, asked_positions, fixed_point, wide
from .passes import FullPass
from .profile import METRICS, BatchRecord

__all__ = [
    "OUTPUT_METRICS",
    "USUAL",
    "kept_bytes",
    "num_profile_evaluations",
    "profile_batch",
    "require_iterations",
    "require_metrics",
]

OUTPUT_METRICS = ("kl", "loss")
"""Metrics of the model's output: the layers above a stopped one are run again."""

USUAL = 1.5
"""Memory that a batch takes where none is set, in units of what is kept of it."""

Steps = dict[tuple[int, str, int], Tensor]
"""(chain, metric, layer) -> a score for each step along the chain: 0, iterations, or 1, the predictor's stages."""

Result = TypeVar("Result")


@torch.no_grad()
def profile_batch(
    model: IIETForCausalLM,
    input_ids: Tensor,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    labels: Tensor | None = None,
    data: int = 0,
    memory: int | None = None,
    where: str = "the batch",
    advance: Callable[[float], None] = lambda share: None,
) -> BatchRecord:
    """Score every iteration on one batch.

    Stopping layer t after iteration i sets H_t = z(i); all other layers run in full. `cosine` and `relative_l2` come
    with the full pass. The others solve each layer once more, from the last down: `taylor` with gradients; `kl` and
    `loss` run the layers above for i = 0, ..., r_t - 1 (`num_profile_evaluations` counts).
    A predictor of several stages (PCformer's) is scored likewise: truncated after each stage, the corrector in full.

    model: in evaluation mode, with at least one iteration. It is not changed.
    input_ids: (B, T), without padding on the left; moved to the model's device.
    labels: (B, T), aligned with input_ids, negative where nothing is asked for; only positions before those that are
        count. Default: every token is asked for.
    data: number of the batch's data set, for the record. where: the batch's name in errors.
    memory: bytes that may be taken beside the weights. It decides how many sequences are run at a time, and no score
        depends on it. Default: 1.5 times what the logits and states of the batch take. Where memory runs out, half
        as many sequences are tried, down to one.
    advance: called with each share of the batch's work that is done.

    Raises InputError for a model without iterations or in training mode, an unknown metric or none, a batch that
    does not hold token ids of the model, and logits with NaN or infinity.
    """
    require_iterations(model)
    require_metrics(metrics)
    if model.training:
        raise InputError("model: expected evaluation mode, model.eval(), got training mode")
    _require_token_ids(model, input_ids, where)
    if labels is not None:
        _require_token_ids(model, labels.clamp(min=0), f"{where}: labels")
    input_ids = input_ids.to(model.device)
    labels = input_ids if labels is None else labels.to(model.device)
    asked = asked_positions(labels)
    every = bool(asked.all())

    def pick(state: Tensor) -> Tensor:
        return state if every else state[asked]  # (N, D)

    full, fixed_points = FullPass(model, input_ids), []
    of_full, of_down = _layer_costs(full.num_stages, model.config.iterations, metrics)
    whole = sum(of_full) + sum(of_down)
    steps: Steps = {}
    for layer, solved in full.run():
        if not solved.iterates[-1].isfinite().all():
            raise InputError(f"{where}: expected finite states of layer {layer + 1}, got NaN or infinity")
        fixed_points.append(fixed_point([pick(state) for state in solved.iterates]))
        for number, chain in enumerate(solved.chains):
            outputs = [pick(full.output(layer, state)) for state in chain]
            for metric in set(ITERATE_METRICS) & set(metrics):
                found = [ITERATE_METRICS[metric](a, b) for a, b in pairwise(outputs)]
                steps[number, metric, layer] = torch.tensor(found, dtype=torch.float64)
        advance(of_full[layer] / whole)
    output = FullOutput(model.lm_head, full.final_states(), labels, where)
    if not set(metrics) <= set(ITERATE_METRICS):
        gradient = output.loss_gradient() if "taylor" in metrics else None
        size = sequences_at_once(model, len(input_ids), input_ids.shape[1], memory)

        def score(rows: slice) -> Steps:
            part: Steps = {}
            each = (rows.stop - rows.start) / len(input_ids) / whole
            for layer, found in _score_rows(full, output, gradient, rows, metrics, where):
                part |= found
                advance(of_down[layer] * each)
            return part

        for part in _in_parts(len(input_ids), size, score):
            for key, values in part.items():
                steps[key] = steps.get(key, 0.0) + values
    scores, stages = (
        {metric: [steps[n, metric, t].tolist() for t in range(full.num_layers)] for metric in metrics}
        for n in (0, 1)
    )
    return BatchRecord(
        data=data,
        num_tokens=int(asked.sum()),
        loss=output.loss,
        scores=scores,
        stages=stages if full.num_stages > 1 else {},
        fixed_point=fixed_points,
    )


def sequences_at_once(
    model: IIETForCausalLM, num_sequences: int, num_tokens: int, memory: int | None = None
) -> int:
    """Sequences to take at a time through the pass from the last layer down, 1 to B (ours).

    num_sequences, num_tokens: B and T. Kept for the whole batch are its logits and every layer's state. Beside them
    are, for each sequence and evaluation of a layer, a copy of the history and what attention and MLP hold.
    memory: bytes for both; default: half as much again as what is kept, on whatever machine, so that a profile
    repeats to the last bit.
    """
    config, width = model.config, model.config.hidden_size
    number = num_tokens * model.dtype.itemsize  # bytes of one number for each token
    kept = kept_bytes(model, num_sequences, num_tokens)
    evaluations = config.num_start_evaluations + max(config.iterations)
    each = number * evaluations * ((config.num_layers + 8) * width + 5 * config.intermediate_size)
    left = (USUAL - 1) * kept if memory is None else memory - kept
    return max(1, min(num_sequences, int(left // each)))


def kept_bytes(model: IIETForCausalLM, num_sequences: int, num_tokens: int) -> int:
    """Return the bytes of logits and every layer's state of a batch."""
    config = model.config
    each = config.vocab_size + (config.num_layers + 2) * config.hidden_size
    return num_sequences * num_tokens * model.dtype.itemsize * each


def _in_parts(num_rows: int, size: int, work: Callable[[slice], Result]) -> Iterator[Result]:
    """Work on `size` rows at a time; where memory runs out, on half as many from there on, at least one."""
    first = 0
    while first < num_rows:
        rows = slice(first, min(first + size, num_rows))
        try:
            result = work(rows)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size //= 2
        else:
            yield result
            first = rows.stop


def _score_rows(
    full: FullPass,
    output: FullOutput,
    gradient: Tensor | None,
    rows: slice,
    metrics: Sequence[str],
    where: str,
) -> Iterator[tuple[int, Steps]]:
    """Yield for each layer the part of `kl`, `loss` and `taylor` that some of the batch's sequences contribute."""
    part = full.select(rows)
    asked = set(OUTPUT_METRICS) & set(metrics)
    for layer, solved, by_state in part.run_down(None if gradient is None else gradient[rows]):
        steps: Steps = {}
        for number, chain in enumerate(solved.chains):
            stops: dict[str, list[float]] = {metric: [] for metric in asked}
            if asked and len(chain) > 1:
                at = f"{where}: the model stopped early in layer {layer + 1}"
                stops = output.harms(part.run_stops(layer, chain[:-1]), at, rows)
            for metric in asked:  # stopping at the last state is the full model, which loses nothing
                losses = torch.tensor([*stops[metric], 0.0], dtype=torch.float64)
                steps[number, metric, layer] = -losses.diff()
            if by_state is not None:
                found = [
                    ((wide(a) - wide(b)) * wide(by_state)).sum(dtype=torch.float64)
                    for a, b in pairwise(chain)
                ]
                steps[number, "taylor", layer] = torch.tensor(found, dtype=torch.float64)
        yield layer, steps


def num_profile_evaluations(model: ModelIdentity, metrics: Sequence[str] = tuple(METRICS)) -> int:
    """Block evaluations per token that `profile_batch` costs.

    The full pass; a second one for `kl`, `loss` and `taylor`, whose backward half is not counted; for `kl` or `loss`
    also, for each stop, all evaluations of the layers above it. A predictor of s stages (PCformer's) adds s - 1
    truncations of each layer to a pass, and as many stops.
    """
    return sum(map(sum, _layer_costs(model.num_start_evaluations, model.num_iterations, metrics)))


def _layer_costs(start: int, plan: Sequence[int], metrics: Sequence[str]) -> tuple[list[int], list[int]]:
    """Block evaluations per token for each layer in the full pass, and in the one from the last layer down."""
    costs = [start + r for r in plan]
    once = [start + r + sum(stage + r for stage in range(1, start)) for r in plan]
    if set(metrics) <= set(ITERATE_METRICS):
        return once, [0] * len(plan)
    asked = bool(set(metrics) & set(OUTPUT_METRICS))
    stops = [asked * (start - 1 + r) * sum(costs[t + 1 :]) for t, r in enumerate(plan)]
    return once, [one + more for one, more in zip(once, stops, strict=True)]


def require_iterations(model: Any) -> None:
    """Raise InputError for a model of any kind without iterations."""
    if not isinstance(model, IIETForCausalLM) or not any(model.config.iterations):
        raise InputError(
            "model: expected an iiet or pcformer with an iteration in at least one layer, "
            f"got type {model.config.model_type!r} and no iterations"
        )


def require_metrics(metrics: Sequence[str]) -> None:
    """Raise InputError for an unknown metric, and for none at all."""
    unknown = next((metric for metric in metrics if metric not in METRICS), None)
    if unknown is not None or not metrics:
        raise InputError(f"metric: expected {', '.join(METRICS)}, got {unknown or 'none'!r}")


def _require_token_ids(model: IIETForCausalLM, batch: Tensor, where: str) -> None:
    if batch.dim() != 2 or batch.numel() == 0 or batch.dtype not in (torch.int64, torch.int32):
        shape = f"{batch.dtype} of shape {tuple(batch.shape)}"
        raise InputError(f"{where}: expected token ids, int64 or int32 of shape (B, T), got {shape}")
    lowest, highest = int(batch.min()), int(batch.max())
    if lowest < 0 or highest >= model.config.vocab_size:
        found = lowest if lowest < 0 else highest
        raise InputError(f"{where}: expected token ids from 0 to {model.config.vocab_size - 1}, got {found}")
