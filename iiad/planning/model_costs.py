"""What a model costs, from what it is, and how two costs compare. All definitions here are ours.

Costs are counted in block evaluations, so they compare only where one evaluation costs the same in both models:
where the blocks have the same shape. Where they do not, a comparison is None rather than a number that misleads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iiad.artefacts import ModelIdentity

__all__ = ["Cost", "block_shape", "compute_cut", "overhead_cut"]

_SHAPE_FIELDS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class Cost:
    """A model under one plan, as far as its cost goes.

    Attributes:
        identity: the model and the plan it runs.
        shape: what `block_shape` says of its configuration.
    """

    identity: ModelIdentity
    shape: tuple[int | None, ...]

    @property
    def evaluations_per_token(self) -> int:
        """Block evaluations per token, sum over t of (start evaluations + r_t)."""
        return self.identity.num_evaluations

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values, in bytes per token of context."""
        return self.identity.cache_bytes_per_token


def block_shape(config: Any) -> tuple[int | None, ...]:
    """The sizes that one block evaluation's cost follows from, of any transformers configuration.

    Width, MLP width, query heads, key/value heads, head width; None where a configuration does not say.
    """
    sizes = {name: getattr(config, name, None) for name in _SHAPE_FIELDS}
    heads = sizes["num_attention_heads"]
    sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or heads
    if sizes["hidden_size"] and heads:
        sizes["head_dim"] = sizes["head_dim"] or sizes["hidden_size"] // heads
    return tuple(sizes[name] for name in _SHAPE_FIELDS)


def overhead_cut(cost: Cost, first: Cost) -> float | None:
    """1 - sum_t r_t / sum_t r_t of the first: the share of its iterations that are gone (the paper's 55 %).

    None where the first has no iterations, or the two differ in more than their iterations: in the shape or the
    number of layers, or in what a layer evaluates before it iterates.
    """
    own, other = cost.identity, first.identity
    iterations = sum(other.num_iterations)
    alike = (own.num_layers, own.num_start_evaluations) == (other.num_layers, other.num_start_evaluations)
    if cost.shape != first.shape or not alike or not iterations:
        return None
    return 1 - sum(own.num_iterations) / iterations


def compute_cut(cost: Cost, first: Cost) -> float | None:
    """1 - evaluations / evaluations of the first: the share of its block evaluations that are gone.

    None where the blocks differ in shape.
    """
    if cost.shape != first.shape:
        return None
    return 1 - cost.evaluations_per_token / first.evaluations_per_token
