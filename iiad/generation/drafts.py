"""Drafts: another model of the same tokenizer, or the teacher's own weights at a smaller plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iiad.checkpoints import load_identified, read_limits
from iiad.conversion.weights import copy_sharing_tensors
from iiad.data import load_tokenizer
from iiad.errors import InputError, one_line
from iiad.identities import ModelIdentity
from iiad.models import IIETConfig
from iiad.planning.binding import OwnPlan, bind_plan
from iiad.planning.plan import Plan

__all__ = [
    "Draft",
    "candidate_plans",
    "check_draft",
    "check_draft_options",
    "load_draft",
    "require_same_vocabulary",
    "self_draft",
]

# Fields of a generation_config that change which token is next or when a text ends, and what leaves both alone.
_OFF: dict[str, tuple[Any, ...]] = {
    "forced_bos_token_id forced_eos_token_id top_h max_time exponential_decay_length_penalty watermarking_config "
    "dola_layers": (None,),
    "bad_words_ids suppress_tokens begin_suppress_tokens stop_strings sequence_bias": (None, [], {}),
    "token_healing": (None, False),
    "no_repeat_ngram_size encoder_no_repeat_ngram_size min_length min_new_tokens min_p penalty_alpha "
    "epsilon_cutoff eta_cutoff": (None, 0),
    "repetition_penalty encoder_repetition_penalty guidance_scale typical_p num_beams": (None, 1),
}
_NEUTRAL = {name: neutral for names, neutral in _OFF.items() for name in names.split()}


@dataclass(frozen=True)
class Draft:
    """A model that proposes tokens to a teacher.

    Attributes:
        model: a causal language model of the teacher's vocabulary, in evaluation mode, on the teacher's device.
        length: the most tokens to draft at a time; None: measured before the first token.
        plans: r_t for each layer, for each plan that a self-draft may take, the best of which is measured; empty:
            the plan that the model has.
    """

    model: Any
    length: int | None = None
    plans: Sequence[Sequence[int]] = ()


def self_draft(
    teacher: Any,
    num_iterations: Sequence[int] | int = 0,
    extrapolation: Sequence[Sequence[float]] | None = None,
    tolerance: Sequence[float | None] | None = None,
) -> Any:
    """Make a second model on the teacher's own parameters, under a smaller plan (ours).

    Parameters and buffers are the teacher's tensors: no memory, and what changes one changes the other. Modules and
    configuration are copied, so that the teacher's own plan stays as it is. num_iterations: r_t for each layer, or
    one number for all. extrapolation, tolerance: of each layer there; by default no token stops by itself. Raises
    InputError for a teacher without iterations, or a plan that it cannot run.
    """
    _require_iterations(teacher)
    draft = copy_sharing_tensors(teacher)
    try:
        budget = num_iterations if isinstance(num_iterations, int) else list(num_iterations)
        draft.reconfigure(**draft.config.split_plan(budget, extrapolation), tolerance=tolerance)
    except ValueError as error:
        raise InputError(f"draft plan: {one_line(error)}") from None
    return draft


def candidate_plans(teacher: Any) -> list[list[int]]:
    """List plans for a self-draft to try, cheapest first (ours).

    Those that an elastic teacher was trained for. Of others no iterations at all, and one iteration in the first 1,
    2, L / 2 and L layers: in the profiles seen, the first layers' first iterations are worth most. At most the
    teacher's own in any layer, and not the teacher's plan.
    Raises InputError for a teacher without iterations.
    """
    if trained := _trained_plans(teacher):
        return trained
    own = teacher.config.iterations
    plans: list[list[int]] = []
    for first in (0, 1, 2, len(own) // 2, len(own)):
        plan = [min(r, int(layer < first)) for layer, r in enumerate(own)]
        if plan not in plans and sum(plan) < sum(own):
            plans.append(plan)
    return sorted(plans, key=sum)


def _trained_plans(teacher: Any) -> list[list[int]]:
    """Return the plans that an elastic teacher lists and that are smaller than the one it runs, cheapest first.

    Plans with tolerances are left out. Raises InputError for a teacher without iterations.
    """
    _require_iterations(teacher)
    own = sum(teacher.config.iterations)
    plans = getattr(teacher.config, "plans", None) or []
    listed = [list(plan["num_iterations"]) for plan in plans if "tolerance" not in plan]
    return sorted((plan for plan in listed if sum(plan) < own), key=sum)


def check_draft_options(
    teacher: str | Path, draft: str | Path | None, draft_plan: object, length: int | None
) -> None:
    """Raise InputError for options that do not go together, or a draft of another vocabulary. Loads no model."""
    if draft is None and (draft_plan is not None or length is not None):
        raise InputError("draft plan and length: expected a draft with them, got none")
    if draft_plan is not None and draft != "self":
        raise InputError(f"draft plan: expected the draft self with it, got {draft}")
    _check_length(length)
    if draft is not None and draft not in ("self", "auto"):
        read_limits(draft)  # that there is such a model
        require_same_vocabulary(load_tokenizer(teacher), load_tokenizer(draft), teacher, draft)


def require_same_vocabulary(tokenizer: Any, other: Any, name: str | Path, other_name: str | Path) -> None:
    """Raise InputError, naming both and the first token that differs, unless every id means the same token."""
    own, theirs = ({i: token for token, i in each.get_vocab().items()} for each in (tokenizer, other))
    for i in sorted(own.keys() | theirs.keys()):
        if own.get(i) != theirs.get(i):
            expected, got = (repr(ids[i]) if i in ids else "none" for ids in (own, theirs))
            raise InputError(
                f"draft: expected the vocabulary of {name}, got that of {other_name}: token {i}: expected "
                f"{expected}, got {got}"
            )


def load_draft(
    draft: str | Path,
    teacher: Any,
    identity: ModelIdentity,
    *,
    plan: Plan | OwnPlan | None = None,
    length: int | None = None,
    dtype: str = "float32",
) -> Draft:
    """Make the draft that `iiad generate --draft` names, for a loaded teacher of that identity.

    draft: "self", the teacher's own weights at `plan`, by default the smallest that they were trained for or, where
    none is listed, without iterations; "auto", the same at the best of `candidate_plans`; else a model folder or hub
    name, whose weights are loaded in `dtype`. length: the most tokens to draft at a time; None: measured when
    generating.
    Raises InputError: a teacher without iterations, a plan for another teacher, a folder that cannot be loaded.
    """
    _require_causal(teacher)
    if draft == "auto":
        return Draft(self_draft(teacher), length, candidate_plans(teacher))
    if draft != "self":
        return Draft(load_identified(draft, str(teacher.device), dtype, cast=True)[0], length)
    if plan is None:
        return Draft(self_draft(teacher, next(iter(_trained_plans(teacher)), 0)), length)
    found = bind_plan(plan, identity)
    return Draft(self_draft(teacher, found.num_iterations, found.coefficients, found.tolerance), length)


def check_draft(teacher: Any, draft: Draft, num_tokens: int) -> None:
    """Raise InputError unless the draft can follow the teacher over num_tokens tokens, prompt and new ones.

    Another vocabulary, too few positions, or a generation_config that changes the teacher's choices.
    """
    for model in (teacher, draft.model):
        _require_causal(model)
    size, own = (model.get_input_embeddings().weight.shape[0] for model in (draft.model, teacher))
    if size != own:
        raise InputError(f"draft: expected a vocabulary of {own}, the teacher's, got {size}")
    _check_length(draft.length)
    limit = getattr(draft.model.config, "max_position_embeddings", None)
    if limit is not None and num_tokens > limit:
        raise InputError(
            f"prompt and new tokens: expected at most {limit} together, the draft's positions, got {num_tokens}"
        )
    for name, neutral in _NEUTRAL.items():
        setting = getattr(teacher.generation_config, name, None)
        if setting not in neutral:
            expected = " or ".join(map(str, neutral))
            raise InputError(f"generation_config.{name}: expected {expected} with a draft, got {setting!r}")


def _require_causal(model: Any) -> None:
    if model.config.is_encoder_decoder:
        raise InputError(f"draft: expected causal models, got an encoder-decoder, {model.config.model_type}")


def _check_length(length: int | None) -> None:
    if length is not None and length < 1:
        raise InputError(f"draft length: expected at least 1, got {length}")


def _require_iterations(teacher: Any) -> None:
    """Raise InputError for a teacher without iterations, whose own draft could leave nothing out."""
    if not isinstance(teacher.config, IIETConfig) or not any(teacher.config.iterations):
        raise InputError(
            "draft: expected a teacher with iterations, which its own draft leaves out, or a model folder as the "
            f"draft, got a {teacher.config.model_type} without iterations"
        )
