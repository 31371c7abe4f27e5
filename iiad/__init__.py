"""iiad: train, profile, plan, distil and run iterative Transformers.

Importing iiad loads neither torch nor transformers; `import iiad.models` registers the models with the Auto classes.
The rooms, in the order in which data flows; each imports only those before it:

models        IIET and PCformer; travels with checkpoints
data          text -> packed token blocks
influence     teacher + text -> profile.json
planning      profile.json -> plan.json
training      recipe + text -> teacher; the loop that distillation shares
conversion    released and Llama checkpoints -> ours, quantization
distillation  teacher (or its stored signals) + plan + text -> E-IIET
evaluation    quality, speed, layer latency, plans on the teacher, checks
generation    text, lossless drafting
reporting     tables and pictures of results
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from .errors import InputError

__version__ = "0.1.0"

__all__ = ["InputError", "__version__", "lazy_names"]


def lazy_names(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` that imports a module, and torch with it, when one of its names is used."""
    module_of = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return get
