"""iiad: train, profile, plan, distil and run iterative Transformers.

Importing it makes transformers' Auto classes know the models, and loads neither torch nor transformers. The rooms:

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

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from .errors import InputError
from .registration import register_models

if TYPE_CHECKING:
    from . import models

__version__ = "0.1.0"

__all__ = ["InputError", "__version__", "models"]

register_models()


def __getattr__(name: str) -> ModuleType:
    """Import iiad.models, and torch with it, only for who asks for it."""
    if name == "models":
        return import_module(".models", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
