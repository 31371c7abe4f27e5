"""bench.json: speed, memory and cache of models on one machine, as ratios to the first. Needs no torch.

All definitions here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal, Self

from pydantic import Field, model_validator

from iiad.artefacts import Amount, Artefact, Count, Record, Share, Size
from iiad.identities import ModelIdentity

__all__ = ["FIXED_PARTS", "PARTS", "Bench", "BenchResult", "BenchSettings", "Breakdown", "Phase", "Spread"]

PARTS = {
    "attention": "queries on keys, values by weights, and the rotation; also to the source",
    "cache": "adding to the slots, which copies them",
    "projections": "of queries, keys, values and outputs",
    "mlp": "the MLP",
    "norms": "of the blocks",
    "solver": "history, norms and residuals between evaluations",
    "embedding": "of the tokens",
    "head": "the final norm and the logits",
    "rest": "mask, angles, choice of the token; Python and launches outside of the layers",
}
"""Parts of a call. All but `solver` and FIXED_PARTS are block evaluations."""
FIXED_PARTS = ("embedding", "head", "rest")
"""Parts that run once a call, whatever its evaluations."""


class Spread(Record):
    """A quantity measured several times."""

    median: Amount
    low: Amount = Field(description="the smallest")
    high: Amount = Field(description="the largest")

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of at least one value."""
        return cls(median=median(values), low=min(values), high=max(values))


class Breakdown(Record):
    """Seconds of one forward call by part, from extra runs under torch.profiler: medians over them."""

    seconds: dict[str, Amount] = Field(description="for each of PARTS")
    host_share: Amount | None = Field(
        default=None,
        description="of a call, how long the host took to launch all of it: near 1, launches bound it; null on the "
        "CPU",
    )

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if list(self.seconds) != list(PARTS):
            raise ValueError(f"seconds: expected {', '.join(PARTS)}, got {', '.join(self.seconds)}")
        return self

    @property
    def total(self) -> float:
        """Return the seconds of the call."""
        return sum(self.seconds.values())

    def share(self, part: str) -> float:
        """Return the part's share of the call."""
        return self.seconds[part] / self.total if self.total > 0 else 0.0

    def expected_speedup(self, predicted: float) -> float:
        """Return Amdahl's speedup, where the fixed parts stay and all others take 1 / predicted of their time."""
        fixed = sum(self.share(part) for part in FIXED_PARTS)
        return 1 / (fixed + (1 - fixed) / predicted)

    def excess(self, first: Breakdown, predicted: float) -> dict[str, float]:
        """Return each part's time beyond 1 / predicted of the first model's, as a share of this call.

        The sum over parts is 1 - speedup / predicted, with the speedup of the profiled runs. Negative where a part
        shrank by more.
        """
        return {
            part: (seconds - first.seconds[part] / predicted) / self.total if self.total > 0 else 0.0
            for part, seconds in self.seconds.items()
        }


class Phase(Record):
    """Reading the prompts (prefill), or decoding. A speedup is the ratio to the first model in the same round.

    An encoder-decoder's prompts are sources, which its encoder reads; the first decoding step makes their keys and
    values.
    """

    evaluations_per_token: Count = Field(
        description="block evaluations, sum over t of (start evaluations + r_t): of all layers or, of an "
        "encoder-decoder, of the half that runs"
    )
    mean_evaluations: Amount | None = Field(
        default=None,
        description="measured, mean of a token of the random prompts; null where all tokens run all iterations",
    )
    predicted_speedup: Amount | None = Field(
        ge=1e-100,
        description="evaluations of the first / own, measured where they are: the speedup if nothing but block "
        "evaluations took time; None where the blocks differ in shape or precision, or decoding is compiled",
    )
    tokens_per_second: Spread
    speedup: Spread = Field(description="above 1 is faster")
    expected_speedup: Amount | None = Field(
        description="Amdahl: the predicted one where embedding, head and rest take what they take in the first; "
        "null without prediction or breakdown"
    )
    kept: Amount | None = Field(description="median speedup / predicted; null without prediction")
    peak_bytes: Count = Field(description="most bytes of tensors alive at once beside the weights")
    breakdown: Breakdown | None = Field(
        description="of one call; null for layers that are not named as Llama's"
    )


class BenchSettings(Record):
    """Settings and machine of a bench."""

    batch_size: list[Size] = Field(min_length=1, description="sequences at a time: one side of the grid")
    prompt_tokens: list[Size] = Field(
        min_length=1, description="random tokens of each prompt, read in one forward call: the other side"
    )
    new_tokens: Size = Field(description="tokens that each sequence is then given, one forward call each")
    repeats: Size = Field(description="measured rounds over all models, after one that warms up")
    seed: Count = Field(description="of the random prompts")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of weights and cache")
    device: str
    device_name: str = Field(description="the model of the GPU or CPU")
    num_threads: Size = Field(description="threads of torch on the CPU")
    torch_version: str


class BenchResult(Record):
    """One model under one plan at one point of the grid."""

    label: str = Field(description="short name, unique at a point of the grid")
    model: ModelIdentity = Field(
        description="the model and the plan it ran; cache bytes in the settings' dtype"
    )
    quantization: Literal["int8", "int4"] | None = Field(description="of the weights of its blocks")
    compiled: bool = Field(
        default=False,
        description="decodes from a static cache through torch.compile; neither prefill nor an encoder-decoder's "
        "first step is compiled",
    )
    perplexity: Amount | None = Field(default=None, description="of the evaluation that the bench was given")
    accuracy: Share | None = Field(default=None, description="likewise: share of tokens ranked first")
    batch_size: Size
    prompt_tokens: Size
    prefill: Phase
    decode: Phase
    weight_bytes: Count = Field(description="of all weights, quantized ones as they are stored")
    cache_bytes_per_token: Count = Field(
        description="keys and values, bytes per token, predicted; of an encoder-decoder a target's"
    )
    cache_bytes: Size = Field(
        description="measured: all tensors of the cache after the last token, a source's too"
    )
    cache_ratio: Amount = Field(description="measured cache bytes / those of the first")


class Bench(Artefact):
    """Results of one or more models on one machine, the first of which the others are compared with."""

    kind: Literal["bench"] = "bench"
    format_version: Literal[3] = 3
    settings: BenchSettings
    results: list[BenchResult] = Field(
        min_length=1, description="for each point of the grid one per model, in the order given"
    )

    def at(self, batch_size: int, prompt_tokens: int) -> list[BenchResult]:
        """Return the results of one point of the grid, the first model's first."""
        point = (batch_size, prompt_tokens)
        return [result for result in self.results if (result.batch_size, result.prompt_tokens) == point]

    @property
    def points(self) -> list[tuple[int, int]]:
        """Return batch size and prompt tokens of each point of the grid, in the order measured."""
        return list(dict.fromkeys((result.batch_size, result.prompt_tokens) for result in self.results))
