"""Records of how one layer's iterates move, and what extrapolating its stops takes.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from iiad.artefacts import Number, Record, Share

__all__ = [
    "TOLERANCES",
    "FixedPoint",
    "Scores",
    "Settling",
    "StepProducts",
    "by_name",
    "require_fixed_points",
    "require_lengths",
    "require_products",
    "require_settling",
]

NUM_STEPS = 3
"""Last steps, at most, that an extrapolation combines."""
TOLERANCES = tuple(10 ** (k / 8 - 4) for k in range(41))
"""From 0.0001 to 10, eight a decade, at which the tokens that have settled are counted."""
RCOND = 1e-5
"""Share of the largest singular value below which steps count as one direction."""

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


class StepProducts(Record):
    """Means over tokens that one layer's extrapolation follows from (ours).

    Where the layer stops at i, 0 < i < r, it hands on z(i) + b_1 (z(i) - z(i-1)) + b_2 (z(i-1) - z(i-2)) + ..., with
    z(-1) its input. Least squares towards z(r), the sum of all steps, take inner products of steps alone.
    """

    products: list[Number] = Field(
        description="<z(j) - z(j-1), z(k) - z(k-1)> for j = 0, ..., r and k = 0, ..., j, one j after another"
    )

    @property
    def coefficients(self) -> list[list[float]]:
        """b_1, b_2, ... of the last steps at each stop 1, ..., r - 1; none where nothing moves."""
        return [b.tolist() if b.any() else [] for b, _ in self._fits()]

    @property
    def removed(self) -> list[float]:
        """Share of |z(r) - z(i)|^2 that the coefficients take away, 0 to 1, at each stop; 0 where that is 0."""
        return [share for _, share in self._fits()]

    def _fits(self) -> list[tuple[np.ndarray, float]]:
        gram = _symmetric(self.products)
        found = []
        for i in range(1, len(gram) - 1):
            last = list(range(i, -1, -1))[:NUM_STEPS]  # from the last step back
            target, gap = gram[i + 1 :, last].sum(0), gram[i + 1 :, i + 1 :].sum()
            # Steps of length 1, so that what rcond leaves out is what hardly differs from another.
            lengths = np.sqrt(gram[last, last].clip(0))
            lengths[lengths == 0] = 1.0
            scaled = gram[np.ix_(last, last)] / np.outer(lengths, lengths)
            b = np.linalg.lstsq(scaled, target / lengths, rcond=RCOND)[0] / lengths
            share = float(b @ target / gap) if gap > 0 else 0.0
            found.append((b, min(max(share, 0.0), 1.0)))
        return found


class Settling(Record):
    """Tokens of one layer that would have stopped by themselves (ours), see `IIETConfig.tolerance`.

    A token has stopped by iteration i just if min_{j <= i} |z(j) - z(j-1)| / |z(j-1)| is within the tolerance.
    """

    shares: list[Share] = Field(
        description="for i = 1, ..., r - 1, one after another: share of tokens whose minimum is at most each of "
        "TOLERANCES"
    )

    def stopped(self, iteration: int, tolerance: float) -> float:
        """Share of tokens that have stopped by the iteration, from 1; between TOLERANCES by their logarithm."""
        size = len(TOLERANCES)
        own = self.shares[(iteration - 1) * size : iteration * size]
        return float(np.interp(np.log(tolerance), np.log(TOLERANCES), own, left=0.0))

    def missed(self, iteration: int, tolerance: float) -> float:
        """Return the share of iteration i + 1's influence that is lost to tokens stopped by i, in [0, 1] (ours).

        A token's part is taken to be the square of its least movement so far, as a divergence grows with the square
        of a change. tolerance: one of TOLERANCES.
        """
        size = len(TOLERANCES)
        own = np.array([*self.shares[(iteration - 1) * size : iteration * size], 1.0])
        moved = np.diff(own, prepend=0.0) * np.square([*TOLERANCES, TOLERANCES[-1]])
        stopped = np.array([at <= tolerance for at in TOLERANCES] + [False])
        total = float(moved.sum())
        return float(moved[stopped].sum()) / total if total > 0 else 0.0

    def quantile(self, iteration: int, share: float) -> float | None:
        """Least of TOLERANCES at which that share of tokens has stopped by the iteration; None: above all."""
        return next((at for at in TOLERANCES if self.stopped(iteration, at) >= share), None)


def _symmetric(triangle: Sequence[float]) -> np.ndarray:
    """Return the whole matrix of a lower triangle, row after row, in units of its largest number."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    matrix = np.zeros((size, size))
    matrix[np.tril_indices(size)] = triangle
    matrix = matrix + np.tril(matrix, -1).T
    return matrix / (np.abs(matrix).max(initial=0.0) or 1.0)


def by_name(kind: type[Record], layers: Sequence[Record]) -> dict[str, Scores]:
    """Turn one record a layer, of that kind, into one list of all layers for each of its fields."""
    return {name: [getattr(layer, name) for layer in layers] for name in kind.model_fields}


def require_fixed_points(field: str, layers: Sequence[FixedPoint], plan: Sequence[int]) -> None:
    """Raise ValueError unless there is one for each layer, with a number for each of its iterations."""
    residuals, *others = by_name(FixedPoint, layers).items()
    require_lengths(field, dict([residuals]), plan)
    require_lengths(field, dict(others), [max(r - 1, 0) for r in plan])


def require_products(field: str, layers: Sequence[StepProducts], plan: Sequence[int]) -> None:
    """Raise ValueError unless there is one for each layer, with a number for each two of its steps."""
    require_lengths(field, by_name(StepProducts, layers), [(r + 1) * (r + 2) // 2 for r in plan])


def require_settling(field: str, layers: Sequence[Settling], plan: Sequence[int]) -> None:
    """Raise ValueError unless there is one for each layer, with a number for each of its stops and tolerances."""
    require_lengths(field, by_name(Settling, layers), [max(r - 1, 0) * len(TOLERANCES) for r in plan])


def require_lengths(field: str, values: Mapping[str, Scores], lengths: Sequence[int]) -> None:
    """Raise ValueError unless each of the values has lists of those lengths, one a layer."""
    for name, layers in values.items():
        found = [len(layer) for layer in layers]
        if found != list(lengths):
            raise ValueError(f"{field}.{name}: expected {list(lengths)} numbers in the layers, got {found}")
