"""What a recipe names and what is there: files, tokenizers, folders. Nothing of it is opened."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from .recipes import DistillRecipe, TrainRecipe

__all__ = ["missing_inputs"]

# owner/name or name, as at huggingface.co
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def missing_inputs(recipe: TrainRecipe | DistillRecipe) -> list[str]:
    """A line for each input that the recipe names and that is not here: on the machine of the run it may be."""
    return list(_missing(recipe))


def _missing(recipe: TrainRecipe | DistillRecipe) -> Iterator[str]:
    for field, names in (("train", recipe.data.train), ("validation", recipe.data.validation)):
        for name in names:
            yield from _missing_text(f"data.{field}", name)
    if isinstance(recipe, TrainRecipe):
        if recipe.model.path is not None:
            yield from _missing_folder("model.path", recipe.model.path, hub=True)
        if recipe.tokenizer.path is not None:
            yield from _missing_folder("tokenizer.path", recipe.tokenizer.path, hub=True)
        return
    if recipe.distillation.signals is not None:
        yield from _missing_folder("distillation.signals", recipe.distillation.signals)
    if recipe.student.init not in ("teacher", "random"):
        yield from _missing_folder("student.init", recipe.student.init)


def _missing_text(field: str, name: str) -> Iterator[str]:
    path = os.path.expanduser(name)
    if name == "stdlib" or name.startswith("stdlib:") or os.path.exists(path):
        return
    if not glob.has_magic(path):
        yield f"{field}: {name} is not here"
    elif not any(glob.iglob(path, recursive=True)):
        yield f"{field}: {name} matches no file here"


def _missing_folder(field: str, name: str, hub: bool = False) -> Iterator[str]:
    if os.path.isdir(os.path.expanduser(name)):
        return
    at_hub = hub and HUB_NAME.fullmatch(name)
    yield f"{field}: {name} is no folder here" + ("; taken for a name at huggingface.co" if at_hub else "")
