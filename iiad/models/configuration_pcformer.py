"""Configuration of PCformer: a Runge-Kutta predictor before the same multistep corrector."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_iiet import IIETConfig
from .field_values import ACCEPTED, AcceptedValues, whole

__all__ = ["PCformerConfig"]


@strict
class PCformerConfig(IIETConfig):
    """Shape of a PCformer. All fields of `IIETConfig`, and:

    predictor_order: 2 or 4, the order of the Runge-Kutta predictor, which costs as many evaluations a layer.
    predictor_stages: how many of the predictor's stages are run, with the weights that they have among all; None:
        all. Fewer make a cheaper model out of a trained one (ours).
    coefficients: "ema" combines its stages by one learned scalar, "fixed" by the classical weights
        (1/2, 1/2 and 1/6, 1/3, 1/3, 1/6).

    `num_iterations` counts the corrector's steps: 1 as released.
    """

    model_type = "pcformer"
    accepted_values: ClassVar[dict[str, AcceptedValues]] = ACCEPTED | {
        "history": (lambda value: value is True, "true: PCformer's corrector is the multistep one"),
        "predictor_order": (lambda value: type(value) is int and value in (2, 4), "2 or 4"),
        "predictor_stages": whole(1, 4),
        "coefficients": (lambda value: value in ("ema", "fixed"), "'ema' or 'fixed'"),
    }

    num_iterations: int | list[int] = 1
    predictor_order: int = 2
    predictor_stages: int | None = None
    coefficients: str = "ema"

    @property
    def num_start_evaluations(self) -> int:
        """Block evaluations of the predictor: one a stage."""
        return self.predictor_stages or self.predictor_order

    def validate_architecture(self) -> None:
        """Raise ValueError for a value out of range."""
        super().validate_architecture()
        order = self.predictor_order
        fits = (self.predictor_stages or 1) <= order
        self._require("predictor_stages", fits, f"from 1 to {order} (predictor_order)")
