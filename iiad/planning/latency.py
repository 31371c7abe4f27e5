"""The latency table: seconds of each layer at each number of iterations, on one machine.

Written by `iiad bench MODEL --layers`, read by `iiad plan`. All definitions are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from iiad.artefacts import Amount, Artefact, Iterations, Record, Size
from iiad.errors import InputError
from iiad.identities import ModelIdentity, require_iterations_to_plan

__all__ = ["LatencyCheck", "LatencySettings", "LatencyTable", "PhaseLatency", "check_latency", "load_latency"]


class LatencySettings(Record):
    """Machine and run that the table holds for."""

    device: str
    device_name: str = Field(description="as the machine names it")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of weights and cache")
    batch_size: Size = Field(description="sequences at a time")
    context: Size = Field(
        description="tokens that a prefill reads, of an encoder-decoder the source's, and that the cache holds "
        "before a decoding step"
    )
    target_tokens: Size | None = Field(
        default=None,
        description="tokens of a target, of an encoder-decoder alone; a decoding step is one in their middle; not "
        "written for a causal model",
    )
    num_threads: Size = Field(description="threads of torch on the CPU")
    repeats: Size = Field(description="measured rounds over all plans, after one that warms up")
    torch_version: str

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if fields.get("target_tokens") is None:  # so that hashes of older tables, which lack it, stand
            fields.pop("target_tokens", None)
        return fields


class LatencyCheck(Record):
    """Predicted and measured seconds of a whole model under one plan."""

    num_iterations: list[Iterations] = Field(description="the plan: r_t for each layer")
    predicted_seconds: Amount = Field(description="of one call, by the table")
    measured_seconds: Amount = Field(gt=0, description="of one call, timed like the layers")

    @property
    def error(self) -> float:
        """Predicted / measured - 1; above 0 the model is faster than predicted."""
        return self.predicted_seconds / self.measured_seconds - 1


class PhaseLatency(Record):
    """Seconds of one call: a prefill of the context, or one decoding step at that context.

    Invalid: NaN, infinity and numbers below 0, a layer without a number, no check, a check of a plan that the
    layers do not hold or with another prediction than theirs.
    """

    fixed_seconds: Amount = Field(
        description="outside the layers: embedding, mask, final norm, head, choice of the next token"
    )
    layers: list[Annotated[list[Amount], Field(min_length=1)]] = Field(
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
        """Make the phase whose checks are these plans, each with its measured seconds."""
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
        """Predicted seconds of one call under a plan: the fixed part plus each layer at its r_t.

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
            found, where = check.predicted_seconds, f"checks.{number}"
            try:
                predicted = self.seconds(check.num_iterations)
            except InputError as error:
                raise ValueError(f"{where}: num_iterations: {error}") from None
            if not math.isclose(found, predicted, rel_tol=1e-9, abs_tol=1e-15):
                expected = f"{predicted}, as the layers add up"
                raise ValueError(f"{where}: predicted_seconds: expected {expected}, got {found}")
        return self


class LatencyTable(Artefact):
    """Seconds of a model's calls as a sum over its layers, each at its own number of iterations.

    Invalid: a phase that does not hold 0, ..., R_t iterations for each layer of `model`.
    """

    kind: Literal["latency"] = "latency"
    format_version: Literal[1] = 1
    model: ModelIdentity = Field(description="under its own plan R_t, the most that was measured")
    settings: LatencySettings
    decode: PhaseLatency = Field(description="one decoding step: one token of each sequence")
    prefill: PhaseLatency = Field(
        description="the whole context of each sequence in one call, up to the first token that is made"
    )

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases that the table knows: `sentence` where it has target tokens."""
        return ("prefill", "decode", *(["sentence"] if self.settings.target_tokens else []))

    def phase(self, name: str) -> PhaseLatency:
        """The phase of that name; `sentence`: a prefill, and decoding steps for the rest of the target.

        Raises InputError for one that the table does not know.
        """
        if name not in self.phases:
            raise InputError(f"phase: expected {' or '.join(self.phases)}, as the table has, got {name}")
        if name != "sentence":
            phase: PhaseLatency = getattr(self, name)
            return phase
        assert self.settings.target_tokens is not None
        num_steps, rows = self.settings.target_tokens - 1, (self.prefill.layers, self.decode.layers)
        checks = zip(self.prefill.checks, self.decode.checks, strict=True)
        return PhaseLatency.of(
            self.prefill.fixed_seconds + num_steps * self.decode.fixed_seconds,
            [[a + num_steps * b for a, b in zip(*layer, strict=True)] for layer in zip(*rows, strict=True)],
            [(a.num_iterations, a.measured_seconds + num_steps * b.measured_seconds) for a, b in checks],
        )

    @field_validator("model")
    @classmethod
    def _model_has_iterations(cls, model: ModelIdentity) -> ModelIdentity:
        return require_iterations_to_plan(model)

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        wanted = [1 + r for r in self.model.num_iterations]
        for name, phase in (("decode", self.decode), ("prefill", self.prefill)):
            found = [len(layer) for layer in phase.layers]
            if found != wanted:
                raise ValueError(
                    f"{name}: expected {wanted} numbers in the layers, for 0 to R_t iterations, got {found}"
                )
        of_prefill, of_decode = (
            [check.num_iterations for check in phase.checks] for phase in (self.prefill, self.decode)
        )
        if self.settings.target_tokens is not None and of_prefill != of_decode:
            raise ValueError(f"decode.checks: expected the plans of prefill, {of_prefill}, got {of_decode}")
        return self


def check_latency(table: LatencyTable, teacher: ModelIdentity, **wanted: str | int | None) -> None:
    """Raise InputError unless the table was measured for this teacher and with these settings.

    wanted: device, dtype, batch_size, context, target_tokens; None: any.
    """
    if table.model.fingerprint != teacher.fingerprint:
        raise InputError(
            f"latency: expected a table of {teacher.name} ({teacher.fingerprint[:12]}), got one of "
            f"{table.model.name} ({table.model.fingerprint[:12]}), of other weights or configuration"
        )
    most = table.model.num_iterations
    for name in ("num_layers", "num_encoder_layers"):
        if getattr(teacher, name) != getattr(table.model, name):
            expected = f"a table with {name} {getattr(teacher, name)}"
            raise InputError(f"latency: expected {expected}, got {getattr(table.model, name)}")
    for layer, (r, highest) in enumerate(zip(teacher.num_iterations, most, strict=True)):
        if r > highest:
            expected = f"0 to {r} iterations of {teacher.layer_name(layer)}, as {teacher.name} runs"
            raise InputError(f"latency: expected a table with {expected}, got 0 to {highest}")
    for name, value in wanted.items():
        measured = getattr(table.settings, name)
        if value is not None and value != measured:
            raise InputError(f"latency: expected a table with {name} {value}, got {measured}")


def load_latency(
    path: str | Path | None, teacher: ModelIdentity, phase: str | None = None, **wanted: str | int | None
) -> LatencyTable | None:
    """Load a latency table and check it as `check_latency` does; None where no file is named.

    Raises InputError for a table of anything else, and for a phase, device or dtype without a file.
    """
    if path is not None:
        table = LatencyTable.load(path)
        check_latency(table, teacher, **wanted)
        return table
    for name, value in {"phase": phase, **wanted}.items():
        if value is not None and name in ("phase", "device", "dtype"):
            raise InputError(f"{name}: expected a latency table (--latency) with it, got {value} alone")
    return None


def _total(fixed: float, layers: Sequence[Sequence[float]], num_iterations: Sequence[int]) -> float:
    if len(num_iterations) != len(layers):
        raise InputError(f"expected {len(layers)} layers, as were measured, got {len(num_iterations)}")
    for number, (r, layer) in enumerate(zip(num_iterations, layers, strict=True), 1):
        if not 0 <= r < len(layer):
            raise InputError(f"expected 0 to {len(layer) - 1} for layer {number}, got {r}")
    return math.fsum([fixed, *(layer[r] for r, layer in zip(num_iterations, layers, strict=True))])
