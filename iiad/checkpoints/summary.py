"""A model folder in a few figures, read from its configuration and its tensors' shapes. Needs no torch."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field

from iiad.artefacts import Count, Iterations, Record, Size, check_fields
from iiad.folders import read_config, weight_shapes

__all__ = ["ModelSummary", "summarize_model"]


class ModelSummary(Record):
    """A model folder in a few figures, those that its configuration says."""

    kind: str = "model summary"
    folder: str
    model_type: str
    num_layers: Size | None
    hidden_size: Size | None
    vocab_size: Size | None
    num_parameters: Count = Field(description="numbers in its tensors, a tied head once")
    num_iterations: list[Iterations] | None = Field(
        description="the plan; null for a model without iterations"
    )
    num_evaluations: Size | None = Field(description="block evaluations per token")
    cache_policy: str | None


def summarize_model(folder: str | Path) -> ModelSummary:
    """Summarize a model folder by its config.json and its tensors' shapes. Raises InputError as `read_config`."""
    config = read_config(folder)
    num_layers = config.get("num_layers") or config.get("num_hidden_layers")
    plan, evaluations = config.get("num_iterations"), num_layers
    if config.get("model_type") not in ("iiet", "pcformer"):
        plan = None
    if isinstance(plan, int) and isinstance(num_layers, int):
        plan = [plan] * num_layers
    if isinstance(plan, list):
        plan = check_fields(list[Iterations], plan, f"{folder}/config.json: num_iterations")
        order = config.get("predictor_stages") or config.get("predictor_order") or 1
        evaluations = sum(plan) + len(plan) * check_fields(
            Size, order, f"{folder}/config.json: predictor_order"
        )
    fields = {
        "folder": str(folder),
        "num_layers": num_layers,
        "num_parameters": sum(math.prod(shape) for shape in weight_shapes(folder).values()),
        "num_iterations": plan,
        "num_evaluations": evaluations,
        **{name: config.get(name) for name in ("model_type", "hidden_size", "vocab_size", "cache_policy")},
    }
    return check_fields(ModelSummary, fields, f"{folder}/config.json")
