"""Costs of a plan: evaluations, FLOPs, cache bytes, unused parameters, predicted seconds and predicted loss.

All definitions are ours. Legend: B sequences, T tokens of context, D model width, F MLP width, N query heads,
K key/value heads, E head width, V vocabulary, t the layer from 1, r_t its iterations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from iiad.artefacts import ModelIdentity, ModelShape
from iiad.errors import InputError
from iiad.influence.profile import Profile, Scores, average

from .latency import LatencyTable

__all__ = [
    "DEFAULT_CONTEXT",
    "LOSS_UNITS",
    "NEGLIGIBLE",
    "PlanCost",
    "compare_costs",
    "compute_cut",
    "cost_of",
    "count_evaluations",
    "dropped_scores",
    "overhead_cut",
    "phase_evaluations",
    "predicted_loss",
    "predicted_loss_error",
    "predicted_speedups",
]

DEFAULT_CONTEXT = 1024
BLOCK_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
"""Sizes that the cost of one block evaluation follows from."""

LOSS_UNITS: dict[str, str] = {
    "kl": "nats per token",
    "loss": "nats per token",
    "taylor": "nats per token",
    "cosine": "of cosine distance, summed over layers",
    "relative_l2": "of relative change, summed over layers",
}
"""Unit of the predicted loss by each metric. Only the first three are losses of the model's output."""

NEGLIGIBLE = {"kl": 1e-4, "loss": 1e-4, "taylor": 1e-4, "cosine": 1e-6, "relative_l2": 1e-4}
"""Scores below it are no contribution: of an iteration that has learnt nothing, or has converged before."""


def predicted_loss(scores: Scores, num_iterations: Sequence[int]) -> float:
    """Sum of the dropped scores, in the metric's unit (ours).

    By `kl` and `loss` it is exact where one layer alone is cut; that layers add up is an assumption.
    """
    return math.fsum(s for layer, r in zip(scores, num_iterations, strict=True) for s in layer[r:])


def predicted_loss_error(profile: Profile, metric: str, num_iterations: Sequence[int]) -> float | None:
    """Standard error of the predicted loss over the profile's batches; None for one batch, which has none.

    It says how far another sample of text would move the prediction, not whether layers add up.
    """
    if len(profile.batches) < 2:
        return None
    _, errors = average(
        [{metric: [[predicted_loss(batch.scores[metric], num_iterations)]]} for batch in profile.batches],
        [batch.num_tokens for batch in profile.batches],
        [batch.data for batch in profile.batches],
    )
    return errors[metric][0][0]


def dropped_scores(scores: Scores) -> Scores:
    """For each layer the loss predicted of running 0, 1, ..., R_t iterations."""
    return [[math.fsum(layer[r:]) for r in range(len(layer) + 1)] for layer in scores]


def count_evaluations(teacher: ModelIdentity, num_iterations: Sequence[int]) -> int:
    """Block evaluations per token under a plan, sum over t of (start evaluations + r_t)."""
    return teacher.num_start_evaluations * teacher.num_layers + sum(num_iterations)


def overhead_cut(kept: Sequence[int], whole: Sequence[int]) -> float:
    """Iterations dropped / iterations of the teacher, `(R - sum r_t) / R`: the paper's 55 %. 0 where R is 0."""
    # Subtracted first, so that 1 in 10 is 0.1 and not 0.09999999999999998.
    return (sum(whole) - sum(kept)) / sum(whole) if any(whole) else 0.0


def compute_cut(kept: int, whole: int) -> float:
    """Block evaluations dropped / block evaluations of the teacher."""
    return (whole - kept) / whole


def compare_costs(model: ModelIdentity, first: ModelIdentity) -> tuple[float | None, float | None]:
    """Overhead cut and compute cut of a model, under its own plan, against the first of a comparison.

    Evaluations compare only where one costs the same in both: both cuts are None where the blocks differ in shape
    or the shape is not known. The overhead cut is None too where the first has no iterations, or the two differ in
    their number of layers or in what a layer evaluates before it iterates.
    """
    blocks = [one.shape and [getattr(one.shape, name) for name in BLOCK_SIZES] for one in (model, first)]
    if model.fingerprint != first.fingerprint and (blocks[0] is None or blocks[0] != blocks[1]):
        return None, None
    cut = compute_cut(model.num_evaluations, first.num_evaluations)
    alike = (model.num_layers, model.num_start_evaluations) == (first.num_layers, first.num_start_evaluations)
    if not alike or not any(first.num_iterations):
        return None, cut
    return overhead_cut(model.num_iterations, first.num_iterations), cut


def phase_evaluations(model: ModelIdentity) -> tuple[int, int]:
    """Block evaluations of a token that is read, and of one that is decoded: of all layers, or of either half."""
    before = model.num_encoder_layers
    if not before:
        return model.num_evaluations, model.num_evaluations
    halves = (model.num_iterations[:before], model.num_iterations[before:])
    reading, decoding = (sum(model.num_start_evaluations + r for r in half) for half in halves)
    return reading, decoding


def predicted_speedups(model: ModelIdentity, first: ModelIdentity) -> tuple[float | None, float | None]:
    """Speedup of reading and of decoding against the first of a comparison, if only block evaluations took time.

    None where `compare_costs` compares none, or one of the two alone has an encoder.
    """
    if compare_costs(model, first)[1] is None or bool(model.num_encoder_layers) != bool(
        first.num_encoder_layers
    ):
        return None, None
    reading, decoding = (
        whole / own for own, whole in zip(phase_evaluations(model), phase_evaluations(first), strict=True)
    )
    return reading, decoding


@dataclass(frozen=True)
class PlanCost:
    """Costs of a model under a plan, for B sequences of T tokens.

    context, batch_size: T and B. num_evaluations: block evaluations per token. cache_bytes: of all tokens.
    prefill_flops: floating-point operations of a prefill of B sequences of T tokens, of which the head sees the
        last token of each. A multiply-add is 2. Counted: the projections of attention and MLP, attention scores
        and values over the causal context (on average (T + 1) / 2 tokens), the sums over the history, the head.
        Not counted: norms, biases, softmax, rotation, activations, residuals, relaxation, the sums of PCformer's
        stages.
    decode_flops: of one step for B sequences, each with T tokens in the cache; counted alike.
    unused_parameters: parameters that the teacher uses and the plan does not. With history, of each layer that no
        longer iterates: the LayerNorm after each iteration (2D) and its row of weights of the history (t + 1).
        With relaxation: the damping of each iteration dropped.
    prefill_seconds, decode_seconds: of such calls, as a latency table predicts them.

    FLOPs and unused parameters are None where the model's shape is not known, seconds without a table.
    """

    context: int
    batch_size: int
    num_iterations: int
    num_evaluations: int
    cache_bytes_per_token: int
    cache_bytes: int
    prefill_flops: int | None
    decode_flops: int | None
    unused_parameters: int | None
    prefill_seconds: float | None
    decode_seconds: float | None


def cost_of(
    teacher: ModelIdentity,
    num_iterations: Sequence[int],
    context: int | None = None,
    batch_size: int | None = None,
    latency: LatencyTable | None = None,
) -> PlanCost:
    """Count what a teacher costs under a plan.

    context, batch_size: default: the latency table's or, without one, 1024 and 1. latency: must be of this
    teacher, context and batch size, as `check_latency` checks. Raises InputError for a number below 1.
    """
    usual = (latency.settings.context, latency.settings.batch_size) if latency else (DEFAULT_CONTEXT, 1)
    context = usual[0] if context is None else context
    batch_size = usual[1] if batch_size is None else batch_size
    for name, value in (("context", context), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}: expected a whole number from 1, got {value}")
    evaluations = count_evaluations(teacher, num_iterations)
    per_token = teacher.cache_bytes_at(evaluations)
    shape = teacher.shape
    prefill = decode = unused = None
    if shape is not None:
        prefill = batch_size * _flops(teacher, shape, num_iterations, context, context * (context + 1) // 2)
        decode = batch_size * _flops(teacher, shape, num_iterations, 1, context + 1)
        unused = _unused_parameters(shape, teacher.num_iterations, num_iterations)
    return PlanCost(
        context=context,
        batch_size=batch_size,
        num_iterations=sum(num_iterations),
        num_evaluations=evaluations,
        cache_bytes_per_token=per_token,
        cache_bytes=per_token * context * batch_size,
        prefill_flops=prefill,
        decode_flops=decode,
        unused_parameters=unused,
        prefill_seconds=latency.prefill.seconds(num_iterations) if latency else None,
        decode_seconds=latency.decode.seconds(num_iterations) if latency else None,
    )


def _flops(
    teacher: ModelIdentity, shape: ModelShape, num_iterations: Sequence[int], tokens: int, attended: int
) -> int:
    """FLOPs of one sequence: `tokens` new tokens that attend to `attended` tokens in all; the head sees one."""
    d, evaluations = shape.hidden_size, count_evaluations(teacher, num_iterations)
    evaluation, keys_and_values = shape.evaluation_flops(tokens, attended)
    times = len(num_iterations) if teacher.cache_policy == "shared" else evaluations
    # States that layer t adds up: t before it and its own for the output; t, once, and its own for its iterations.
    terms = [t + 1 + (t + r if r else 0) for t, r in enumerate(num_iterations, 1)] if shape.history else []
    blocks = evaluations * evaluation + times * keys_and_values
    return blocks + 2 * d * tokens * sum(terms) + 2 * d * shape.vocab_size


def _unused_parameters(shape: ModelShape, whole: Sequence[int], kept: Sequence[int]) -> int:
    layers = list(enumerate(zip(whole, kept, strict=True), 1))
    if shape.history:
        return sum(2 * shape.hidden_size + t + 1 for t, (most, r) in layers if most and not r)
    return sum(most - r for _, (most, r) in layers) if shape.relaxation else 0
