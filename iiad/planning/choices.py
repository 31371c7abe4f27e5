"""The best choice of one entry for each layer, by `scipy.optimize.milp`. All of it is ours."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SLACK", "Rows", "minimise"]

SLACK = 1e-6
"""Share of a target by which a plan may miss it, and of the largest single number by which `minimise` may err."""

Rows = Sequence[Sequence[float]]
"""For each layer one number for each of its choices."""


def minimise(objectives: Sequence[Rows], limits: Sequence[tuple[Rows, float]]) -> list[int]:
    """Choose one entry for each layer and return its position: least first objective, of equals least second, ...

    objectives: to be least in turn, in total over the chosen entries. limits: numbers and the most that they may
    total; must be possible. Both hold up to `SLACK`.
    """
    import numpy as np
    from scipy.optimize import Bounds as Range
    from scipy.optimize import LinearConstraint, milp  # takes a third of a second to import

    lengths = [len(layer) for layer in objectives[0]]
    layer_of = np.repeat(np.arange(len(lengths)), lengths)  # of each variable, 1 where its entry is chosen
    one_of_each = (np.arange(len(lengths))[:, None] == layer_of).astype(float)
    constraints = [LinearConstraint(one_of_each, 1, 1)]

    def scaled(rows: Rows) -> tuple[np.ndarray, float]:
        numbers = np.array([number for layer in rows for number in layer], dtype=float)
        scale = float(abs(numbers).max()) or 1.0
        return numbers / scale, scale

    for rows, most in limits:
        numbers, scale = scaled(rows)
        constraints.append(LinearConstraint(numbers, -np.inf, most / scale + SLACK))
    chosen = None
    for rows in objectives:
        numbers, _ = scaled(rows)
        found = milp(
            numbers, integrality=1, bounds=Range(0, 1), constraints=constraints, options={"mip_rel_gap": 0}
        )
        if found.x is None and chosen is not None:
            break  # within the solver's rounding nothing else is as good so far
        assert found.x is not None, found.message
        chosen = found.x > 0.5
        constraints.append(LinearConstraint(numbers, -np.inf, numbers[chosen].sum() + SLACK))
    assert chosen is not None
    return [int(chosen[layer_of == t].argmax()) for t in range(len(lengths))]
