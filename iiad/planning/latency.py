"""The latency table: seconds of each layer at each number of iterations, on one machine. Needs no torch.

Made by `iiad bench MODEL --layers`, read by `iiad plan`. All definitions here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from iiad.artefacts import Artefact, ModelIdentity, Record, require_iterations_to_plan
from iiad.errors import InputError

__all__ = ["LatencyCheck", "LatencySettings", "LatencyTable", "PhaseLatency", "check_latency"]

Seconds = Annotated[float, Field(ge=0)]


class LatencySettings(Record):
    """What was run, and on what: the table holds for nothing else."""

    device: str
    device_name: str = Field(description="what the machine calls it")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of weights and cache")
    batch_size: int = Field(ge=1, description="sequences at a time")
    context: int = Field(
        ge=1, description="tokens that a prefill reads, and that the cache holds before a decoding step"
    )
    num_threads: int = Field(ge=1, description="threads of torch on the CPU")
    repeats: int = Field(ge=1, description="measured rounds over all plans, after one that warms up")
    torch_version: str


class LatencyCheck(Record):
    """A whole model under one plan: what the table says, and what the clock says."""

    num_iterations: list[int] = Field(description="the plan: r_t for each layer")
    predicted_seconds: float = Field(ge=0, description="of one call, by the table")
    measured_seconds: float = Field(gt=0, description="of one call, on the clock, as the layers are")

    @property
    def error(self) -> float:
        """Predicted / measured - 1: above 0, the model is faster than the table says."""
        return self.predicted_seconds / self.measured_seconds - 1


class PhaseLatency(Record):
    """Seconds of one call: a prefill of the context, or one decoding step at that context.

    Refused as invalid: NaN, infinity and numbers below 0, a layer without a number, no check, a check of a plan
    that the layers do not hold or with another prediction than theirs.
    """

    fixed_seconds: float = Field(
        ge=0, description="what is no layer: embedding, mask, final norm, head, choice of the next token"
    )
    layers: list[Annotated[list[Seconds], Field(min_length=1)]] = Field(
        min_length=1, description="for each layer its seconds at r = 0, 1, ..., R_t iterations"
    )
    checks: list[LatencyCheck] = Field(min_length=1, description="whole models, measured in the same rounds")

    @classmethod
    def of(
        cls,
        fixed_seconds: float,
        layers: Sequence[Sequence[float]],
        measured: Iterable[tuple[Sequence[int], float]],
    ) -> Self:
        """The phase whose checks are these plans, each with its seconds on the clock."""
        rows = [list(layer) for layer in layers]
        checks = [
            LatencyCheck(
                num_iterations=list(plan),
                predicted_seconds=_total(fixed_seconds, rows, plan),
                measured_seconds=seconds,
            )
            for plan, seconds in measured
        ]
        return cls(fixed_seconds=fixed_seconds, layers=rows, checks=checks)

    def seconds(self, num_iterations: Sequence[int]) -> float:
        """Predicted seconds of one call under a plan: what is no layer, plus each layer at its r_t.

        Raises InputError for a plan that the table does not hold.
        """
        return _total(self.fixed_seconds, self.layers, num_iterations)

    @property
    def largest_error(self) -> float:
        """The largest |error| of the checks, as a share of 1."""
        return max(abs(check.error) for check in self.checks)

    @model_validator(mode="after")
    def _checks_are_of_these_layers(self) -> Self:
        for number, check in enumerate(self.checks):
            try:
                predicted = self.seconds(check.num_iterations)
            except InputError as error:
                raise ValueError(f"checks.{number}: num_iterations: {error}") from None
            if not math.isclose(check.predicted_seconds, predicted, rel_tol=1e-9, abs_tol=1e-15):
                raise ValueError(
                    f"checks.{number}: predicted_seconds: found {check.predicted_seconds}; "
                    f"accepted: {predicted}, as the layers add up"
                )
        return self


class LatencyTable(Artefact):
    """Seconds of a model's calls as a sum over its layers, each at its own number of iterations.

    Refused as invalid: a phase that does not hold 0, ..., R_t iterations for each layer of `model`.
    """

    kind: Literal["latency"] = "latency"
    format_version: Literal[1] = 1
    model: ModelIdentity = Field(description="under its own plan R_t, the most that was measured")
    settings: LatencySettings
    decode: PhaseLatency = Field(description="one decoding step: one token of each sequence")
    prefill: PhaseLatency = Field(description="the whole context of each sequence in one call")

    @field_validator("model")
    @classmethod
    def _model_has_iterations(cls, model: ModelIdentity) -> ModelIdentity:
        return require_iterations_to_plan(model)

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        wanted = [1 + r for r in self.model.num_iterations]
        for name, phase in (("decode", self.decode), ("prefill", self.prefill)):
            if len(phase.layers) != len(wanted):
                raise ValueError(
                    f"{name}: found {len(phase.layers)} layers; accepted: {len(wanted)}, as the model has"
                )
            for number, (layer, length) in enumerate(zip(phase.layers, wanted, strict=True), 1):
                if len(layer) != length:
                    raise ValueError(
                        f"{name}: found {len(layer)} numbers for layer {number}; "
                        f"accepted: {length}, for 0 to {length - 1} iterations"
                    )
        return self


def check_latency(
    table: LatencyTable,
    teacher: ModelIdentity,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    context: int | None = None,
) -> None:
    """Raise InputError, in one line, unless the table was measured for this teacher and as asked for.

    device, dtype, batch_size, context: None takes what the table has.
    """
    if table.model.fingerprint != teacher.fingerprint:
        raise InputError(
            f"latency: was measured for model {table.model.name} ({table.model.fingerprint[:12]}); found "
            f"{teacher.name} ({teacher.fingerprint[:12]}), which has other weights or configuration"
        )
    most = table.model.num_iterations
    for number, (r, highest) in enumerate(zip(teacher.num_iterations, most, strict=True), 1):
        if r > highest:
            raise InputError(
                f"latency: was measured for 0 to {highest} iterations of layer {number}; "
                f"found {teacher.name}, which runs {r} there"
            )
    asked = {"device": device, "dtype": dtype, "batch_size": batch_size, "context": context}
    for name, value in asked.items():
        measured = getattr(table.settings, name)
        if value is not None and value != measured:
            raise InputError(f"latency: was measured for {name} {measured}; found {value} asked for")


def _total(fixed: float, layers: Sequence[Sequence[float]], num_iterations: Sequence[int]) -> float:
    if len(num_iterations) != len(layers):
        raise InputError(f"found {len(num_iterations)} layers; accepted: {len(layers)}, as were measured")
    for number, (r, layer) in enumerate(zip(num_iterations, layers, strict=True), 1):
        if not 0 <= r < len(layer):
            raise InputError(f"found {r} for layer {number}; accepted: 0 to {len(layer) - 1}")
    return math.fsum([fixed, *(layer[r] for r, layer in zip(num_iterations, layers, strict=True))])
