"""Stops of layers in a configuration: tables of extrapolation by layer and stop, and lists of plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["fits_extrapolation", "fits_plans", "with_stop"]


def fits_extrapolation(rows: Sequence[Sequence[Sequence[float]]] | None, num_layers: int, most: int) -> bool:
    """Return whether there is a row for each layer, with at most i + 1 numbers for a stop at i < most; None fits."""
    return rows is None or (
        len(rows) == num_layers
        and max(map(len, rows)) <= max(most - 1, 0)
        and all(len(entry) <= i for row in rows for i, entry in enumerate(row, 2))
    )


def fits_plans(plans: Sequence[dict[str, Any]], num_layers: int, most: int) -> bool:
    """Return whether names differ, and each plan has r_t <= most and a tolerance, if any, for each layer."""
    budgets = [plan["num_iterations"] for plan in plans]
    lengths = {
        len(each) for each in [*budgets, *(plan["tolerance"] for plan in plans if "tolerance" in plan)]
    }
    named = len({plan["name"] for plan in plans}) == len(plans)
    return named and lengths <= {num_layers} and max(map(max, budgets), default=0) <= most


def with_stop(row: Sequence[list[float]], r: int, found: Sequence[float]) -> list[list[float]]:
    """Return a layer's row with other coefficients at its stop r, without empty entries at its end."""
    if r == 0:
        if any(found):
            raise ValueError(
                f"extrapolation: expected none for a layer without iterations, got {list(found)}"
            )
        return list(row)
    changed = [*row, *[[]] * (r - len(row))]
    changed[r - 1] = [float(b) for b in found] if any(found) else []
    while changed and not changed[-1]:
        changed.pop()
    return changed
