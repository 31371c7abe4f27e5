"""A model folder in a few figures, read from its configuration and its tensors' shapes. Needs no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field

from iiad.artefacts import Count, Iterations, Number, Record, Share, Size, Tolerances, check_fields
from iiad.folders import read_config, weight_shapes

__all__ = ["ListedPlan", "ModelSummary", "summarize_model"]


class ListedPlan(Record):
    """A plan that an elastic student was trained for."""

    name: str
    num_iterations: list[Iterations]
    nll: Number | None = Field(default=None, description="validation loss, nats a token")
    accuracy: Number | None = None
    tolerance: Tolerances | None = Field(
        default=None, description="of each layer, where tokens stop by themselves"
    )
    cut: Share | None = Field(
        default=None, description="share of iterations that its tokens drop in the mean"
    )


class ModelSummary(Record):
    """A model folder in a few figures, those that its configuration says."""

    kind: str = "model summary"
    folder: str
    model_type: str
    num_layers: Size | None = Field(description="an encoder's counted along")
    num_encoder_layers: Size | None = Field(default=None, description="null for a causal model")
    hidden_size: Size | None
    vocab_size: Size | None
    num_parameters: Count = Field(description="numbers in its tensors, a tied head once")
    num_iterations: list[Iterations] | None = Field(
        description="the plan; null for a model without iterations"
    )
    num_evaluations: Size | None = Field(
        description="block evaluations per token, of source and target together"
    )
    cache_policy: str | None
    plans: list[ListedPlan] = Field(default=[], description="those that an elastic student was trained for")


def summarize_model(folder: str | Path) -> ModelSummary:
    """Summarize a model folder by its config.json and its tensors' shapes. Raises InputError as `read_config`."""
    config = read_config(folder)
    model_type, num_encoder_layers = config.get("model_type"), None
    num_layers, plan = config.get("num_layers") or config.get("num_hidden_layers"), None
    if model_type in ("iiet", "pcformer", "iiet_seq2seq", "pcformer_seq2seq"):
        plan = _read_plan(config, "", folder)
    if plan is not None and str(model_type).endswith("_seq2seq"):
        encoder = _read_plan(config, "encoder_", folder) or []
        plan, num_encoder_layers = encoder + plan, len(encoder)
        num_layers = len(plan)
    evaluations = num_layers
    if plan is not None:
        order = config.get("predictor_stages") or config.get("predictor_order") or 1
        evaluations = sum(plan) + len(plan) * check_fields(
            Size, order, f"{folder}/config.json: predictor_order"
        )
    fields = {
        "folder": str(folder),
        "num_layers": num_layers,
        "num_encoder_layers": num_encoder_layers,
        "num_parameters": sum(math.prod(shape) for shape in weight_shapes(folder).values()),
        "num_iterations": plan,
        "num_evaluations": evaluations,
        "plans": config.get("plans") or [],
        **{name: config.get(name) for name in ("model_type", "hidden_size", "vocab_size", "cache_policy")},
    }
    return check_fields(ModelSummary, fields, f"{folder}/config.json")


def _read_plan(config: dict[str, Any], half: str, folder: str | Path) -> list[int] | None:
    plan, num_layers = config.get(f"num_{half}iterations"), config.get(f"num_{half}layers")
    if isinstance(plan, int) and isinstance(num_layers, int):
        plan = [plan] * num_layers
    if not isinstance(plan, list):
        return None
    return check_fields(list[Iterations], plan, f"{folder}/config.json: num_{half}iterations")
