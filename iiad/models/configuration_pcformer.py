"""Configuration of PCformer: a Runge-Kutta predictor before the same multistep corrector."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from .configuration_iiet import IIETConfig

__all__ = ["PCformerConfig"]


@strict
class PCformerConfig(IIETConfig):
    """Shape of a PCformer. All fields of `IIETConfig`, and:

    predictor_order: 2 or 4, the order of the Runge-Kutta predictor, which costs as many evaluations a layer.
    coefficients: "ema" combines its stages by one learned scalar, "fixed" by the classical weights
        (1/2, 1/2 and 1/6, 1/3, 1/3, 1/6).

    `num_iterations` counts the corrector's steps: 1 as released.
    """

    model_type = "pcformer"

    num_iterations: int | list[int] = 1
    predictor_order: int = 2
    coefficients: str = "ema"

    @property
    def num_start_evaluations(self) -> int:
        """Block evaluations of the predictor: its order."""
        return self.predictor_order

    def validate_architecture(self) -> None:
        """Raise ValueError for a value out of range."""
        super().validate_architecture()
        if self.predictor_order not in (2, 4):
            raise ValueError(f"predictor_order must be 2 or 4, got {self.predictor_order!r}")
        if self.coefficients not in ("ema", "fixed"):
            raise ValueError(f"coefficients must be 'ema' or 'fixed', got {self.coefficients!r}")
        if not self.history:
            raise ValueError("history must be true: PCformer's corrector is the multistep one")
