"""bench.json: speed and cache of models on one machine, as ratios to the first. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal, Self

from pydantic import Field

from iiad.artefacts import Artefact, ModelIdentity, Record

__all__ = ["Bench", "BenchResult", "BenchSettings", "Spread"]


class Spread(Record):
    """A quantity measured several times."""

    median: float
    low: float = Field(description="the smallest")
    high: float = Field(description="the largest")

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        return cls(median=median(values), low=min(values), high=max(values))


class BenchSettings(Record):
    """What was run, and on what."""

    batch_size: int = Field(ge=1, description="sequences at a time")
    prompt_tokens: int = Field(ge=1, description="random tokens of each prompt, read in one forward call")
    new_tokens: int = Field(
        ge=1, description="tokens that each sequence is then given, one forward call each"
    )
    repeats: int = Field(ge=1, description="measured rounds over all models, after one that warms up")
    seed: int = Field(ge=0, description="of the random prompts")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of weights and cache")
    device: str
    device_name: str = Field(description="what the machine calls it")
    num_threads: int = Field(ge=1, description="threads of torch on the CPU")
    torch_version: str


class BenchResult(Record):
    """One model under one plan. A speedup is the ratio to the first model in the same round, so above 1 is faster."""

    label: str = Field(description="short name, unique in the bench")
    model: ModelIdentity = Field(
        description="the model and the plan it ran; cache bytes in the settings' dtype"
    )
    prefill_tokens_per_second: Spread
    decode_tokens_per_second: Spread
    prefill_speedup: Spread
    decode_speedup: Spread
    predicted_speedup: float | None = Field(
        description="evaluations of the first / own: the speedup if nothing but block evaluations took time; "
        "None where the blocks differ in shape"
    )
    evaluations_per_token: int = Field(
        description="block evaluations, sum over t of (start evaluations + r_t)"
    )
    cache_bytes_per_token: int = Field(
        description="keys and values of all evaluations, bytes per token, predicted"
    )
    cache_bytes: int = Field(ge=1, description="measured: all tensors of the cache after the last token")
    cache_ratio: float = Field(description="measured cache bytes / those of the first")


class Bench(Artefact):
    """Results of one or more models on one machine, the first of which the others are compared with."""

    kind: Literal["bench"] = "bench"
    settings: BenchSettings
    results: list[BenchResult] = Field(min_length=1, description="one per model, in the order given")
