"""Mean, standard deviation and 95 % interval over seeds (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from iiad.artefacts import Number, Record, Size

__all__ = ["CONFIDENCE", "Estimate", "estimate", "paired_difference"]

CONFIDENCE = 0.95


class Estimate(Record):
    """A mean over seeds. The interval is that of Student's t with one degree of freedom less than there are seeds."""

    mean: Number
    deviation: Number | None = Field(description="standard deviation of one seed; null for one seed")
    low: Number | None = Field(description="lower end of the 95 % interval of the mean; null for one seed")
    high: Number | None
    num_seeds: Size

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies on one side of 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of values, one a seed. Raises ValueError for none."""
    if not values:
        raise ValueError("values: expected at least one, got none")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Estimate(mean=mean, deviation=None, low=None, high=None, num_seeds=1)
    from scipy.stats import t  # takes a second to import

    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return Estimate(mean=mean, deviation=deviation, low=mean - half, high=mean + half, num_seeds=n)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Estimate the mean of value - reference over the seeds that both have; None without one."""
    shared = sorted(values.keys() & reference.keys())
    return estimate([values[seed] - reference[seed] for seed in shared]) if shared else None
