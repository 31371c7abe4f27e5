"""The profiler: run a teacher on calibration text and score each of its iterations.

Legend: B batch, T tokens, D model width, L layers, V vocabulary, t the layer (1-based as in the paper, from 0 in
code), i the iteration, r_t the iterations of layer t, H_t its state, x_{t+1} its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from iiad.artefacts import DataIdentity, ModelIdentity
from iiad.errors import InputError
from iiad.models import IIETForCausalLM, IIETModel

from .metrics import ITERATE_METRICS, OUTPUT_METRICS
from .profile import METRICS, Profile, ProfileSettings

__all__ = ["BatchScores", "make_profile", "num_profile_evaluations", "profile_model", "require_iterations"]

Scores = dict[str, list[list[float]]]


@dataclass(frozen=True)
class BatchScores:
    """What one batch says: metric -> for each layer the scores of its r_t iterations, means over num_tokens."""

    num_tokens: int
    scores: Scores


@dataclass(frozen=True)
class _SolvedLayer:
    """One layer of the full pass: H_0 to H_{t-1}, what its corrector prepared, z(0) to z(r_t)."""

    history: tuple[Tensor, ...]
    known: tuple[Tensor, Tensor]
    iterates: list[Tensor]


@torch.no_grad()
def profile_model(
    model: IIETForCausalLM,
    batches: Iterable[Tensor],
    metrics: Sequence[str] = ("kl", "cosine"),
    advance: Callable[[float], None] | None = None,
) -> list[BatchScores]:
    """Score every iteration of a model, one batch after the other.

    Stopping layer t after iteration i sets H_t = z(i); all other layers run in full. An output metric (`kl`) runs
    the model so for i = 0, ..., r_t - 1, one stop at a time, and only the layers above t: z(i) is at hand from
    the one full pass (`num_profile_evaluations` counts). Stopping at r_t is the full model. An iterate metric
    (`cosine`) needs the full pass alone.

    Kept of a batch while its stops are run: the full logits (B, T, V) and those of one stop; for each layer its
    1 + r_t iterates and two prefix sums of the history (plain models: the iterates alone), each (B, T, D).

    Args:
        model: an IIET or PCformer with at least one iteration, in evaluation mode. It is not changed.
        batches: token ids, each (B, T), without padding; moved to the model's device.
        metrics: names from `METRICS`.
        advance: called with the tokens of each batch when it is done.

    Raises:
        InputError: a model without iterations or in training mode, an unknown metric or none, no batches, a batch
            that does not hold token ids of the model, logits with NaN or infinity (the message names the batch).
    """
    require_iterations(model)
    if model.training:
        raise InputError("model: found in training mode; accepted: evaluation mode, model.eval()")
    _require_metrics(metrics)
    results = []
    for number, batch in enumerate(batches, 1):
        where = f"batch {number}"
        _require_token_ids(model, batch, where)
        results.append(
            BatchScores(batch.numel(), _score_batch(model, batch.to(model.device), metrics, where))
        )
        if advance is not None:
            advance(batch.numel())
    if not results:
        raise InputError("batches: found none; accepted: at least one")
    return results


def make_profile(
    batches: Sequence[BatchScores], model: ModelIdentity, data: DataIdentity, settings: ProfileSettings
) -> Profile:
    """Average the batches, weighted by their tokens, and bind them to where they came from.

    With p_b a batch's share of the tokens and n batches, the standard error of the mean m is
    sqrt(n / (n - 1) * sum_b p_b^2 (s_b - m)^2) (ours): for equal batches their standard deviation / sqrt(n).
    """
    total = sum(batch.num_tokens for batch in batches)
    shares = [batch.num_tokens / total for batch in batches]
    means: Scores = {}
    errors: Scores = {}
    for metric in batches[0].scores:
        columns = [
            [_mean_and_error(shares, values) for values in zip(*layer, strict=True)]
            for layer in zip(*(batch.scores[metric] for batch in batches), strict=True)
        ]
        means[metric] = [[mean for mean, _ in layer] for layer in columns]
        errors[metric] = [[error for _, error in layer] for layer in columns]
    return Profile(
        model=model,
        data=data,
        settings=settings,
        num_batches=len(batches),
        scores=means,
        standard_errors=errors if len(batches) > 1 else None,
    )


def num_profile_evaluations(model: ModelIdentity, metrics: Sequence[str] = ("kl", "cosine")) -> int:
    """Block evaluations per token that `profile_model` costs.

    The full pass, and with an output metric also sum over t of r_t * (evaluations of the layers above t).
    """
    costs = [model.num_start_evaluations + r for r in model.num_iterations]
    stops = sum(r * sum(costs[t + 1 :]) for t, r in enumerate(model.num_iterations))
    return sum(costs) + (stops if any(metric in OUTPUT_METRICS for metric in metrics) else 0)


def require_iterations(model: Any) -> None:
    """Raise InputError for a model that has no iterations, whatever its kind."""
    if not isinstance(model, IIETForCausalLM) or not any(model.config.iterations):
        raise InputError(
            f"model: found type {model.config.model_type!r} and no iterations, so no influence to measure; "
            "accepted: an iiet or pcformer with an iteration in at least one layer"
        )


def _require_metrics(metrics: Sequence[str]) -> None:
    unknown = next((metric for metric in metrics if metric not in METRICS), None)
    if unknown is not None or not metrics:
        raise InputError(f"metric: found {unknown or 'none'!r}; accepted: {', '.join(METRICS)}")


def _require_token_ids(model: IIETForCausalLM, batch: Tensor, where: str) -> None:
    if batch.dim() != 2 or batch.numel() == 0 or batch.dtype not in (torch.int64, torch.int32):
        shape = f"{batch.dtype} of shape {tuple(batch.shape)}"
        raise InputError(f"{where}: found {shape}; accepted: token ids, int64 or int32 of shape (B, T)")
    lowest, highest = int(batch.min()), int(batch.max())
    if lowest < 0 or highest >= model.config.vocab_size:
        found = lowest if lowest < 0 else highest
        raise InputError(f"{where}: found token id {found}; accepted: 0 to {model.config.vocab_size - 1}")


def _score_batch(model: IIETForCausalLM, input_ids: Tensor, metrics: Sequence[str], where: str) -> Scores:
    """Scores of one batch (B, T)."""
    hidden_states, context = model.model.prepare(input_ids)
    solved, last = _solve_layers(model.model, hidden_states, context)
    full = _logits(model, last, where)
    scores: Scores = {metric: [] for metric in metrics}
    local = [metric for metric in scores if metric in ITERATE_METRICS]
    exact = [metric for metric in scores if metric in OUTPUT_METRICS]
    for t, layer in enumerate(solved):
        corrector = model.model.layers[t].corrector
        outputs = [corrector.output(z, layer.known) for z in layer.iterates]  # x_{t+1}(0), ..., x_{t+1}(r_t)
        for metric in local:
            scores[metric].append([ITERATE_METRICS[metric](a, b) for a, b in pairwise(outputs)])
        harms: dict[str, list[float]] = {metric: [] for metric in exact}
        for i in range(len(outputs) - 1) if exact else ():
            at = f"{where}: layer {t + 1} stopped after {i} iterations"
            history = (*layer.history, layer.iterates[i])
            stopped = _logits(model, model.model.run_layers(outputs[i], history, start=t + 1, **context), at)
            for metric in exact:
                harms[metric].append(OUTPUT_METRICS[metric](full, stopped, input_ids))
            del stopped  # else it would live on while the next stop's are computed
        for metric in exact:
            scores[metric].append([a - b for a, b in pairwise([*harms[metric], 0.0])])
    return scores


def _solve_layers(
    model: IIETModel, hidden_states: Tensor, context: dict[str, Any]
) -> tuple[list[_SolvedLayer], Tensor]:
    """The full pass from H_0 (B, T, D), layer by layer: all its iterates, and the final hidden states (B, T, D)."""
    history: tuple[Tensor, ...] = (hidden_states,)
    solved = []
    for layer in model.layers:
        known = layer.corrector.prepare(hidden_states, history, layer.num_iterations)
        iterates = layer.iterates(hidden_states, known, model.predictor, **context)
        solved.append(_SolvedLayer(history, known, iterates))
        hidden_states = layer.corrector.output(iterates[-1], known)
        if layer.corrector.uses_history:
            history = (*history, iterates[-1])
    return solved, model.norm(hidden_states)


def _logits(model: IIETForCausalLM, hidden_states: Tensor, where: str) -> Tensor:
    logits = model.lm_head(hidden_states)  # (B, T, D) -> (B, T, V)
    if not logits.isfinite().all():
        raise InputError(f"{where}: the model's logits hold NaN or infinity; accepted: finite logits")
    return logits


def _mean_and_error(shares: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; 0 for one batch, which has none."""
    n = len(values)
    mean = math.fsum(p * value for p, value in zip(shares, values, strict=True))
    spread = math.fsum((p * (value - mean)) ** 2 for p, value in zip(shares, values, strict=True))
    return mean, math.sqrt(spread * n / (n - 1)) if n > 1 else 0.0
