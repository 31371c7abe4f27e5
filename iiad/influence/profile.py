"""The profile: influence scores of every iteration, and all that is needed to measure them again.

Needs neither torch nor transformers. Layers and iterations are numbered from 1, as in the paper: the score of
layer t's iteration i is `scores[metric][t - 1][i - 1]`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from iiad.artefacts import Artefact, DataIdentity, ModelIdentity, Record
from iiad.errors import InputError

__all__ = ["METRICS", "Profile", "ProfileSettings"]

METRICS: dict[str, str] = {
    "kl": (
        "nats per token by which the output distribution comes nearer to the full model's, as KL(full || stopped), "
        "when the layer runs this iteration too; below zero, the iteration takes it further away"
    ),
    "cosine": (
        "1 - cosine between the layer's output without and with this iteration, mean over tokens; "
        "0 turns nothing, 2 reverses it"
    ),
}
"""Every influence metric that a profile may hold, and what its number means."""


class ProfileSettings(Record):
    """How the calibration text was drawn and the model run."""

    block_size: int = Field(ge=1, description="tokens of a block")
    batch_size: int = Field(ge=1, description="blocks of a batch; the last batch may have fewer")
    max_tokens: int | None = Field(default=None, ge=1, description="the most tokens to draw; null: all")
    seed: int = Field(description="of the sample of blocks")
    dtype: str = Field(description="of the weights and activations, as torch names it")


class Profile(Artefact):
    """Influence of each iteration of a model on calibration data.

    Refused as invalid: a metric that is not in `METRICS`, scores that are not one per iteration of `model`, NaN
    and infinity, a standard error without scores or below zero.
    """

    kind: Literal["profile"] = "profile"
    model: ModelIdentity
    data: DataIdentity
    settings: ProfileSettings
    num_batches: int = Field(ge=1)
    scores: dict[str, list[list[float]]] = Field(
        min_length=1, description="metric -> for each layer its r_t scores; means over tokens"
    )
    standard_errors: dict[str, list[list[float]]] | None = Field(
        description="like `scores`: of each mean, over the batches; null for one batch, which has none"
    )

    @property
    def fingerprint(self) -> str:
        """Hash of the profile, to which a plan is bound: sha256 of the file that `save` writes."""
        return hashlib.sha256((self.model_dump_json(indent=1) + "\n").encode()).hexdigest()

    def scores_of(self, metric: str) -> list[list[float]]:
        """The scores by one metric. Raises InputError for an unknown metric and for one that was not measured."""
        if metric not in self.scores:
            problem = "this profile does not hold it" if metric in METRICS else "there is no such metric"
            raise InputError(f"metric {metric!r}: {problem}; accepted: {', '.join(self.scores)}")
        return self.scores[metric]

    @field_validator("model")
    @classmethod
    def _model_has_iterations(cls, model: ModelIdentity) -> ModelIdentity:
        plan = model.num_iterations
        if len(plan) != model.num_layers:
            raise ValueError(
                f"num_iterations has {len(plan)} entries; accepted: {model.num_layers}, one a layer"
            )
        if min(plan) < 0 or max(plan) == 0:
            raise ValueError(f"num_iterations is {plan}; accepted: none below 0 and one above it")
        return model

    @field_validator("scores")
    @classmethod
    def _scores_fit(
        cls, scores: dict[str, list[list[float]]], info: ValidationInfo
    ) -> dict[str, list[list[float]]]:
        _require_fit(scores, info)
        return scores

    @field_validator("standard_errors")
    @classmethod
    def _errors_fit(
        cls, errors: dict[str, list[list[float]]] | None, info: ValidationInfo
    ) -> dict[str, list[list[float]]] | None:
        if errors is None:
            if info.data.get("num_batches", 1) > 1:
                raise ValueError("found null; accepted with more than one batch: a number for each score")
            return None
        _require_fit(errors, info)
        if "scores" in info.data and set(errors) != set(info.data["scores"]):
            raise ValueError(
                f"found {_listed(errors)}; accepted: those of scores, {_listed(info.data['scores'])}"
            )
        if any(error < 0 for layers in errors.values() for layer in layers for error in layer):
            raise ValueError("found one below 0; accepted: 0 and above")
        return errors


def _require_fit(values: Mapping[str, Sequence[Sequence[float]]], info: ValidationInfo) -> None:
    """Raise ValueError unless every metric is known and has a number for each iteration of the model."""
    unknown = sorted(set(values) - set(METRICS))
    if unknown:
        raise ValueError(f"found metric {unknown[0]!r}; accepted: {_listed(METRICS)}")
    if "model" not in info.data:  # it is at fault itself, and reported first
        return
    plan = info.data["model"].num_iterations
    for metric, layers in values.items():
        if len(layers) != len(plan):
            raise ValueError(f"{metric} has {len(layers)} layers; accepted: {len(plan)}, as the model has")
        for number, (layer, r) in enumerate(zip(layers, plan, strict=True), 1):
            if len(layer) != r:
                raise ValueError(
                    f"{metric} has {len(layer)} numbers for layer {number}; accepted: {r}, its iterations"
                )


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names))
