"""Targets that a plan must reach, and bounds on the iterations that it may give each layer. All ours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ConfigDict

from iiad.errors import InputError, shorten
from iiad.identities import ModelIdentity

__all__ = ["Bounds", "Targets", "read_pins"]


PHASES = ("decode", "prefill", "sentence")


@dataclass(frozen=True)
class Targets:
    """Requirements on a plan; all that are given must hold. None: not asked for.

    overhead_cut: least share of the teacher's iterations to drop, in [0, 1].
    compute_cut: least share of the teacher's block evaluations to drop, in [0, 1].
    max_evaluations: most block evaluations per token, from 1.
    max_cache_bytes: most bytes of keys and values per token, from 1.
    max_latency_ms: most milliseconds of one call, above 0, as a latency table predicts them.
    speedup: least factor between the teacher's predicted seconds and the plan's, above 0.
    max_score: most predicted loss, in the metric's unit.
    tolerance_for: least share of the teacher's iterations that tokens drop in the mean, above 0 and at most 1, where
        they may stop by themselves. Not with max_score.
    phase: decode, prefill or, of an encoder-decoder, sentence: the calls that the two latency targets are about.

    Raises InputError for a value out of range, NaN or infinity.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    overhead_cut: float | None = None
    compute_cut: float | None = None
    max_evaluations: int | None = None
    max_cache_bytes: int | None = None
    max_latency_ms: float | None = None
    speedup: float | None = None
    max_score: float | None = None
    tolerance_for: float | None = None
    phase: str = "decode"

    def __post_init__(self) -> None:
        for name in ("overhead_cut", "compute_cut", "tolerance_for"):
            self._require(name, "a share from 0 to 1", lambda share: 0 <= share <= 1)
        for name in ("max_evaluations", "max_cache_bytes"):
            self._require(
                name, "a whole number from 1", lambda count: isinstance(count, int) and 1 <= count < 2**63
            )
        for name in ("max_latency_ms", "speedup"):
            self._require(name, "a number above 0", lambda value: 0 < value < math.inf)
        self._require("max_score", "a number", lambda value: abs(value) <= 1e100)
        alone = self.tolerance_for is None
        self._require("max_score", "none with tolerance_for", lambda _: alone)
        self._require("phase", "decode, prefill or sentence", lambda phase: phase in PHASES)

    def __bool__(self) -> bool:
        """True if any target is given."""
        return bool(self.given)

    @property
    def given(self) -> dict[str, float]:
        """Name -> value of each target that is asked for."""
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "phase"}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def limits_latency(self) -> bool:
        """True if a latency table is needed to judge a plan."""
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
            "tolerance_for": lambda share: (
                f"at least {100 * share:.6g}% of the iterations dropped by the mean token"
            ),
        }
        return " and ".join(texts[name](value) for name, value in self.given.items())

    def _require(self, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise InputError(f"{name}: expected {expected}, got {value}")


@dataclass(frozen=True)
class Bounds:
    """Fewest and most iterations of the layers, whatever their scores.

    min_iterations: of every layer; a layer of which the teacher runs fewer keeps all that it has. Default: 0.
    max_iterations: of every layer. Default: as the teacher.
    pins: layer, counted from 1 -> its exact number of iterations; overrides the other two.

    Raises InputError for a number out of range and for a minimum above the maximum.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    min_iterations: int | None = None
    max_iterations: int | None = None
    pins: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least, most = self.min_iterations, self.max_iterations
        for name, value in (("min_iterations", least), ("max_iterations", most)):
            if value is not None and not 0 <= value < 2**63:
                raise InputError(f"{name}: expected a whole number from 0, got {value}")
        for layer, r in self.pins.items():
            if not (1 <= layer < 2**63 and 0 <= r < 2**63):
                raise InputError(f"pins: expected layers from 1, iterations from 0, got {layer}={r}")
        if least is not None and most is not None and least > most:
            raise InputError(f"min_iterations: expected at most max_iterations, {most}, got {least}")

    def __bool__(self) -> bool:
        """True if anything is bound."""
        return self != Bounds()

    def limits(self, teacher: ModelIdentity) -> list[tuple[int, int]]:
        """Fewest and most iterations of each layer. Raises InputError for what the teacher cannot run."""
        whole = teacher.num_iterations
        for name in ("min_iterations", "max_iterations"):
            value = getattr(self, name)
            if value is not None and value > max(whole):
                raise InputError(f"{name}: expected 0 to {max(whole)}, the teacher's most, got {value}")
        least = self.min_iterations or 0
        most = max(whole) if self.max_iterations is None else self.max_iterations
        limits = [(min(least, r), min(most, r)) for r in whole]
        for layer, pinned in self.pins.items():
            if not 1 <= layer <= len(whole):
                raise InputError(f"pins: expected a layer from 1 to {len(whole)}, got {layer}")
            if not 0 <= pinned <= whole[layer - 1]:
                expected = f"0 to {whole[layer - 1]} for {teacher.layer_name(layer - 1)}, the teacher's"
                raise InputError(f"pins: expected {expected}, got {pinned}")
            limits[layer - 1] = (pinned, pinned)
        return limits

    def clip(self, num_iterations: Sequence[int], teacher: ModelIdentity) -> list[int]:
        """The nearest budgets within the bounds."""
        limits = self.limits(teacher)
        return [min(max(r, least), most) for r, (least, most) in zip(num_iterations, limits, strict=True)]

    def describe(self, teacher: ModelIdentity) -> str:
        """As in "at least 1 iteration a layer, layer 3 at 2"; empty where nothing is bound."""
        parts = [
            f"{word} {value} iteration{'' if value == 1 else 's'} a layer"
            for word, value in (("at least", self.min_iterations), ("at most", self.max_iterations))
            if value is not None
        ]
        pins = [f"{teacher.layer_name(layer - 1)} at {r}" for layer, r in sorted(self.pins.items())]
        return ", ".join(parts + pins)


def read_pins(texts: Iterable[str], teacher: ModelIdentity) -> dict[int, int]:
    """Parse pins of the command line: "3=2" is layer 3, counted from 1, at 2 iterations.

    Of an encoder-decoder layers go by name, "decoder 3=2". Raises InputError for anything else, for a layer that the
    teacher does not have, and for one that is pinned twice.
    """
    labels, pins = teacher.layer_labels(), dict[int, int]()
    for text in texts:
        found = re.fullmatch(r"\s*([a-z]* ?\d{1,9})\s*=\s*(\d{1,9})\s*", text)
        if found is None:
            raise InputError(f"pin: expected LAYER=ITERATIONS, as in {labels[-1]}=2, got {shorten(text)}")
        name, r = found.groups()
        if name not in labels:
            raise InputError(f"pin: expected a layer from {labels[0]} to {labels[-1]}, got {name}")
        layer = labels.index(name) + 1
        if layer in pins:
            raise InputError(f"pin: expected each layer once, got {teacher.layer_name(layer - 1)} twice")
        pins[layer] = int(r)
    return pins
