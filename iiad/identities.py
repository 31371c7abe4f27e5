"""Identities: what an artefact says about the model and the data that it was made from.

Needs neither torch nor transformers. All definitions here are ours.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .artefacts import Coefficients, Count, Iterations, Record, Size, Tolerances, without_empty

__all__ = ["DataIdentity", "ModelIdentity", "ModelShape", "layer_name", "require_iterations_to_plan"]


class ModelShape(Record):
    """Sizes that the cost of a model follows from, beside its plan."""

    hidden_size: Size = Field(description="D")
    intermediate_size: Size = Field(description="width of the MLP")
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    vocab_size: Size = Field(description="V")
    history: bool = Field(description="layers read a learned combination of all earlier states")
    relaxation: bool = Field(description="a learned damping for every iteration")

    def evaluation_flops(self, tokens: int, attended: int) -> tuple[int, int]:
        """Count the FLOPs of one block evaluation of new tokens that attend to `attended` in all.

        Returns those of all but the projections of keys and values, and those of these, which a shared cache has
        once a layer. Norms, biases, softmax, rotation, activations and residuals are not counted.
        """
        d, e, heads = self.hidden_size, self.head_dim, self.num_attention_heads
        projections = 4 * heads * e * d + 6 * d * self.intermediate_size
        attention = 4 * heads * e * attended  # scores and values
        return tokens * projections + attention, tokens * 4 * d * self.num_key_value_heads * e

    def cross_flops(self, tokens: int, source_tokens: int) -> tuple[int, int]:
        """Count the FLOPs of cross-attention: of an evaluation of new tokens; of keys and values, once a layer."""
        d, e, heads = self.hidden_size, self.head_dim, self.num_attention_heads
        each = 4 * heads * e * d + 4 * heads * e * source_tokens  # queries and output; scores and values
        return tokens * each, source_tokens * 4 * d * self.num_key_value_heads * e


class ModelIdentity(Record):
    """A model's name and hash, and the figures that its cost follows from."""

    name: str = Field(description="folder or hub name as it was given")
    fingerprint: str = Field(description="sha256 of configuration and weights, whatever plan the model runs")
    model_type: str
    num_layers: Size = Field(description="layers with weights of their own, an encoder's first")
    num_encoder_layers: Count = Field(
        default=0, description="how many of them are an encoder's; 0: a causal model; not written then"
    )
    num_iterations: list[Iterations] = Field(
        description="the plan it runs: r_t for each layer; zeros for a Transformer"
    )
    num_start_evaluations: Size = Field(description="block evaluations before a layer's first iteration")
    cache_bytes_per_slot: Size = Field(description="keys and values of one slot, bytes per token")
    cache_policy: Literal["exact", "shared"] = Field(
        default="exact", description="a cache slot for each evaluation, or one for each layer"
    )
    shape: ModelShape | None = Field(default=None, description="null where a configuration does not say")
    extrapolation: list[Coefficients] | None = Field(
        default=None, description="coefficients of each layer at its stop; not written where there are none"
    )
    tolerance: Tolerances | None = Field(
        default=None,
        description="of each layer: how little a token's state moves where it stops by itself; not written where "
        "none does",
    )

    @model_validator(mode="after")
    def _require_decoder(self) -> Self:
        if self.num_encoder_layers >= self.num_layers:
            expected = f"below num_layers ({self.num_layers})"
            raise ValueError(f"num_encoder_layers: expected {expected}, got {self.num_encoder_layers}")
        return self

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        return without_empty(fields, "num_encoder_layers", "extrapolation", "tolerance")

    @property
    def num_decoder_layers(self) -> int:
        """Layers of a causal model or of a decoder, whose hidden states are 0, ..., so many."""
        return self.num_layers - self.num_encoder_layers

    def layer_name(self, layer: int) -> str:
        """Name a layer, counted from 0 over all, for people: "layer 3" or, of a pair model, "decoder 1"."""
        return layer_name(layer, self.num_encoder_layers)

    def layer_labels(self) -> list[str]:
        """Return the layers' labels below the heading "layer": "3" or, of a pair model, "decoder 1"."""
        return [self.layer_name(t).removeprefix("layer ") for t in range(len(self.num_iterations))]

    @property
    def coefficients(self) -> list[Coefficients]:
        """Coefficients of each layer at its stop, none where it is not extrapolated."""
        return self.extrapolation or [[] for _ in self.num_iterations]

    @property
    def num_evaluations(self) -> int:
        """Block evaluations, sum over t of (start evaluations + r_t): of a token or, of a pair model, of two."""
        return sum(self.num_start_evaluations + r for r in self.num_iterations)

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token, in all slots: of a target's where there is an encoder."""
        return sum(self.layer_cache_bytes(t, r) for t, r in enumerate(self.num_iterations))

    def layer_cache_bytes(self, layer: int, num_iterations: int) -> int:
        """Keys and values of one token in a layer's slots, at so many iterations; none in an encoder's."""
        if layer < self.num_encoder_layers:
            return 0
        num_slots = 1 if self.cache_policy == "shared" else self.num_start_evaluations + num_iterations
        return num_slots * self.cache_bytes_per_slot


def layer_name(layer: int, num_encoder_layers: int) -> str:
    """Name a layer, counted from 0, an encoder's first: "layer 3" or, where there is an encoder, "decoder 1"."""
    if not num_encoder_layers:
        return f"layer {layer + 1}"
    after = layer - num_encoder_layers
    return f"encoder {layer + 1}" if after < 0 else f"decoder {after + 1}"


def require_iterations_to_plan(model: ModelIdentity) -> ModelIdentity:
    """Return the model. Raises ValueError unless it has a number of iterations for each layer, and one above 0."""
    plan, L = model.num_iterations, model.num_layers
    if len(plan) != L or min(plan) < 0 or max(plan) == 0:
        raise ValueError(f"num_iterations: expected {L} numbers from 0 on, not all of them 0, got {plan}")
    return model


class DataIdentity(Record):
    """Names, hash and number of the tokens that were used."""

    names: list[str] = Field(description="the files, or the embedded corpus, in order")
    fingerprint: str = Field(description="sha256 of content, tokenizer and settings")
    num_tokens: Count = Field(description="tokens that were used")
