"""Records of how one layer's iterates move, and what extrapolating its stops takes.

Needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from iiad.artefacts import Amount, Number, Record

__all__ = [
    "FixedPoint",
    "Scores",
    "StopSums",
    "by_name",
    "require_fixed_points",
    "require_lengths",
    "require_sums",
]

Scores = list[list[Number]]
"""For each layer a number for each of its iterations (or of its predictor's stages)."""


class FixedPoint(Record):
    """Convergence of one layer's iterates z(0), ..., z(r) on the data."""

    residuals: list[Number] = Field(
        description="r numbers: |z(i) - z(i-1)| / |z(i-1)| for i = 1, ..., r, mean over tokens"
    )
    contractions: list[Number] = Field(
        description="r - 1 numbers: |z(i+1) - z(i)| / |z(i) - z(i-1)|, each a mean over tokens; below 1 it contracts"
    )
    turns: list[Number] = Field(
        description="r - 1 numbers: cosine between z(i+1) - z(i) and z(i) - z(i-1), mean over tokens; -1: back"
    )


class StopSums(Record):
    """Means over tokens that one layer's extrapolation follows from, at its stops i = 1, ..., r - 1 (ours).

    Where the layer stops at i it hands on z(i) + b (z(i) - z(i-1)); least squares towards z(r) give b.
    """

    products: list[Number] = Field(description="<z(r) - z(i), z(i) - z(i-1)>")
    steps: list[Amount] = Field(description="|z(i) - z(i-1)|^2")
    gaps: list[Amount] = Field(description="|z(r) - z(i)|^2, what stopping at i lacks")

    @property
    def coefficients(self) -> list[float]:
        """b at each stop: product / step; 0 where nothing moves."""
        return [p / s if s else 0.0 for p, s in zip(self.products, self.steps, strict=True)]

    @property
    def removed(self) -> list[float]:
        """Share of the gap that b takes away, product^2 / (step gap), in [0, 1]; 0 where there is no gap."""
        found = zip(self.products, self.steps, self.gaps, strict=True)
        return [p * p / s / g if s and g else 0.0 for p, s, g in found]


def by_name(kind: type[Record], layers: Sequence[Record]) -> dict[str, Scores]:
    """Turn one record a layer, of that kind, into one list of all layers for each of its fields."""
    return {name: [getattr(layer, name) for layer in layers] for name in kind.model_fields}


def require_fixed_points(field: str, layers: Sequence[FixedPoint], plan: Sequence[int]) -> None:
    """Raise ValueError unless there is one for each layer, with a number for each of its iterations."""
    residuals, *others = by_name(FixedPoint, layers).items()
    require_lengths(field, dict([residuals]), plan)
    require_lengths(field, dict(others), [max(r - 1, 0) for r in plan])


def require_sums(field: str, layers: Sequence[StopSums], plan: Sequence[int]) -> None:
    """Raise ValueError unless there is one for each layer, with a number for each of its stops."""
    require_lengths(field, by_name(StopSums, layers), [max(r - 1, 0) for r in plan])


def require_lengths(field: str, values: Mapping[str, Scores], lengths: Sequence[int]) -> None:
    """Raise ValueError unless each of the values has lists of those lengths, one a layer."""
    for name, layers in values.items():
        found = [len(layer) for layer in layers]
        if found != list(lengths):
            raise ValueError(f"{field}.{name}: expected {list(lengths)} numbers in the layers, got {found}")
