"""Plans run on the untrained teacher: what dropping iterations truly costs.

Legend: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiad.checkpoints import choose_device, choose_dtype, label_models, load_identified
from iiad.data import resolve_inputs
from iiad.errors import InputError
from iiad.influence.averages import average
from iiad.influence.measurement import as_data_sets, draw_calibration
from iiad.influence.outputs import FullOutput
from iiad.influence.profile import Profile, ProfileSettings
from iiad.influence.profiler import require_iterations
from iiad.memory import memory_explained
from iiad.models import IIETForCausalLM
from iiad.planning.verification import Candidate, Verification, VerificationSettings, verified
from iiad.progress import print_status, progress

__all__ = ["measure_truncations", "verify_plans"]


@torch.no_grad()
def measure_truncations(
    model: IIETForCausalLM,
    batches: Iterable[Tensor],
    plans: Sequence[Sequence[int]],
    advance: Callable[[float], None] | None = None,
    origins: Sequence[int] | None = None,
) -> tuple[float, list[dict[str, float | None]]]:
    """The full model's loss, and for each plan `kl`, `kl_error`, `loss`, `loss_error`: means, standard errors.

    origins: the data set of each batch, for the standard errors; default: all of one.
    batches: token ids, each (B, T), without padding. plans: r_t for each layer; a plan that is there twice is run
    once. The model is put back to its own plan. kl: mean over all tokens of KL(full || truncated); loss: the mean
    growth of the NLL of the predicted ones, in nats; one batch has no errors (None). Raises InputError for no batches
    and for NaN or infinity.
    """
    own = list(model.config.iterations)
    different = list(dict.fromkeys(tuple(plan) for plan in plans))
    losses, harms, weights = [], [], []
    try:
        for number, batch in enumerate(batches, 1):
            input_ids = batch.to(model.device)

            def run(plan: Sequence[int], input_ids: Tensor = input_ids) -> Any:
                model.set_num_iterations(plan)
                return model.model(input_ids=input_ids, use_cache=False).last_hidden_state  # (B, T, D)

            full = FullOutput(model.lm_head, run(own), input_ids, f"batch {number}")
            found = [
                full.harms(run(plan)[None], f"batch {number}: plan {list(plan)}")[0] for plan in different
            ]
            harms.append({name: [[harm[name] for harm in found]] for name in ("kl", "loss")})
            losses.append(full.loss)
            weights.append(input_ids.numel())
            if advance is not None:
                advance(input_ids.numel())
    finally:
        model.set_num_iterations(own)
    if not losses:
        raise InputError("batches: found none; accepted: at least one")
    means, errors = average(harms, weights, origins)
    several = len(weights) > 1
    of_plan = {
        plan: {
            "kl": means["kl"][0][k],
            "kl_error": errors["kl"][0][k] if several else None,
            "loss": means["loss"][0][k],
            "loss_error": errors["loss"][0][k] if several else None,
        }
        for k, plan in enumerate(different)
    }
    loss = sum(w * value for w, value in zip(weights, losses, strict=True)) / sum(weights)
    return loss, [of_plan[tuple(plan)] for plan in plans]


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
) -> Verification:
    """Run plans on the teacher that a profile was made of, untrained, on a text that should not be the profile's.

    model, data, text_field, device, dtype, cache_dir: as for `measure_influence`, but that `stdlib` is its validation
    split here. block_size, batch_size, max_tokens, seed: default: as the profile's.

    Raises InputError for another model than the profile's, where model, text or a value cannot be used, and where
    memory runs out.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    wanted = profile.settings
    settings = ProfileSettings(
        block_size=wanted.block_size if block_size is None else block_size,
        batch_size=wanted.batch_size if batch_size is None else batch_size,
        max_tokens=wanted.max_tokens if max_tokens is None else max_tokens,
        seed=wanted.seed if seed is None else seed,
        dtype=dtype,
    )
    if not plans:
        raise InputError(
            "plans: found none but the teacher's own; accepted: at least one that drops an iteration"
        )
    for names in as_data_sets(data):
        resolve_inputs(names, "validation")  # a missing file is found before a model is loaded
    teacher, identity = load_identified(model, device, dtype, cast=True)
    require_iterations(teacher)
    if identity.fingerprint != profile.model.fingerprint:
        raise InputError(
            f"model: found {model} ({identity.fingerprint[:12]}); accepted: the one that was profiled, "
            f"{profile.model.name} ({profile.model.fingerprint[:12]})"
        )
    teacher.set_num_iterations(profile.model.num_iterations)
    sets = draw_calibration(model, data, settings, text_field, cache_dir, split="validation")
    batches = (batch for part in sets for batch in part.batches(settings.batch_size))
    origins = [k for k, part in enumerate(sets) for _ in range(-(-len(part.indices) // settings.batch_size))]
    num_tokens = sum(part.num_tokens for part in sets)
    num_plans = len({tuple(plan.num_iterations) for plan in plans})
    print_status(f"{num_plans} plans on {num_tokens:,} tokens, untrained")
    where = f"verifying {label_models([model])[0]} on {device}"
    size = (settings.batch_size, settings.block_size)
    remedies = ("a smaller batch", "shorter blocks", "bfloat16")
    with (
        progress("verifying", num_tokens, "tokens") as advance,
        memory_explained(where, teacher, *size, cached=False, remedies=remedies),
    ):
        budgets = [plan.num_iterations for plan in plans]
        loss, measured = measure_truncations(teacher, batches, budgets, advance, origins)
    return Verification(
        model=identity,
        data=[part.identity for part in sets],
        settings=VerificationSettings(**settings.model_dump(), device=device),
        metric=metric,
        profile_fingerprint=profile.fingerprint,
        loss=loss,
        plans=[verified(plan, profile, metric, **found) for plan, found in zip(plans, measured, strict=True)],
    )
