"""Trials of plans on the untrained teacher: the true loss by dropping iterations.

Legend: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.checkpoints import choose_device, choose_dtype, label_models, load_identified
from iiad.data import PairLimits, model_inputs, resolve_inputs
from iiad.errors import InputError
from iiad.influence.averages import average
from iiad.influence.batches import IteratedModel, prepare_batch, require_iterations
from iiad.influence.calibration import as_data_sets, draw_calibration, numbered_batches
from iiad.influence.metrics import FullOutput
from iiad.influence.profile import Profile, ProfileSettings
from iiad.memory import memory_explained
from iiad.planning.verification import Candidate, Verification, VerificationSettings, verified
from iiad.progress import print_status, progress

__all__ = ["measure_truncations", "verify_plans"]


@torch.no_grad()
def measure_truncations(
    model: IteratedModel,
    batches: Iterable[Mapping[str, Tensor]],
    plans: Sequence[Sequence[int]],
    advance: Callable[[float], None] | None = None,
    origins: Sequence[int] | None = None,
    extrapolations: Sequence[Sequence[Sequence[float]] | None] | None = None,
) -> tuple[float, list[dict[str, float | None]]]:
    """Run plans and compare their outputs with the full model's.

    batches: as for `profile_batch`, as blocks of text, rows or pairs give them.
    plans: r_t for each layer; equal plans are run once. extrapolations: for each plan the coefficients of its
        layers; None: what the model has for these stops. origins: the data set of each batch, for the standard
        errors; default: all of one.
    Returns the full model's loss and for each plan `kl`, the mean over all tokens of KL(full || truncated), `loss`,
    the mean growth of the NLL of the predicted ones, in nats, and the standard errors `kl_error` and `loss_error`
    (None for one batch). The model keeps its own plan. Raises InputError for no batches and for NaN or infinity.
    """
    fields = {name: getattr(model.config, name) for name in (*model.config.plan_fields, "extrapolation")}
    coefficients = [found and tuple(map(tuple, found)) for found in extrapolations or [None] * len(plans)]
    cuts = list(zip(map(tuple, plans), coefficients, strict=True))
    different = list(dict.fromkeys(cuts))
    records, weights = [], []
    try:
        for number, batch in enumerate(batches, 1):
            where = f"batch {number}"
            batch = prepare_batch(model, batch, where)
            model.reconfigure(**fields)
            full = FullOutput(model.lm_head, _final_states(model, batch), batch, where)
            found = []
            for plan, b in different:
                model.reconfigure(**fields)
                model.set_num_iterations(plan, b)
                found.append(full.harms(_final_states(model, batch)[None], f"{where}: plan {list(plan)}"))
            # Shaped as a profile's scores: metric -> for each plan one number.
            records.append(
                {name: [harm[name] for harm in found] for name in ("kl", "loss")} | {"full": [[full.loss]]}
            )
            weights.append(int(full.asked.sum()))
            if advance is not None:
                advance(weights[-1])
    finally:
        model.reconfigure(**fields)
    if not records:
        raise InputError("batches: expected at least one, got none")
    means, errors = average(records, weights, origins)
    of_cut: dict[Any, dict[str, float | None]] = {}
    for k, cut in enumerate(different):
        of_cut[cut] = {name: means[name][k][0] for name in ("kl", "loss")}
        for name in ("kl", "loss"):
            of_cut[cut][f"{name}_error"] = errors[name][k][0] if len(weights) > 1 else None
    return means["full"][0][0], [of_cut[cut] for cut in cuts]


def _final_states(model: IteratedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Final states (B, T, D), after the norm."""
    states: Tensor = model.base_model(**model_inputs(batch), use_cache=False).last_hidden_state
    return states


def verify_plans(
    model: str | Path,
    data: Sequence[str] | Sequence[Sequence[str]],
    profile: Profile,
    metric: str,
    plans: Sequence[Candidate],
    *,
    text_field: str = "text",
    block_size: int | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
    limits: PairLimits | None = None,
) -> Verification:
    """Run plans on the profiled teacher, untrained, on held-out text.

    model, data, text_field, device, dtype, cache_dir, limits: as for `measure_influence`, but of `stdlib` the
    validation split is read. block_size, batch_size, max_tokens, seed: default, the profile's.

    Raises InputError for another model than the profile's, where model, text or a value cannot be used, and where
    memory runs out.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    given = {"block_size": block_size, "batch_size": batch_size, "max_tokens": max_tokens, "seed": seed}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = ProfileSettings(**{**profile.settings.model_dump(), **changes, "dtype": dtype})
    if not plans:
        raise InputError(
            "plans: expected at least one that drops an iteration, got none but the teacher's own"
        )
    for names in as_data_sets(data):
        resolve_inputs(names, "validation")  # a missing file is found before a model is loaded
    teacher, identity = load_identified(model, device, dtype, cast=True, kind=None)
    require_iterations(teacher)
    if identity.fingerprint != profile.model.fingerprint:
        raise InputError(
            f"model: expected the one that was profiled, {profile.model.name} ({profile.model.fingerprint[:12]}), "
            f"got {model} ({identity.fingerprint[:12]})"
        )
    teacher.follow_plan(profile.model)
    sets = draw_calibration(model, data, settings, text_field, cache_dir, "validation", limits)
    batches = (batch for _, batch in numbered_batches(sets, settings.batch_size))
    origins = [k for k, part in enumerate(sets) for _ in range(0, len(part.indices), settings.batch_size)]
    num_tokens = sum(part.identity.num_tokens for part in sets)
    num_plans = len({(*plan.num_iterations, str(plan.extrapolation)) for plan in plans})
    print_status(f"{num_plans} plans on {num_tokens:,} tokens, untrained")
    where = f"verifying {label_models([model])[0]} on {device}"
    size = (settings.batch_size, settings.block_size)
    remedies = ("a smaller batch", "shorter blocks", "bfloat16")
    with (
        progress("verifying", num_tokens, "tokens") as advance,
        memory_explained(where, teacher, *size, cached=False, remedies=remedies),
    ):
        budgets = [plan.num_iterations for plan in plans]
        loss, measured = measure_truncations(
            teacher, batches, budgets, advance, origins, [plan.extrapolation for plan in plans]
        )
    return Verification(
        model=identity,
        data=[part.identity for part in sets],
        settings=VerificationSettings(**settings.model_dump(exclude={"extrapolate"}), device=device),
        metric=metric,
        profile_fingerprint=profile.fingerprint,
        loss=loss,
        plans=[verified(plan, profile, metric, **found) for plan, found in zip(plans, measured, strict=True)],
    )
