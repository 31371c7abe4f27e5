"""Costs of a plan: evaluations, FLOPs, cache bytes, unused parameters, predicted seconds and predicted loss.

All definitions are ours. Legend: B sequences, T tokens of context, D model width, F MLP width, N query heads,
K key/value heads, E head width, V vocabulary, t the layer from 1, r_t its iterations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from iiad.errors import InputError
from iiad.identities import ModelIdentity
from iiad.influence.averages import average
from iiad.influence.convergence import Scores
from iiad.influence.profile import Profile

from .flops import count_flops, split_halves, unused_parameters
from .latency import LatencyTable

__all__ = [
    "DEFAULT_CONTEXT",
    "DEFAULT_SENTENCE",
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
DEFAULT_SENTENCE = 64
"""Tokens of source and of target."""
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
    halves = split_halves(model, model.num_iterations)
    counts = [sum(model.num_start_evaluations + r for r in half) for half in halves]
    return counts[0], counts[-1]


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
    """Costs of a model under a plan, for B sequences of T tokens or B pairs of S source and T target tokens.

    context, batch_size: T, of pairs S, and B. target_tokens: T of pairs; None for a causal model.
    num_evaluations: block evaluations per token, of pairs of a source and a target token together.
    phase_evaluations: per token that is read, and per token that is made.
    cache_bytes_per_token: of pairs, per target token. cache_bytes: of all tokens, of pairs the source's included.
    prefill_flops: floating-point operations up to the first token that is made, see `planning.flops`.
    decode_flops: of one step for B sequences, each with T tokens in the cache, of pairs half of them.
    sentence_flops: of whole pairs.
    unused_parameters: parameters that the teacher uses and the plan does not. With history, of each layer that no
        longer iterates: the LayerNorm after each iteration (2D) and its row of weights of the history (t + 1).
        With relaxation: the damping of each iteration dropped.
    seconds: of each phase of a latency table, of such calls; empty without a table.

    FLOPs and unused parameters are None where the model's shape is not known.
    """

    context: int
    target_tokens: int | None
    batch_size: int
    num_iterations: int
    num_evaluations: int
    phase_evaluations: tuple[int, int]
    cache_bytes_per_token: int
    cache_bytes: int
    prefill_flops: int | None
    decode_flops: int | None
    sentence_flops: int | None
    unused_parameters: int | None
    seconds: dict[str, float]


def cost_of(
    teacher: ModelIdentity,
    num_iterations: Sequence[int],
    context: int | None = None,
    batch_size: int | None = None,
    latency: LatencyTable | None = None,
    target_tokens: int | None = None,
) -> PlanCost:
    """Count what a teacher costs under a plan.

    context: tokens of a sequence or a source; target_tokens: of a target. Default, as of batch_size: the latency
    table's or, without one, 1024, of pairs 64 and 64, and 1. latency: must be of this teacher and these sizes, as
    `check_latency` checks. Raises InputError for a number below 1, and for target_tokens of a causal model.
    """
    sizes = _sizes(teacher, latency, context, target_tokens, batch_size)
    context, target, batch_size = sizes
    plan = teacher.model_copy(update={"num_iterations": list(num_iterations)})
    flops, unused = None, None
    if teacher.shape is not None:
        flops = count_flops(teacher, teacher.shape, num_iterations, context, target or 0)
        unused = unused_parameters(teacher, teacher.shape, teacher.num_iterations, num_iterations)
    cached = plan.cache_bytes_per_token * (context if target is None else target)
    if target is not None:  # a layer's keys and values of the source serve all of its evaluations
        num_decoder_layers = teacher.num_layers - teacher.num_encoder_layers
        cached += num_decoder_layers * teacher.cache_bytes_per_slot * context
    return PlanCost(
        context=context,
        target_tokens=target,
        batch_size=batch_size,
        num_iterations=sum(num_iterations),
        num_evaluations=plan.num_evaluations,
        phase_evaluations=phase_evaluations(plan),
        cache_bytes_per_token=plan.cache_bytes_per_token,
        cache_bytes=cached * batch_size,
        prefill_flops=batch_size * flops.prefill if flops else None,
        decode_flops=batch_size * flops.decode if flops else None,
        sentence_flops=batch_size * flops.sentence if flops and flops.sentence else None,
        unused_parameters=unused,
        seconds={name: latency.phase(name).seconds(num_iterations) for name in latency.phases}
        if latency
        else {},
    )


def _sizes(
    teacher: ModelIdentity,
    latency: LatencyTable | None,
    context: int | None,
    target_tokens: int | None,
    batch_size: int | None,
) -> tuple[int, int | None, int]:
    """Return context, target tokens and batch size, with defaults where None."""
    has_target = bool(teacher.num_encoder_layers)
    if target_tokens is not None and not has_target:
        raise InputError(f"target_tokens: expected an encoder-decoder with it, got a {teacher.model_type}")
    usual: dict[str, int | None] = {
        "context": DEFAULT_SENTENCE if has_target else DEFAULT_CONTEXT,
        "target_tokens": DEFAULT_SENTENCE if has_target else None,
        "batch_size": 1,
    }
    given = {"context": context, "target_tokens": target_tokens, "batch_size": batch_size}
    for name, value in given.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: expected a whole number from 1, got {value}")
        if value is None and latency is not None:
            given[name] = getattr(latency.settings, name)
        if given[name] is None:
            given[name] = usual[name]
    tokens, target, size = given.values()
    assert tokens is not None
    assert size is not None
    return tokens, target, size
