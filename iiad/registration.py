"""Makes the Auto classes of transformers know our models without importing transformers or torch.

Those take seconds to import, and reading a profile or making a plan needs neither. So the Auto classes get stand-ins:
classes that import iiad.models, which registers the real ones in their place, when they are first used.
Resolving at use and not when transformers is imported has two reasons: iiad.models needs modules of transformers
that themselves import the Auto classes half-way through, and no thread can look up a model before it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["IIETConfig", "PCformerConfig", "register_models"]

# Where AutoConfig lives. Everything Auto begins with it: a model or tokenizer is looked up by its configuration's
# class, and whoever has one of ours has imported iiad.models.
AUTO_MODULE = "transformers.models.auto.configuration_auto"


class _StandIn(type):
    """Metaclass: a class that passes calls and attributes on to the one of its name in iiad.models."""

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real(), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()(*args, **kwargs)

    def _real(cls) -> Any:
        from iiad import models

        return getattr(models, cls.__name__)


class IIETConfig(metaclass=_StandIn):
    """Stands in for iiad.models.IIETConfig."""

    model_type = "iiet"


class PCformerConfig(metaclass=_StandIn):
    """Stands in for iiad.models.PCformerConfig."""

    model_type = "pcformer"


def register_models() -> None:
    """Register the stand-ins with AutoConfig: now where it is imported already, else as soon as it is."""
    if AUTO_MODULE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    # The import statement waits where another thread is still at importing it.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    for config in (IIETConfig, PCformerConfig):
        if config.model_type not in CONFIG_MAPPING:  # else iiad.models was faster, with the real one
            AutoConfig.register(config.model_type, config)


class _Finder(MetaPathFinder):
    """Finds AUTO_MODULE only, as the other finders do, and has _register run after it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != AUTO_MODULE:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Finder))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """A module's own loader, with _register after it."""

    def __init__(self, real: Loader):
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = (
            self.real
        )  # inspect and pickle read them: nothing of us stays
        self.real.exec_module(module)
        _register()
        # A new list: another thread may be walking the old one, and would miss a finder if it became shorter.
        sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
