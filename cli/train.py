"""`iiad train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MaxMinutes, Recipe, Resume, Settings, claim_outputs
from .output import print_result

__all__ = ["train"]


def train(
    recipe: Recipe,
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the finished model.")],
    set_: Settings = None,
    resume: Resume = False,
    max_minutes: MaxMinutes = None,
) -> None:
    """Train an IIET, Transformer or PCformer from scratch, or on from a model (model.path).

    Example:  iiad train demo --output-dir teacher --set training.max_steps=500
    """
    from iiad.training.recipe_files import find_recipe
    from iiad.training.recipes import TrainRecipe, load_recipe, require_inputs

    loaded = load_recipe(TrainRecipe, recipe, set_ or [])
    inputs = [find_recipe(recipe), loaded.model.path, loaded.tokenizer.path]
    texts = [*loaded.data.train, *loaded.data.validation]
    claim_outputs(inputs, texts, folders={"output_dir": output_dir})
    require_inputs(loaded)
    from iiad.training import train as run

    results = run(loaded, output_dir, resume, max_minutes)
    line = f"{output_dir}: trained on {results['tokens']:,} tokens"
    if "validation_nll" in results:
        line += f", validation {results['validation_nll']:.4f} nats a token"
    print_result({"output_dir": output_dir, **results}, lambda width: line)
