"""The models. Importing this package registers them with transformers' Auto classes.

The other modules of this folder are flat siblings that import nothing of iiad but each other: transformers
copies them into every saved checkpoint, so that it loads where iiad is not installed.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_iiet import IIETConfig
from .configuration_iiet_seq2seq import IIETSeq2SeqConfig
from .configuration_pcformer import PCformerConfig
from .configuration_pcformer_seq2seq import PCformerSeq2SeqConfig
from .evaluation_counts import EvaluationCounts, count_evaluations
from .modeling_iiet import (
    IIETForCausalLM,
    IIETForSequenceClassification,
    IIETForTokenClassification,
    IIETModel,
    IIETPreTrainedModel,
)
from .modeling_iiet_seq2seq import IIETForConditionalGeneration, IIETSeq2SeqModel
from .modeling_pcformer import (
    PCformerForCausalLM,
    PCformerForSequenceClassification,
    PCformerForTokenClassification,
    PCformerModel,
    PCformerPreTrainedModel,
)
from .modeling_pcformer_seq2seq import PCformerForConditionalGeneration, PCformerSeq2SeqModel

__all__ = [
    "EvaluationCounts",
    "IIETConfig",
    "IIETForCausalLM",
    "IIETForConditionalGeneration",
    "IIETForSequenceClassification",
    "IIETForTokenClassification",
    "IIETModel",
    "IIETPreTrainedModel",
    "IIETSeq2SeqConfig",
    "IIETSeq2SeqModel",
    "PCformerConfig",
    "PCformerForCausalLM",
    "PCformerForConditionalGeneration",
    "PCformerForSequenceClassification",
    "PCformerForTokenClassification",
    "PCformerModel",
    "PCformerPreTrainedModel",
    "PCformerSeq2SeqConfig",
    "PCformerSeq2SeqModel",
    "count_evaluations",
]

for _config in (IIETConfig, PCformerConfig, IIETSeq2SeqConfig, PCformerSeq2SeqConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _config.register_for_auto_class()
for _auto, _models in {
    AutoModel: (IIETModel, PCformerModel, IIETSeq2SeqModel, PCformerSeq2SeqModel),
    AutoModelForCausalLM: (IIETForCausalLM, PCformerForCausalLM),
    AutoModelForSeq2SeqLM: (IIETForConditionalGeneration, PCformerForConditionalGeneration),
    AutoModelForSequenceClassification: (IIETForSequenceClassification, PCformerForSequenceClassification),
    AutoModelForTokenClassification: (IIETForTokenClassification, PCformerForTokenClassification),
}.items():
    for _model in _models:
        _auto.register(_model.config_class, _model, exist_ok=True)
        _model.register_for_auto_class(_auto.__name__)
