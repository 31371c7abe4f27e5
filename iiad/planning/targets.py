"""Targets: what a plan must reach, instead of a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ConfigDict

from iiad.errors import InputError

__all__ = ["Targets"]


@dataclass(frozen=True)
class Targets:
    """What a plan must reach; several may be given, and all must hold (ours). None: not asked for.

    overhead_cut: the least share of the teacher's iterations that is dropped, in [0, 1].
    compute_cut: the least share of the teacher's block evaluations that is dropped, in [0, 1].
    max_evaluations: the most block evaluations per token, from 1.
    max_cache_bytes: the most bytes of keys and values per token, from 1.
    max_latency_ms: the most milliseconds of one call, above 0, as a latency table predicts them.
    speedup: the least factor between the teacher's predicted seconds and the plan's, above 0.
    max_score: the most predicted loss, in the metric's unit.
    phase: decode or prefill, of whose calls the latency is meant.

    Raises InputError for a value out of range, for NaN and infinity.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    overhead_cut: float | None = None
    compute_cut: float | None = None
    max_evaluations: int | None = None
    max_cache_bytes: int | None = None
    max_latency_ms: float | None = None
    speedup: float | None = None
    max_score: float | None = None
    phase: str = "decode"

    def __post_init__(self) -> None:
        for name in ("overhead_cut", "compute_cut"):
            self._require(name, "a share from 0 to 1", lambda share: 0 <= share <= 1)
        for name in ("max_evaluations", "max_cache_bytes"):
            self._require(name, "a whole number from 1", lambda count: isinstance(count, int) and count >= 1)
        for name in ("max_latency_ms", "speedup"):
            self._require(name, "a number above 0", lambda value: 0 < value < math.inf)
        self._require("max_score", "a number", math.isfinite)
        if self.phase not in ("decode", "prefill"):
            raise InputError(f"phase: found {self.phase!r}; accepted: decode, prefill")

    def __bool__(self) -> bool:
        """Whether any target is given."""
        return bool(self.given)

    @property
    def given(self) -> dict[str, float]:
        """Name -> value of each target that is asked for."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "phase"}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def limits_latency(self) -> bool:
        """Whether a latency table is needed to tell what reaches them."""
        return self.max_latency_ms is not None or self.speedup is not None

    def __str__(self) -> str:
        """As in "an overhead cut of at least 55% and at most 24 evaluations"."""
        texts = {
            "overhead_cut": lambda share: f"an overhead cut of at least {100 * share:.6g}%",
            "compute_cut": lambda share: f"a compute cut of at least {100 * share:.6g}%",
            "max_evaluations": lambda count: f"at most {count} evaluations",
            "max_cache_bytes": lambda count: f"at most {count:,} cache bytes a token",
            "max_latency_ms": lambda value: f"at most {value:g} ms of {self.phase}",
            "speedup": lambda value: f"a speedup of {self.phase} of at least {value:g}",
            "max_score": lambda value: f"a predicted loss of at most {value:g}",
        }
        return " and ".join(texts[name](value) for name, value in self.given.items())

    def _require(self, name: str, accepted: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise InputError(f"{name}: found {value}; accepted: {accepted}")
