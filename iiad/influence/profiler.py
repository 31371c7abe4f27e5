"""The profiler: run a teacher on calibration text and score each of its iterations (method, section 3).

Legend: B batch, T tokens, S source tokens of an encoder-decoder, D model width, L layers, V vocabulary,
t the layer (1-based as in the paper, from 0 in code), i the iteration, r_t the iterations of layer t, H_t its state,
x_{t+1} its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.memory import is_out_of_memory

from .batches import IteratedModel, counted_positions, prepare_batch, require_iterations
from .metrics import ITERATE_METRICS, FullOutput, fixed_point, settling, step_products, wide
from .passes import FullPass
from .profile import METRICS, BatchRecord

__all__ = [
    "OUTPUT_METRICS",
    "USUAL",
    "kept_bytes",
    "num_profile_evaluations",
    "profile_batch",
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
    model: IteratedModel,
    batch: Tensor | Mapping[str, Tensor],
    metrics: Sequence[str] = tuple(METRICS),
    *,
    extrapolate: bool = False,
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
    batch: input_ids (B, T), or a mapping with them and maybe labels (B, T), aligned with them, negative where nothing
        is asked for: only positions before those that are count. Default: every token is asked for. Without padding
        on the left.
        Of pairs: input_ids (B, S) and maybe attention_mask (B, S), 0 at padding; decoder_input_ids and labels (B, T),
        aligned with the outputs. An encoder layer stopped early changes all that follows, in both halves; its own
        scores are means over source tokens.
    extrapolate: score stops as they are extrapolated with this batch's own coefficients (`StepProducts`), so that an
        iteration's influence is what cannot be extrapolated (ours). It costs no evaluation.
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
    batch = prepare_batch(model, batch, where)
    counted, num_sequences = counted_positions(model, batch), len(batch["labels"])
    full, fixed_points, products, settled = FullPass(model, batch), [], [], []
    coefficients: list[list[list[float]]] = []
    of_full, of_down = _layer_costs(full.num_stages, model.config.iterations, metrics)
    whole = sum(of_full) + sum(of_down)
    steps: Steps = {}
    for layer, solved in full.run():
        if not solved.iterates[-1].isfinite().all():
            raise InputError(f"{where}: expected finite states of {full.name(layer)}, got NaN or infinity")
        mask = counted[layer]
        picked = [_pick(state, mask) for state in solved.iterates]
        fixed_points.append(fixed_point(picked))
        products.append(step_products([_pick(solved.input, mask), *picked]))
        if model.config.cache_policy == "shared" and model.config.tolerance is None:
            settled.append(settling(picked))
        coefficients.append(products[-1].coefficients if extrapolate else [])
        solved = solved.extrapolated(coefficients[-1])
        for number, chain in enumerate(solved.chains):
            outputs = [_pick(full.output(layer, state), mask) for state in chain]
            for metric in set(ITERATE_METRICS) & set(metrics):
                found = [ITERATE_METRICS[metric](a, b) for a, b in pairwise(outputs)]
                steps[number, metric, layer] = torch.tensor(found, dtype=torch.float64)
        advance(of_full[layer] / whole)
    output = FullOutput(model.lm_head, full.final_states(), batch, where)
    if not set(metrics) <= set(ITERATE_METRICS):
        gradient = output.loss_gradient() if "taylor" in metrics else None
        size = sequences_at_once(model, num_sequences, full.lengths, memory)

        def score(rows: slice) -> Steps:
            part: Steps = {}
            each = (rows.stop - rows.start) / num_sequences / whole
            for layer, found in _score_rows(full, output, gradient, rows, metrics, where, coefficients):
                part |= found
                advance(of_down[layer] * each)
            return part

        for part in _in_parts(num_sequences, size, score):
            for key, values in part.items():
                steps[key] = steps.get(key, 0.0) + values
    scores, stages = (
        {metric: [steps[n, metric, t].tolist() for t in range(full.num_layers)] for metric in metrics}
        for n in (0, 1)
    )
    return BatchRecord(
        data=data,
        num_tokens=int(output.asked.sum()),
        loss=output.loss,
        scores=scores,
        stages=stages if full.num_stages > 1 else {},
        fixed_point=fixed_points,
        extrapolation=products,
        settling=settled,
    )


def _pick(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the states (B, T, D) at the positions that count, (N, D), or all of them."""
    return states if mask is None else states[mask]


def sequences_at_once(
    model: IteratedModel, num_sequences: int, lengths: Sequence[int], memory: int | None = None
) -> int:
    """Sequences to take at a time through the pass from the last layer down, 1 to B (ours).

    num_sequences: B. lengths: tokens of each stack, T or S and T. Kept for the whole batch are its logits and every
    layer's state. Beside them are, for each sequence and evaluation of a layer, a copy of the history and what
    attention and MLP hold.
    memory: bytes for both; default: half as much again as what is kept, on whatever machine, so that a profile
    repeats to the last bit.
    """
    config = model.config
    kept = kept_bytes(model, num_sequences, lengths)
    each = sum(
        length * ((len(stack.layers) + 8) * config.hidden_size + 5 * config.intermediate_size)
        for stack, length in zip(model.base_model.stacks, lengths, strict=True)
    )
    each *= model.dtype.itemsize * (config.num_start_evaluations + max(config.iterations))
    left = (USUAL - 1) * kept if memory is None else memory - kept
    return max(1, min(num_sequences, int(left // each)))


def kept_bytes(model: IteratedModel, num_sequences: int, lengths: Sequence[int]) -> int:
    """Return the bytes of logits and every layer's state of a batch; lengths: tokens of each stack."""
    config = model.config
    each = lengths[-1] * config.vocab_size + sum(
        length * (len(stack.layers) + 2) * config.hidden_size
        for stack, length in zip(model.base_model.stacks, lengths, strict=True)
    )
    return num_sequences * model.dtype.itemsize * each


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
    coefficients: Sequence[Sequence[Sequence[float]]],
) -> Iterator[tuple[int, Steps]]:
    """Yield for each layer the part of `kl`, `loss` and `taylor` that some of the batch's sequences contribute.

    coefficients: of each layer's stops, which they are extrapolated by; none: as they are.
    """
    part = full.select(rows)
    asked = set(OUTPUT_METRICS) & set(metrics)
    for layer, solved, by_state in part.run_down(None if gradient is None else gradient[rows]):
        steps: Steps = {}
        for number, chain in enumerate(solved.extrapolated(coefficients[layer]).chains):
            stops: dict[str, list[float]] = {metric: [] for metric in asked}
            if asked and len(chain) > 1:
                at = f"{where}: the model stopped early in {full.name(layer)}"
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


def require_metrics(metrics: Sequence[str]) -> None:
    """Raise InputError for an unknown metric, and for none at all."""
    unknown = next((metric for metric in metrics if metric not in METRICS), None)
    if unknown is not None or not metrics:
        raise InputError(f"metric: expected {', '.join(METRICS)}, got {unknown or 'none'!r}")
