"""Values that fields of a configuration accept, each looked at by itself; the most is beyond what any model has."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

__all__ = ["ACCEPTED", "AcceptedValues", "whole"]

AcceptedValues = tuple[Callable[[Any], bool], str]
"""A test of a value, and what passes it in words."""


def whole(least: int, most: int) -> AcceptedValues:
    """Accept the whole numbers from least to most."""
    return lambda value: _is_whole(value) and least <= value <= most, f"a whole number from {least} to {most}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_between(value: Any, above: float, below: float) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and above < value < below


def _one_or_more(least: int, most: int) -> AcceptedValues:
    """Accept a whole number from least to most, and lists of them."""
    accepts, words = whole(least, most)
    return lambda value: all(map(accepts, _as_list(value))), f"{words} or a list of them"


def _is_tolerance(value: Any) -> bool:
    return _is_between(value, -1, 1e6) and value >= 0


def _as_list(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else [value]


def _is_rope(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    kind, theta = value.get("rope_type", "default"), value.get("rope_theta", 1)
    known = isinstance(kind, str) and kind in {"default", *ROPE_INIT_FUNCTIONS}
    # Heads are rotated whole.
    return known and _is_between(theta, 0, 1e12) and value.get("partial_rotary_factor", 1) == 1


def _is_table(value: Any) -> bool:
    """Accept a list of lists of lists of numbers."""
    for _ in range(2):
        if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
            return False
        value = [each for part in value for each in part]
    return all(_is_between(number, -1000, 1000) for number in value)


_OF_MEMBERS = {"name", "num_iterations", "nll", "accuracy", "tolerance", "cut"}


def _is_family(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 64 and all(map(_is_member, value))


def _is_member(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() - _OF_MEMBERS:
        return False
    name, plan = value.get("name"), value.get("num_iterations")
    named = isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9.-]{0,39}", name)
    counted = isinstance(plan, list) and plan and all(_is_whole(r) and 0 <= r <= 1000 for r in plan)
    figures = _is_between(value.get("nll", 0), -1, 1e6) and _is_between(value.get("accuracy", 0), -1, 2)
    stops = value.get("tolerance", [])
    stops = isinstance(stops, list) and all(each is None or _is_tolerance(each) for each in stops)
    cut = value.get("cut", 0)
    return bool(named and counted and figures and stops and _is_between(cut, -1, 2) and 0 <= cut <= 1)


_SWITCH: AcceptedValues = (lambda value: isinstance(value, bool), "true or false")
_SMALL: AcceptedValues = (lambda value: _is_between(value, 0, 1e6), "a number above 0 and below 1,000,000")

ACCEPTED: dict[str, AcceptedValues] = {
    "vocab_size": whole(1, 2**24),
    "hidden_size": whole(1, 2**20),
    "intermediate_size": whole(1, 2**22),
    "num_layers": whole(1, 2**12),
    "num_attention_heads": whole(1, 2**14),
    "num_key_value_heads": whole(1, 2**14),
    "head_dim": whole(2, 2**14),
    "hidden_act": (
        lambda value: isinstance(value, str) and value in ACT2FN,
        "an activation of transformers'",
    ),
    "max_position_embeddings": whole(1, 2**30),
    "initializer_range": _SMALL,
    "rms_norm_eps": _SMALL,
    "layer_norm_eps": _SMALL,
    "pad_token_id": whole(-1, 2**24),
    "bos_token_id": whole(-1, 2**24),
    "eos_token_id": _one_or_more(-1, 2**24),
    "rope_parameters": (_is_rope, "rope_type of transformers', rope_theta above 0 and no partial rotation"),
    "attention_dropout": (lambda value: _is_between(value, -1, 1) and value >= 0, "a number in [0, 1)"),
    "num_iterations": _one_or_more(0, 1000),
    "max_num_iterations": whole(0, 1000),
    "extrapolation": (_is_table, "for each layer a list of lists of numbers between -1000 and 1000"),
    "plans": (
        _is_family,
        "a list of plans, each with a name, num_iterations and perhaps nll, accuracy, tolerance, cut",
    ),
    "tolerance": (
        lambda value: all(each is None or _is_tolerance(each) for each in _as_list(value)),
        "a number from 0, below 1,000,000, or a list of them and of None",
    ),
    "cache_policy": (lambda value: value in ("exact", "shared"), "'exact' or 'shared'"),
}
ACCEPTED |= dict.fromkeys(
    "use_cache tie_word_embeddings attention_bias attention_output_bias mlp_bias history relaxation qk_norm".split(),
    _SWITCH,
)
