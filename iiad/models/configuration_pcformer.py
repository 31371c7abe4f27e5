"""Configuration of PCformer: a Runge-Kutta predictor before the same multistep corrector."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from .configuration_iiet import IIETConfig

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
        order, stages = self.predictor_order, self.predictor_stages
        self._require("predictor_order", order in (2, 4), "2 or 4")
        fits = stages is None or 1 <= stages <= order
        self._require("predictor_stages", fits, f"from 1 to {order} (predictor_order)")
        self._require("coefficients", self.coefficients in ("ema", "fixed"), "'ema' or 'fixed'")
        self._require("history", self.history, "true: PCformer's corrector is the multistep one")
