"""iiad: train, profile, plan, distil and run iterative Transformers.

It loads neither torch nor transformers; `import iiad.models` makes transformers' Auto classes know the models. The
rooms:

models        IIET and PCformer; what travels with a checkpoint
data          text, jsonl, parquet and the embedded corpus -> packed token blocks
recipes       what to train, on what and how, checked whole before anything loads
losses        the head and its losses, a chunk of tokens at a time
training      models from scratch or on from one, and the engine that distillation shares
influence     teacher + data -> profile.json
planning      profile + threshold -> plan.json
signals       what a teacher says about a text -> shards
distillation  teacher (or signals) + plan + data -> E-IIET
evaluation    quality of any model, and what it costs
benchmarking  speed, evaluations and cache bytes
"""

from .errors import InputError

__version__ = "0.1.0"

__all__ = ["InputError", "__version__"]
