"""The models. Importing this package registers them with transformers' Auto classes.

The other modules of this folder are flat siblings that import nothing of iiad but each other: transformers
copies them into every saved checkpoint, so that it loads where iiad is not installed.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_iiet import IIETConfig
from .configuration_pcformer import PCformerConfig
from .modeling_iiet import (
    IIETForCausalLM,
    IIETForSequenceClassification,
    IIETForTokenClassification,
    IIETModel,
    IIETPreTrainedModel,
)
from .modeling_pcformer import (
    PCformerForCausalLM,
    PCformerForSequenceClassification,
    PCformerForTokenClassification,
    PCformerModel,
    PCformerPreTrainedModel,
)

__all__ = [
    "IIETConfig",
    "IIETForCausalLM",
    "IIETForSequenceClassification",
    "IIETForTokenClassification",
    "IIETModel",
    "IIETPreTrainedModel",
    "PCformerConfig",
    "PCformerForCausalLM",
    "PCformerForSequenceClassification",
    "PCformerForTokenClassification",
    "PCformerModel",
    "PCformerPreTrainedModel",
]

for _config in (IIETConfig, PCformerConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _config.register_for_auto_class()
for _auto, _models in {
    AutoModel: (IIETModel, PCformerModel),
    AutoModelForCausalLM: (IIETForCausalLM, PCformerForCausalLM),
    AutoModelForSequenceClassification: (IIETForSequenceClassification, PCformerForSequenceClassification),
    AutoModelForTokenClassification: (IIETForTokenClassification, PCformerForTokenClassification),
}.items():
    for _model in _models:
        _auto.register(_model.config_class, _model, exist_ok=True)
        _model.register_for_auto_class(_auto.__name__)
