"""PCformer: the paper's main rival, a Runge-Kutta predictor and one multistep correction a layer."""

from __future__ import annotations

from transformers import AutoModel
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from .configuration_pcformer import PCformerConfig
from .modeling_iiet import IIETForCausalLM, IIETModel, IIETPreTrainedModel

__all__ = [
    "PCformerForCausalLM",
    "PCformerForSequenceClassification",
    "PCformerForTokenClassification",
    "PCformerModel",
    "PCformerPreTrainedModel",
]


class PCformerPreTrainedModel(IIETPreTrainedModel):
    """Base of the PCformers: IIET's, and the change of the predictor."""

    config: PCformerConfig
    config_class = PCformerConfig

    def set_predictor_stages(self, predictor_stages: int) -> None:
        """Run only that many stages of the predictor from now on; the weights stay as they are.

        Raises ValueError for a number below 1 or above the predictor's order.
        """
        self.reconfigure(predictor_stages=predictor_stages)


class PCformerModel(PCformerPreTrainedModel, IIETModel):
    """Embeddings, L predictor-corrector layers and the final norm: IIET with another predictor."""


class PCformerForCausalLM(PCformerPreTrainedModel, IIETForCausalLM):
    """PCformer with a language-modelling head."""

    model_class = PCformerModel


class PCformerForSequenceClassification(GenericForSequenceClassification, PCformerPreTrainedModel):
    """PCformer with a label, or a number, for each text: read off the last token that is not padding."""


class PCformerForTokenClassification(GenericForTokenClassification, PCformerPreTrainedModel):
    """PCformer with a label for each token."""


AutoModel.register(
    PCformerConfig, PCformerModel, exist_ok=True
)  # by which the generic heads make their base model
