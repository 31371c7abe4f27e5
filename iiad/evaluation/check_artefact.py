"""check.json: claims about a model, their figures and outcomes. Needs no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from iiad.artefacts import Amount, Artefact, Count, Number, Record, Size
from iiad.identities import ModelIdentity

__all__ = ["Check", "CheckResult", "CheckSettings"]


class CheckSettings(Record):
    """Inputs, precision and machine of a check."""

    prompt_tokens: Size = Field(ge=4, description="random tokens of each prompt")
    new_tokens: Size = Field(ge=2, description="tokens of each sequence after its prompt")
    seed: Count = Field(description="of the tokens")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of weights and cache")
    device: str
    device_name: str = Field(description="what the machine calls it")
    rounding_bound: Amount = Field(
        gt=0, description="largest figure that is taken for rounding, in standard deviations of the logits"
    )
    compile: bool = Field(description="whether the compiled model was checked too")
    engine: str | None = Field(default=None, description="that served the model, with its version")
    torch_version: str
    transformers_version: str


class CheckResult(Record):
    """One claim: passed or failed by its figure, failed by an error or skipped, with the reason in `note`."""

    name: str = Field(description="the claim, unique in the check")
    outcome: Literal["passed", "failed", "skipped"]
    figure: Number | None = Field(
        default=None, description="what was measured; null: nothing, or nothing finite"
    )
    bound: Amount = Field(description="the figure passes up to here; 0: to the last bit")
    unit: str = Field(description="what the figure is")
    note: str | None = Field(default=None, description="why it was skipped or failed, beyond the figure")

    @model_validator(mode="after")
    def _outcome_follows(self) -> Self:
        if self.figure is None:
            consistent = self.outcome != "passed" and self.note is not None
        else:
            consistent = self.outcome == ("passed" if self.figure <= self.bound else "failed")
        if not consistent:
            raise ValueError(
                "outcome: expected passed or failed as the figure says, or no figure and a note with the reason, got "
                f"{self.outcome!r} with figure {self.figure}, bound {self.bound}, note {self.note!r}"
            )
        return self


class Check(Artefact):
    """The claims about one model and their outcomes."""

    kind: Literal["check"] = "check"
    model: ModelIdentity = Field(description="the model and the plan it ran; cache bytes in its dtype")
    teacher: ModelIdentity | None = Field(
        default=None, description="what it was compared with; null: nothing"
    )
    plan_fingerprint: str | None = Field(
        default=None, description="sha256 of the plan's file, if one was given"
    )
    settings: CheckSettings
    results: list[CheckResult] = Field(min_length=1, description="one per claim, in the order checked")

    def count(self, outcome: str) -> int:
        """Number of claims with this outcome: passed, failed or skipped."""
        return sum(result.outcome == outcome for result in self.results)

    @property
    def passed(self) -> bool:
        """True if no claim failed and at least one passed."""
        return self.count("failed") == 0 < self.count("passed")
