"""Bounds on budgets: the fewest and the most iterations of every layer, and layers that are pinned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import ConfigDict

from iiad.artefacts import ModelIdentity
from iiad.errors import InputError

__all__ = ["Bounds", "read_pins"]


@dataclass(frozen=True)
class Bounds:
    """What a plan may give each layer, whatever its scores say (ours).

    min_iterations: of every layer; a layer of which the teacher runs fewer keeps all that it has. Default: 0.
    max_iterations: of every layer. Default: as the teacher.
    pins: layer, counted from 1 -> the iterations that it runs exactly; a pin goes before the other two.

    Raises InputError for a number below 0 and for a minimum above the maximum.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    min_iterations: int | None = None
    max_iterations: int | None = None
    pins: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("min_iterations", "max_iterations"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{name}: found {value}; accepted: a whole number from 0")
        least, most = self.min_iterations, self.max_iterations
        if least is not None and most is not None and least > most:
            raise InputError(f"min_iterations: found {least}; accepted: at most max_iterations, {most}")

    def __bool__(self) -> bool:
        """Whether they bind anything at all."""
        return self != Bounds()

    def limits(self, teacher: ModelIdentity) -> list[tuple[int, int]]:
        """The fewest and the most iterations of each layer. Raises InputError where the teacher has no such."""
        largest = max(teacher.num_iterations)
        for name in ("min_iterations", "max_iterations"):
            value = getattr(self, name)
            if value is not None and value > largest:
                raise InputError(f"{name}: found {value}; accepted: 0 to {largest}, the teacher's most")
        limits = [
            (
                min(self.min_iterations or 0, r),
                r if self.max_iterations is None else min(self.max_iterations, r),
            )
            for r in teacher.num_iterations
        ]
        for layer, pinned in self.pins.items():
            if not 1 <= layer <= len(limits):
                raise InputError(f"pins: found layer {layer}; accepted: 1 to {len(limits)}")
            if not 0 <= pinned <= teacher.num_iterations[layer - 1]:
                raise InputError(
                    f"pins: found {pinned} for layer {layer}; "
                    f"accepted: 0 to {teacher.num_iterations[layer - 1]}, the teacher's"
                )
            limits[layer - 1] = (pinned, pinned)
        return limits

    def clip(self, num_iterations: Sequence[int], teacher: ModelIdentity) -> list[int]:
        """The nearest budgets within the bounds."""
        limits = self.limits(teacher)
        return [min(max(r, least), most) for r, (least, most) in zip(num_iterations, limits, strict=True)]

    def __str__(self) -> str:
        """As in "at least 1 iteration a layer, layer 3 at 2"; empty where nothing is bound."""
        parts = [
            f"{word} {value} iteration{'' if value == 1 else 's'} a layer"
            for word, value in (("at least", self.min_iterations), ("at most", self.max_iterations))
            if value is not None
        ]
        return ", ".join(parts + [f"layer {layer} at {r}" for layer, r in sorted(self.pins.items())])


def read_pins(texts: Iterable[str]) -> dict[int, int]:
    """Pins as they are written on the command line: "3=2" is layer 3, counted from 1, at 2 iterations.

    Raises InputError for anything else, and for a layer that is pinned twice.
    """
    pins: dict[int, int] = {}
    for text in texts:
        layer, _, r = text.partition("=")
        if not (layer.strip().isdecimal() and r.strip().isdecimal()):
            raise InputError(f"pin: found {text!r}; accepted: LAYER=ITERATIONS, as in 3=2")
        if int(layer) in pins:
            raise InputError(f"pin: found layer {int(layer)} twice; accepted: each layer once")
        pins[int(layer)] = int(r)
    return pins
