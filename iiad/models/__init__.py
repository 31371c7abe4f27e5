"""The models. Importing this package registers them with transformers' Auto classes.

The other modules of this folder are flat siblings that import nothing of iiad but each other: transformers
copies them into every saved checkpoint, so that it loads where iiad is not installed.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_iiet import IIETConfig
from .configuration_pcformer import PCformerConfig
from .modeling_iiet import IIETForCausalLM, IIETModel, IIETPreTrainedModel
from .modeling_pcformer import PCformerForCausalLM, PCformerModel

__all__ = [
    "IIETConfig",
    "IIETForCausalLM",
    "IIETModel",
    "IIETPreTrainedModel",
    "PCformerConfig",
    "PCformerForCausalLM",
    "PCformerModel",
]

for _config, _model, _causal in (
    (IIETConfig, IIETModel, IIETForCausalLM),
    (PCformerConfig, PCformerModel, PCformerForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForCausalLM.register(_config, _causal, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
    _causal.register_for_auto_class("AutoModelForCausalLM")
