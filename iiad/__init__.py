"""iiad: train, profile, plan, distil and run iterative Transformers.

Importing it registers the models with transformers' Auto classes. The rooms:

models        IIET and PCformer; what travels with a checkpoint
data          text, jsonl, parquet and the embedded corpus -> packed token blocks
training      teachers from scratch, and the engine that distillation shares
influence     teacher + data -> profile.json
planning      profile + threshold -> plan.json
distillation  teacher + plan + data -> E-IIET
evaluation    quality of any model, and what it costs
benchmarking  speed, evaluations and cache bytes
"""

from . import models
from .errors import InputError

__version__ = "0.1.0"

__all__ = ["InputError", "__version__", "models"]
