"""The profile: influence scores of every iteration, and all that is needed to measure them again.

Needs neither torch nor transformers. Layers and iterations are numbered from 1, as in the paper: the score of
layer t's iteration i is `scores[metric][t - 1][i - 1]`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from iiad.artefacts import Artefact, Coefficients, Count, Number, Record, Size, without_empty
from iiad.errors import InputError, shorten
from iiad.identities import DataIdentity, ModelIdentity, require_iterations_to_plan

from .averages import average, flatten, weighted_mean
from .convergence import (
    FixedPoint,
    Scores,
    Settling,
    StepProducts,
    by_name,
    require_fixed_points,
    require_lengths,
    require_products,
    require_settling,
)

__all__ = [
    "METRICS",
    "BatchRecord",
    "Metric",
    "Profile",
    "ProfileSettings",
]

METRICS: dict[str, str] = {
    "kl": (
        "nats per token by which the output distribution comes nearer to the full model's, as KL(full || stopped), "
        "when the layer runs this iteration too; negative: the iteration takes it further away"
    ),
    "loss": (
        "nats per token by which the loss on the text falls when the layer runs this iteration too; negative: "
        "the loss rises"
    ),
    "taylor": "first-order estimate of `loss`, from one backward pass for all iterations",
    "cosine": (
        "1 - cosine between the layer's output without and with this iteration, mean over tokens; "
        "0: same direction, 2: opposite"
    ),
    "relative_l2": (
        "|change of the layer's output by this iteration| / |output before|, mean over tokens; the residual of the "
        "fixed-point iteration"
    ),
}
"""Every influence metric that a profile may hold, and the meaning of its number."""


def _require_known(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"expected one of {', '.join(METRICS)}, got {shorten(name)}")
    return name


Metric = Annotated[str, AfterValidator(_require_known)]


class ProfileSettings(Record):
    """Settings of the calibration text and of the model's run."""

    block_size: Size = Field(description="tokens of a block")
    batch_size: Size = Field(description="blocks of a batch; the last batch of a data set may have fewer")
    max_tokens: Size | None = Field(
        default=None, description="the most tokens to draw of each data set; null: all"
    )
    seed: Count = Field(description="of the sample of blocks")
    dtype: str = Field(description="of the weights and activations, as torch names it")
    extrapolate: bool = Field(
        default=False,
        description="each stop is extrapolated, with the batch's own coefficients; not written where false",
    )

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "extrapolate")


class BatchRecord(Record):
    """Measurements on one batch of calibration text; every number is a mean over its tokens."""

    data: Count = Field(description="number of its data set in the profile, from 0")
    num_tokens: Size
    loss: Number = Field(description="of the full model, nats per predicted token")
    scores: dict[str, Scores] = Field(description="metric -> for each layer its r_t scores")
    stages: dict[str, Scores] = Field(
        default={}, description="metric -> for each layer a score of its predictor's 2nd, 3rd, ... stage"
    )
    fixed_point: list[FixedPoint] = Field(description="one a layer")
    extrapolation: list[StepProducts] = Field(default=[], description="one a layer; not in older profiles")
    settling: list[Settling] = Field(default=[], description="one a layer; of a shared cache alone")

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "extrapolation", "settling")

    def require_fit(
        self,
        model: ModelIdentity,
        num_data: int,
        metrics: Collection[str],
        where: str = "",
        whole: bool = False,
    ) -> None:
        """Raise ValueError for a data set that is not there, other metrics, or other numbers than the model's.

        whole: the stages have all metrics, too.
        """
        plan, num_stages = model.num_iterations, model.num_start_evaluations - 1
        if self.data >= num_data:
            raise ValueError(f"{where}data: expected 0 to {num_data - 1}, got {self.data}")
        _require_fit(f"{where}scores", self.scores, plan, metrics)
        if self.stages or (whole and num_stages):
            _require_fit(
                f"{where}stages", self.stages, [num_stages] * len(plan), metrics if num_stages else ()
            )
        require_fixed_points(f"{where}fixed_point", self.fixed_point, plan)
        if self.extrapolation or whole:
            require_products(f"{where}extrapolation", self.extrapolation, plan)
        if self.settling or (whole and model.cache_policy == "shared"):
            require_settling(f"{where}settling", self.settling, plan)


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
    loss: Number = Field(description="of the full model on the data, nats per predicted token")
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
    extrapolation: list[StepProducts] = Field(
        default=[], description="one a layer; means over tokens; not in older profiles"
    )
    settling: list[Settling] = Field(
        default=[],
        description="one a layer; means over tokens; of a shared cache alone, not in older profiles",
    )
    batches: list[BatchRecord] = Field(min_length=1, description="what all the means above are means of")

    @classmethod
    def of(
        cls,
        batches: Sequence[BatchRecord],
        model: ModelIdentity,
        data: Sequence[DataIdentity],
        settings: ProfileSettings,
    ) -> Self:
        """Average batches, weighted by their tokens, with standard errors."""
        weights = [batch.num_tokens for batch in batches]
        origins = [batch.data for batch in batches]
        scores, errors = average([batch.scores for batch in batches], weights, origins)
        stages, stage_errors = average([batch.stages for batch in batches], weights, origins)
        fixed_points, _ = average([by_name(FixedPoint, batch.fixed_point) for batch in batches], weights)
        products, _ = average([by_name(StepProducts, batch.extrapolation) for batch in batches], weights)
        settled, _ = average([by_name(Settling, batch.settling) for batch in batches], weights)
        several = len(batches) > 1
        return cls(
            model=model,
            data=list(data),
            settings=settings,
            loss=weighted_mean(weights, [batch.loss for batch in batches]),
            scores=scores,
            standard_errors=errors if several else None,
            stages=stages,
            stage_errors=stage_errors if stages and several else None,
            fixed_point=[
                FixedPoint(**dict(zip(fixed_points, layer, strict=True)))
                for layer in zip(*fixed_points.values(), strict=True)
            ],
            extrapolation=[
                StepProducts(**dict(zip(products, layer, strict=True)))
                for layer in zip(*products.values(), strict=True)
            ],
            settling=[Settling(shares=layer) for layer in settled["shares"]],
            batches=list(batches),
        )

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "extrapolation", "settling")

    def coefficients(self, num_iterations: Sequence[int]) -> list[Coefficients]:
        """Coefficients of each layer where it stops at r_t; in full its own, and none without iterations.

        Raises InputError for a profile that was measured without.
        """
        if not self.extrapolation:
            raise InputError(
                "profile: expected one that holds `extrapolation`, got an older one; measure again"
            )
        return [
            whole if r == most else products.coefficients[r - 1] if r else []
            for r, most, products, whole in zip(
                num_iterations,
                self.model.num_iterations,
                self.extrapolation,
                self.model.coefficients,
                strict=True,
            )
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of all batches."""
        return sum(batch.num_tokens for batch in self.batches)

    def scores_of(self, metric: str) -> Scores:
        """The scores by one metric. Raises InputError for a metric that the profile does not hold."""
        if metric not in self.scores:
            held = ", ".join(sorted(self.scores))
            raise InputError(f"metric: expected one that the profile holds, {held}, got {metric!r}")
        return self.scores[metric]

    @field_validator("model")
    @classmethod
    def _model_has_iterations(cls, model: ModelIdentity) -> ModelIdentity:
        return require_iterations_to_plan(model)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        plan, errors = self.model.num_iterations, self.standard_errors
        _require_fit("scores", self.scores, plan)
        _require_fit("stages", self.stages, [self.model.num_start_evaluations - 1] * len(plan))
        require_fixed_points("fixed_point", self.fixed_point, plan)
        if self.extrapolation:
            require_products("extrapolation", self.extrapolation, plan)
        if self.settling:
            require_settling("settling", self.settling, plan)
        if errors is not None:
            _require_fit("standard_errors", errors, plan, self.scores)
            least = min(min(flatten(scores)) for scores in errors.values())
            if least < 0:
                raise ValueError(f"standard_errors: expected none below 0, got {least}")
        elif len(self.batches) > 1:
            raise ValueError("standard_errors: expected numbers, as there are several batches, got null")
        for number, batch in enumerate(self.batches):
            batch.require_fit(self.model, len(self.data), self.scores, f"batches.{number}.")
        weights = [batch.num_tokens for batch in self.batches]
        means, _ = average([batch.scores for batch in self.batches], weights)
        for metric, scores in self.scores.items():
            for found, mean in zip(flatten(scores), flatten(means[metric]), strict=True):
                if not math.isclose(found, mean, rel_tol=1e-9, abs_tol=1e-15):
                    raise ValueError(
                        f"scores.{metric}: expected the mean of the batches, {mean}, got {found}"
                    )
        return self


def _require_fit(
    field: str,
    values: Mapping[str, Scores],
    lengths: Sequence[int],
    metrics: Collection[str] | None = None,
) -> None:
    """Raise ValueError for other metrics than those (None: for unknown ones) and for other lengths."""
    expected = METRICS if metrics is None else metrics
    if set(values) - set(expected) or (metrics is not None and set(metrics) - set(values)):
        names = [", ".join(sorted(each)) for each in (expected, values)]
        raise ValueError(f"{field}: expected metrics of {names[0]}, got {names[1]}")
    require_lengths(field, values, lengths)
