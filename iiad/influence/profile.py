"""The profile: influence scores of every iteration, and all that is needed to measure them again.

Needs neither torch nor transformers. Layers and iterations are numbered from 1, as in the paper: the score of
layer t's iteration i is `scores[metric][t - 1][i - 1]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from iiad.artefacts import Artefact, DataIdentity, ModelIdentity, Record, require_iterations_to_plan
from iiad.errors import InputError

from .averages import Scores, average, weighted_mean

__all__ = ["METRICS", "BatchRecord", "FixedPoint", "Profile", "ProfileSettings", "Scores"]

METRICS: dict[str, str] = {
    "kl": (
        "nats per token by which the output distribution comes nearer to the full model's, as KL(full || stopped), "
        "when the layer runs this iteration too; below zero, the iteration takes it further away"
    ),
    "loss": (
        "nats per token by which the loss on the text falls when the layer runs this iteration too; below zero, "
        "the iteration does harm"
    ),
    "taylor": "first-order estimate of `loss`, from one backward pass for all iterations",
    "cosine": (
        "1 - cosine between the layer's output without and with this iteration, mean over tokens; "
        "0 turns nothing, 2 reverses it"
    ),
    "relative_l2": (
        "length of the change of the layer's output by this iteration, as a share of the output's length before; "
        "mean over tokens"
    ),
}
"""Every influence metric that a profile may hold, and what its number means."""


class ProfileSettings(Record):
    """How the calibration text was drawn and the model run."""

    block_size: int = Field(ge=1, description="tokens of a block")
    batch_size: int = Field(
        ge=1, description="blocks of a batch; the last batch of a data set may have fewer"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="the most tokens to draw of each data set; null: all"
    )
    seed: int = Field(description="of the sample of blocks")
    dtype: str = Field(description="of the weights and activations, as torch names it")


class FixedPoint(Record):
    """How one layer's iteration runs on the data, by its iterates z(0), ..., z(r)."""

    residuals: list[float] = Field(
        description="r numbers: |z(i) - z(i-1)| / |z(i-1)| for i = 1, ..., r, mean over tokens"
    )
    contractions: list[float] = Field(
        description="r - 1 numbers: |z(i+1) - z(i)| / |z(i) - z(i-1)|, each a mean over tokens; below 1 it contracts"
    )
    turns: list[float] = Field(
        description="r - 1 numbers: cosine between z(i+1) - z(i) and z(i) - z(i-1), mean over tokens; -1: back"
    )


class BatchRecord(Record):
    """What one batch of calibration text says; every number is a mean over its tokens."""

    data: int = Field(ge=0, description="which of the profile's data sets it is from, counted from 0")
    num_tokens: int = Field(ge=1)
    loss: float = Field(description="of the full model, nats per predicted token")
    scores: dict[str, Scores] = Field(description="metric -> for each layer its r_t scores")
    stages: dict[str, Scores] = Field(
        default={}, description="metric -> for each layer a score of its predictor's 2nd, 3rd, ... stage"
    )
    fixed_point: list[FixedPoint] = Field(description="one a layer")


class Profile(Artefact):
    """Influence of each iteration of a model on calibration data.

    Refused as invalid: a metric that is not in `METRICS`, scores that are not one per iteration of `model`, NaN
    and infinity, a standard error without scores or below zero, batches that do not average to the scores.
    """

    kind: Literal["profile"] = "profile"
    format_version: Literal[2] = 2
    model: ModelIdentity
    data: list[DataIdentity] = Field(min_length=1, description="one or more data sets")
    settings: ProfileSettings
    loss: float = Field(description="of the full model on the data, nats per predicted token")
    scores: dict[str, Scores] = Field(
        min_length=1, description="metric -> for each layer its r_t scores; means over tokens"
    )
    standard_errors: dict[str, Scores] | None = Field(
        description="like `scores`: of each mean, over the batches; null for one batch, which has none"
    )
    stages: dict[str, Scores] = Field(
        default={},
        description="PCformer: metric -> for each layer the score of its predictor's 2nd, 3rd, ... stage",
    )
    stage_errors: dict[str, Scores] | None = Field(
        default=None, description="standard errors of `stages`, over the batches"
    )
    fixed_point: list[FixedPoint] = Field(description="one a layer; means over tokens")
    batches: list[BatchRecord] = Field(min_length=1, description="what all the means above are means of")

    @classmethod
    def of(
        cls,
        batches: Sequence[BatchRecord],
        model: ModelIdentity,
        data: Sequence[DataIdentity],
        settings: ProfileSettings,
    ) -> Self:
        """The profile that some batches make: their means, weighted by tokens, with standard errors."""
        shares = [batch.num_tokens for batch in batches]
        origins = [batch.data for batch in batches]
        scores, errors = average([batch.scores for batch in batches], shares, origins)
        stages, stage_errors = average([batch.stages for batch in batches], shares, origins)
        return cls(
            model=model,
            data=list(data),
            settings=settings,
            loss=weighted_mean(shares, [batch.loss for batch in batches]),
            scores=scores,
            standard_errors=errors if len(batches) > 1 else None,
            stages=stages,
            stage_errors=stage_errors if stages and len(batches) > 1 else None,
            fixed_point=_mean_fixed_point(batches, shares),
            batches=list(batches),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all batches."""
        return sum(batch.num_tokens for batch in self.batches)

    def scores_of(self, metric: str) -> Scores:
        """The scores by one metric. Raises InputError for an unknown metric and for one that was not measured."""
        if metric not in self.scores:
            problem = "this profile does not hold it" if metric in METRICS else "there is no such metric"
            raise InputError(f"metric {metric!r}: {problem}; accepted: {', '.join(self.scores)}")
        return self.scores[metric]

    @field_validator("model")
    @classmethod
    def _model_has_iterations(cls, model: ModelIdentity) -> ModelIdentity:
        return require_iterations_to_plan(model)

    @field_validator("scores")
    @classmethod
    def _scores_fit(cls, scores: dict[str, Scores], info: ValidationInfo) -> dict[str, Scores]:
        if "model" in info.data:  # else it is at fault itself, and reported first
            _require_fit(scores, info.data["model"].num_iterations)
        return scores

    @field_validator("standard_errors")
    @classmethod
    def _errors_fit(cls, errors: dict[str, Scores] | None, info: ValidationInfo) -> dict[str, Scores] | None:
        if errors is None:
            return None
        if "model" in info.data:
            _require_fit(errors, info.data["model"].num_iterations)
        if "scores" in info.data and set(errors) != set(info.data["scores"]):
            raise ValueError(
                f"found {_listed(errors)}; accepted: those of scores, {_listed(info.data['scores'])}"
            )
        if any(error < 0 for layers in errors.values() for layer in layers for error in layer):
            raise ValueError("found one below 0; accepted: 0 and above")
        return errors

    @field_validator("stages")
    @classmethod
    def _stages_fit(cls, stages: dict[str, Scores], info: ValidationInfo) -> dict[str, Scores]:
        if "model" in info.data:
            model = info.data["model"]
            _require_fit(stages, [model.num_start_evaluations - 1] * model.num_layers)
        return stages

    @field_validator("fixed_point")
    @classmethod
    def _fixed_points_fit(cls, layers: list[FixedPoint], info: ValidationInfo) -> list[FixedPoint]:
        if "model" in info.data:
            _require_fixed_points_fit(layers, info.data["model"].num_iterations)
        return layers

    @model_validator(mode="after")
    def _batches_average_to_the_scores(self) -> Self:
        shares = [batch.num_tokens for batch in self.batches]
        if len(self.batches) > 1 and self.standard_errors is None:
            raise ValueError("standard_errors: found null; accepted with more than one batch: numbers")
        for number, batch in enumerate(self.batches):
            if set(batch.scores) != set(self.scores) or batch.data >= len(self.data):
                raise ValueError(f"batches.{number}: its metrics or its data set are not the profile's")
            _require_fit(batch.scores, self.model.num_iterations, f"batches.{number}: ")
            _require_fixed_points_fit(
                batch.fixed_point, self.model.num_iterations, f"batches.{number}: fixed_point: "
            )
        means, _ = average([batch.scores for batch in self.batches], shares)
        for metric, layers in means.items():
            for found, wanted in zip(_flat(self.scores[metric]), _flat(layers), strict=True):
                if not math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-15):
                    raise ValueError(f"scores: {metric} holds {found}, which its batches do not average to")
        return self


def _mean_fixed_point(batches: Sequence[BatchRecord], weights: Sequence[float]) -> list[FixedPoint]:
    names = ("residuals", "contractions", "turns")
    layers = zip(*(batch.fixed_point for batch in batches), strict=True)
    return [
        FixedPoint(
            **{
                name: [
                    weighted_mean(weights, values)
                    for values in zip(*(getattr(part, name) for part in layer), strict=True)
                ]
                for name in names
            }
        )
        for layer in layers
    ]


def _require_fit(values: Mapping[str, Scores], lengths: Sequence[int], where: str = "") -> None:
    """Raise ValueError unless every metric is known and has as many numbers for each layer as it should."""
    unknown = sorted(set(values) - set(METRICS))
    if unknown:
        raise ValueError(f"{where}found metric {unknown[0]!r}; accepted: {_listed(METRICS)}")
    for metric, layers in values.items():
        if len(layers) != len(lengths):
            raise ValueError(
                f"{where}{metric} has {len(layers)} layers; accepted: {len(lengths)}, as the model has"
            )
        for number, (layer, length) in enumerate(zip(layers, lengths, strict=True), 1):
            if len(layer) != length:
                raise ValueError(
                    f"{where}{metric} has {len(layer)} numbers for layer {number}; accepted: {length}"
                )


def _require_fixed_points_fit(layers: Sequence[FixedPoint], plan: Sequence[int], where: str = "") -> None:
    """Raise ValueError unless there is one for each layer, with a number for each of its iterations."""
    if len(layers) != len(plan):
        raise ValueError(f"{where}has {len(layers)} layers; accepted: {len(plan)}, as the model has")
    for number, (layer, r) in enumerate(zip(layers, plan, strict=True), 1):
        for name, length in (("residuals", r), ("contractions", max(r - 1, 0)), ("turns", max(r - 1, 0))):
            found = len(getattr(layer, name))
            if found != length:
                raise ValueError(f"{where}has {found} {name} for layer {number}; accepted: {length}")


def _flat(scores: Scores) -> list[float]:
    return [score for layer in scores for score in layer]


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names))
