"""Influence maps and plans as grids of a page: layers down, iterations across."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from iiad.identities import ModelIdentity
from iiad.influence.profile import Profile
from iiad.planning.costs import LOSS_UNITS
from iiad.planning.plan import Plan

from .canvas import linear_part
from .page_colours import NUM_LEVELS
from .page_parts import MOST_COLUMNS, MOST_ROWS, Cell, Grid
from .pictures import LABELS, short_number
from .tables import format_coefficients

__all__ = ["influence_map", "layer_names", "plan_grid"]

MOST_STARTS = 4
"""Start evaluations of a layer that are shown; PCformer has up to 4."""


def layer_names(model: ModelIdentity) -> list[str]:
    """Name the layers that a page shows."""
    return [model.layer_name(t) for t in range(min(MOST_ROWS, len(model.num_iterations)))]


def influence_map(profile: Profile, metric: str) -> Grid:
    """Make the map of one metric's scores, each with its standard error on hover."""
    scores, errors = profile.scores_of(metric), (profile.standard_errors or {}).get(metric)
    levels = _Levels(list(chain.from_iterable(scores)))
    unit = LOSS_UNITS.get(metric, "")
    most = min(MOST_COLUMNS, max(map(len, scores)))
    rows = []
    for t, (name, layer) in enumerate(zip(layer_names(profile.model), scores, strict=False)):
        cells = [Cell(name)]
        for i, score in enumerate(layer[:most]):
            error = f" ± {errors[t][i]:.2g}" if errors else ""
            tip = f"{name}, iteration {i + 1}: {score:.4g}{error} {unit}".rstrip()
            cells.append(Cell(short_number(score), score, tip, levels(score)))
        rows.append([*cells, *[Cell("")] * (most - len(layer))])
    headings = ["layer", *(f"iteration {i}" for i in range(1, most + 1))]
    return Grid(f"Influence by {LABELS.get(metric, metric)}", headings, rows, "map", len(scores) - len(rows))


class _Levels:
    """Class of a score: `below` where it is negative, else `level-N` from 0, linear or, over decades, logarithmic."""

    def __init__(self, scores: Sequence[float]):
        positive = [score for score in scores if score > 0]
        self.top, self.bottom = max(positive, default=1.0), linear_part(positive)

    def __call__(self, score: float) -> str:
        if score < 0:
            return "below"
        share = score / self.top
        if self.bottom is not None:
            span = math.log(self.top / self.bottom)
            share = math.log(score / self.bottom) / span if score > self.bottom else 0.0
        return f"level-{min(NUM_LEVELS - 1, int(share * NUM_LEVELS))}"


def plan_grid(plan: Plan, caption: str) -> Grid:
    """Make the picture of a plan: the model from embedding to head, each layer with what it keeps and drops."""
    model = plan.teacher
    starts, most = min(model.num_start_evaluations, MOST_STARTS), min(MOST_COLUMNS, max(model.num_iterations))
    encoder, names = model.num_encoder_layers, layer_names(model)
    rows = [_outer_row("embedding of the source" if encoder else "embedding", starts + most)]
    for t, (name, r, whole) in enumerate(zip(names, plan.num_iterations, model.num_iterations, strict=False)):
        if encoder and t == encoder:
            rows.append(_outer_row("embedding of the target", starts + most))
        cells = [Cell(name), *[Cell("start", tip=f"{name}: start evaluation", style="start")] * starts]
        for i in range(1, min(whole, most) + 1):
            kept = "kept" if i <= r else "dropped"
            cells.append(Cell(str(i), tip=f"{name}, iteration {i}: {kept}", style=kept))
        b = plan.coefficients[t]
        kept = f"{r} of {whole}" + (f", b {format_coefficients(b)}" if b else "")
        rows.append([*cells, *[Cell("")] * (most - whole), Cell(kept, r)])
    rows.append(_outer_row("norm and head", starts + most))
    headings = ["layer", *["start"] * starts, *map(str, range(1, most + 1)), "kept"]
    return Grid(caption, headings, rows, "plan", len(model.num_iterations) - len(names))


def _outer_row(name: str, width: int) -> list[Cell]:
    return [Cell(name, style="outer"), *[Cell("")] * (width + 1)]
