"""Floating-point operations and unused parameters of a model under a plan. All definitions are ours.

A multiply-add is 2. Counted: the projections of attention and MLP, attention scores and values, the sums over the
history, the head. Not counted: norms, biases, softmax, rotation, activations, residuals, relaxation, the sums of
PCformer's stages. Legend: D model width, N query heads, K key/value heads, E head width, V vocabulary, t the layer
from 1, r_t its iterations, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iiad.identities import ModelIdentity, ModelShape

__all__ = ["Flops", "count_flops", "split_halves", "unused_parameters"]


@dataclass(frozen=True)
class Flops:
    """Of one sequence or pair.

    prefill: up to the first token that is made. decode: of one step after `context` tokens or, of a pair, in the
    middle of the target. sentence: of a whole pair; None for a causal model.
    """

    prefill: int
    decode: int
    sentence: int | None = None


def count_flops(
    model: ModelIdentity, shape: ModelShape, num_iterations: Sequence[int], context: int, target_tokens: int
) -> Flops:
    """Count a model's FLOPs under a plan.

    context: tokens of a prompt or a source. target_tokens: T of a pair, the end-of-text token included.
    """
    *encoder, decoder = (_Half(model, shape, half) for half in split_halves(model, num_iterations))
    head = 2 * shape.hidden_size * shape.vocab_size
    if not encoder:
        prefill = decoder.flops(context, context * (context + 1) // 2) + head
        return Flops(prefill, decoder.flops(1, context + 1) + head)
    each, once = shape.cross_flops(1, context)
    source = encoder[0].flops(context, context * context) + decoder.num_layers * once

    def step(seen: int) -> int:
        return decoder.flops(1, seen + 1) + decoder.num_evaluations * each + head

    prefill = source + step(0)
    # step is linear in what is seen: the sum of steps 1 to T - 1.
    sentence = prefill + (target_tokens - 1) * (step(1) + step(target_tokens - 1)) // 2
    return Flops(prefill, step(target_tokens // 2), sentence)


def unused_parameters(
    model: ModelIdentity, shape: ModelShape, whole: Sequence[int], kept: Sequence[int]
) -> int:
    """Count the parameters that the plan `whole` uses and `kept` does not, see `PlanCost`."""
    halves = zip(split_halves(model, whole), split_halves(model, kept), strict=True)
    layers = [(t, most, r) for half in halves for t, (most, r) in enumerate(zip(*half, strict=True), 1)]
    if shape.history:
        return sum(2 * shape.hidden_size + t + 1 for t, most, r in layers if most and not r)
    return sum(most - r for _, most, r in layers) if shape.relaxation else 0


def split_halves(model: ModelIdentity, values: Sequence[int]) -> list[list[int]]:
    """Split values of all layers into the encoder's and the decoder's; of a causal model there is one list."""
    split = model.num_encoder_layers
    return [list(values[:split]), list(values[split:])] if split else [list(values)]


class _Half:
    """The layers of a decoder, or of an encoder, under their part of a plan."""

    def __init__(self, model: ModelIdentity, shape: ModelShape, num_iterations: Sequence[int]):
        self.shape, self.num_layers = shape, len(num_iterations)
        self.num_evaluations = model.num_start_evaluations * self.num_layers + sum(num_iterations)
        # Keys and values are made by every evaluation or, shared, once a layer.
        self.num_slots = self.num_layers if model.cache_policy == "shared" else self.num_evaluations
        # States that layer t adds up: t before it and its own for the output; t, once, and its own when it iterates.
        terms = [t + 1 + (t + r if r else 0) for t, r in enumerate(num_iterations, 1)]
        self.num_terms = sum(terms) if shape.history else 0

    def flops(self, tokens: int, attended: int) -> int:
        """FLOPs of `tokens` new tokens that attend to `attended` tokens in all, without head and cross-attention."""
        evaluation, keys_and_values = self.shape.evaluation_flops(tokens, attended)
        history = 2 * self.shape.hidden_size * tokens * self.num_terms
        return self.num_evaluations * evaluation + self.num_slots * keys_and_values + history
