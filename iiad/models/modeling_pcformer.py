"""PCformer: the paper's main rival, a Runge-Kutta predictor and one multistep correction a layer."""

from __future__ import annotations

from .configuration_pcformer import PCformerConfig
from .modeling_iiet import IIETForCausalLM, IIETModel
from .solvers import RungeKutta

__all__ = ["PCformerForCausalLM", "PCformerModel"]


class PCformerModel(IIETModel):
    """Embeddings, L predictor-corrector layers and the final norm: IIET with another predictor."""

    config: PCformerConfig
    config_class = PCformerConfig

    def make_predictor(self, config: PCformerConfig) -> RungeKutta:
        """The Runge-Kutta predictor, with norms and coefficients shared by all layers."""
        return RungeKutta(
            config.hidden_size, config.predictor_order, config.coefficients, config.layer_norm_eps
        )


class PCformerForCausalLM(IIETForCausalLM):
    """PCformer with a language-modelling head."""

    config: PCformerConfig
    config_class = PCformerConfig
    model_class = PCformerModel

    def set_predictor_stages(self, predictor_stages: int) -> None:
        """Run only that many stages of the predictor from now on; the weights stay as they are.

        Raises ValueError for a number below 1 or above the predictor's order.
        """
        self.reconfigure("predictor_stages", predictor_stages)
