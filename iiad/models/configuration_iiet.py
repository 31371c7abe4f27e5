"""Configuration of the Iterative Implicit Euler Transformer (IIET)."""

from __future__ import annotations

import difflib
import reprlib
import warnings
from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .field_values import ACCEPTED, AcceptedValues
from .stops import fits_extrapolation, fits_plans, with_stop

__all__ = ["IIETConfig"]

logger = logging.get_logger(__name__)


@strict
class IIETConfig(PreTrainedConfig):
    """Shape of an IIET: a Llama whose layers iterate. The defaults are the paper's 55M model.

    The iteration plan is part of the configuration: `num_iterations[t]` is how many fixed-point iterations layer
    t runs after its first evaluation, so layer t costs `1 + num_iterations[t]` evaluations of its block.

    Fields that Llama has mean what they mean there. The others:

    num_layers: L, the number of layers, each with weights of its own.
    num_iterations: r_t per layer, an int for all layers alike or a list of L ints.
    max_num_iterations: the most iterations that the weights provide for: the teacher's. A plan cannot exceed it.
        Default: the largest of `num_iterations`.
    history: True solves with the learned linear multistep history (paper, as released); False is the paper's
        plain equation y = x + f(y), which with no iterations is exactly a Llama.
    relaxation: learned damping of the plain iteration (ours); not available with history.
    layer_norm_eps: epsilon of the LayerNorms after each evaluation (history only).
    attention_output_bias: whether o_proj has a bias; None as `attention_bias`, which then is about all four
        projections of the attention, as in Llama. Qwen2: attention_bias true and this false.
    qk_norm: an RMSNorm over each head of the queries and of the keys, before their rotation (Qwen3).
    extrapolation: None or, for each layer, a list of which entry i, from 1, is for where the layer stops at iteration
        i: numbers b_1, b_2, ..., at most i + 1, by which it then hands on z(i) + b_1 (z(i) - z(i-1)) +
        b_2 (z(i-1) - z(i-2)) + ..., where z(-1) is its input (ours, a cut that needs no training). A missing entry
        is empty, and a layer that runs none or all of its iterations has none, so that each plan finds its own and
        the full one is the teacher.
    plans: None or the plans that an elastic student was trained for, the largest first: of each its name,
        num_iterations (for all layers, as in `iterations`), its tolerance, if any, and the cut expected of that, and,
        where they were measured, nll in nats a token and accuracy. A description, which changes nothing that the
        model computes.
    cache_policy: "exact", each evaluation attends to keys and values of its own (paper); "shared" (ours), all
        evaluations of a layer attend to those of its first one, in training, prefill and decoding alike, which saves
        the other evaluations' key and value projections and their place in the cache. Weights are trained for one
        of them: only `model.set_cache_policy` changes it.

    tolerance: None or how little a token's state may move, |z(i) - z(i-1)| / |z(i-1)|, for its iterations in a layer
        to stop there (ours); at most r_t are run, and one is. One number for all layers, or for each a number or
        None. Needs the shared cache policy, under which a token that stops leaves no hole in the cache, and no
        extrapolation.

    `num_hidden_layers` is derived: the number of cache slots, because transformers sizes its caches by that name.
    Under the exact policy it is the number of block evaluations, `num_evaluations`, under the shared one that of
    layers. The depth in weights is `num_layers`.

    Raises ValueError naming field, accepted values and what was found.
    """

    model_type = "iiet"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    accepted_values: ClassVar[dict[str, AcceptedValues]] = ACCEPTED

    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int = 1408
    num_layers: int = 12
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float = 0.0
    mlp_bias: bool = False
    num_iterations: int | list[int] = 3
    max_num_iterations: int | None = None
    history: bool = True
    relaxation: bool = False
    attention_output_bias: bool | None = None
    qk_norm: bool = False
    extrapolation: list | None = None
    plans: list | None = None
    cache_policy: str = "exact"
    tolerance: int | float | list | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_names(kwargs, self.transformers_version is not None)
        self.check_values()  # what follows computes with them
        n = self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = n
        if self.head_dim is None:
            accepted = f"a multiple of num_attention_heads ({n}), unless head_dim is given"
            self._require("hidden_size", self.hidden_size % n == 0, accepted)
            self.head_dim = self.hidden_size // n
        for field in self.plan_fields:
            setattr(self, field, list(self._plan_of(field)))
        if self.max_num_iterations is None:
            self.max_num_iterations = max(self.iterations, default=0)
        super().__post_init__(**kwargs)
        self.validate_architecture()  # `strict` calls it too, but wraps its errors

    @classmethod
    def _check_names(cls, unknown: dict[str, Any], is_saved: bool) -> None:
        """Refuse names nearly like a field's, which transformers would keep; warn where they come from a file."""
        if "num_hidden_layers" in unknown:
            found = reprlib.repr(unknown["num_hidden_layers"])
            raise ValueError(f"num_hidden_layers: expected num_layers instead (it is derived), got {found}")
        for name, value in unknown.items():
            near = difflib.get_close_matches(name, cls.__dataclass_fields__, n=1, cutoff=0.85)
            if near and not hasattr(cls, name):
                message = (
                    f"{name}: expected a known field (did you mean {near[0]}?), got {reprlib.repr(value)}"
                )
                if not is_saved:
                    raise ValueError(message)
                warnings.warn(f"{message}, which changes nothing", stacklevel=4)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a saved configuration, as from_pretrained does, with fields among the keywords in place of its own.

        Raises ValueError for what the constructor refuses, and for another cache_policy than the saved one.
        """
        given = {name: kwargs.pop(name) for name in cls.accepted_values.keys() & kwargs.keys()}
        cls._check_names(kwargs, is_saved=False)
        saved = config_dict.get("cache_policy", cls.cache_policy)
        found = given.get("cache_policy", saved)
        if found != saved:
            accepted = f"{saved!r}, which the weights are for (model.set_cache_policy is for training)"
            raise ValueError(f"cache_policy: expected {accepted}, got {found!r}")
        made = super().from_dict({**config_dict, **given}, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        if given.keys() & {*config.plan_fields, "tolerance"} and config.plans:
            config.warn_outside()
        return made

    def warn_outside(self) -> None:
        """Say if the plan is none of those that an elastic student was trained for."""
        plans, own = self.plans or [], (self.iterations, self.tolerance)
        names = [plan["name"] for plan in plans if (plan["num_iterations"], plan.get("tolerance")) != own]
        if len(names) == len(plans):
            logger.warning(
                f"num_iterations: {self.iterations} is none of the trained plans, {', '.join(names)}"
            )

    @property
    def plan_fields(self) -> dict[str, str]:
        """Fields that the plan is made of, in order, and those that say how many layers each is for."""
        return {"num_iterations": "num_layers"}

    @property
    def iterations(self) -> list[int]:
        """The plan: r_t for each of the L layers."""
        r = self.num_iterations
        return [r] * self.num_layers if isinstance(r, int) else r

    @property
    def stop_extrapolation(self) -> list[list[float]]:
        """b_1, b_2, ... for each of the L layers, at the stop that the plan gives it."""
        return [self.layer_extrapolation(place) for place in range(len(self.iterations))]

    def layer_extrapolation(self, place: int) -> list[float]:
        """Return b_1, b_2, ... of one layer, by its place in the plan, from 0."""
        row = self.extrapolation[place] if self.extrapolation else []
        r = self.iterations[place]
        return row[r - 1] if 0 < r <= len(row) else []

    def _plan_of(self, field: str) -> list[int]:
        r = getattr(self, field)
        return [r] * getattr(self, self.plan_fields[field]) if isinstance(r, int) else r

    def split_plan(
        self, num_iterations: int | Sequence[int], extrapolation: Sequence[Sequence[float]] | None = None
    ) -> dict[str, Any]:
        """Return the fields of a plan: r_t for each of the layers, or one number for all.

        extrapolation: b_1, b_2, ... of each layer at r_t; then also that field, with other stops' as they are.
        Raises ValueError for another number of layers.
        """
        sizes = [getattr(self, num_layers) for num_layers in self.plan_fields.values()]
        plan = [num_iterations] * sum(sizes) if isinstance(num_iterations, int) else list(num_iterations)
        if len(plan) != sum(sizes):
            accepted = f"an int or a list of {' + '.join(self.plan_fields.values())} ({sum(sizes)})"
            raise ValueError(f"num_iterations: expected {accepted}, got {reprlib.repr(num_iterations)}")
        rest = iter(plan)
        fields: dict[str, Any] = {
            field: list(islice(rest, size)) for field, size in zip(self.plan_fields, sizes, strict=True)
        }
        if extrapolation is not None:
            fields["extrapolation"] = self._extrapolation_at(plan, extrapolation)
        return fields

    def _extrapolation_at(
        self, plan: Sequence[int], found: Sequence[Sequence[float]]
    ) -> list[list[list[float]]] | None:
        """Return the field with these coefficients, one list a layer, at the stops of the plan."""
        if len(found) != len(plan):
            raise ValueError(f"extrapolation: expected {len(plan)} lists, got {len(found)}")
        rows = self.extrapolation or [[]] * len(plan)
        table = [with_stop(row, r, own) for row, r, own in zip(rows, plan, found, strict=True)]
        return table if any(table) else None

    @property
    def tolerances(self) -> list[float | None]:
        """Of each layer, an encoder's before a decoder's; None: its tokens run all iterations."""
        return self.tolerance if isinstance(self.tolerance, list) else [self.tolerance] * len(self.iterations)

    @property
    def is_adaptive(self) -> bool:
        """True if tokens of some layer stop by themselves."""
        return any(each is not None for each in self.tolerances)

    @property
    def num_start_evaluations(self) -> int:
        """Block evaluations that produce a layer's first iterate z(0): one, the explicit Euler step."""
        return 1

    @property
    def num_evaluations(self) -> int:
        """Block evaluations of one forward pass, sum over t of (start evaluations + r_t)."""
        return sum(self.num_start_evaluations + r for r in self.iterations)

    @property
    def num_hidden_layers(self) -> int:
        """Slots of the cache: one an evaluation or, under the shared policy, one a layer."""
        return self.num_layers if self.cache_policy == "shared" else self.num_evaluations

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        """Nothing: the number follows from other fields, but transformers assigns to it in places."""

    def check_values(self) -> None:
        """Raise ValueError for a field of a wrong type or out of range. None is accepted where the type says so."""
        kind = type(self)  # whose table holds, whatever a file brings
        for name, (accepts, words) in kind.accepted_values.items():
            value, may_be_none = getattr(self, name), "None" in str(kind.__dataclass_fields__[name].type)
            self._require(name, (value is None and may_be_none) or accepts(value), words)

    def validate_architecture(self) -> None:
        """Raise ValueError for a value out of range, a plan of the wrong length or above the maximum."""
        self.check_values()
        n = self.num_attention_heads
        k, e = self.num_key_value_heads or n, self.head_dim or 2
        self._require("num_key_value_heads", n % k == 0, f"a divisor of num_attention_heads ({n})")
        self._require("head_dim", e % 2 == 0, "even, for rotary position embeddings")
        pad, size = self.pad_token_id, self.vocab_size
        self._require("pad_token_id", pad is None or pad < size, f"below vocab_size ({size})")
        for name in ("sliding_window", "attention_chunk_size", "layer_types", "num_kv_shared_layers"):
            # transformers would size caches by it, and the layers know nothing of it.
            self._require(name, not getattr(self, name, None), "none: a layer attends to all positions")
        self._require("relaxation", not (self.history and self.relaxation), "false with history")
        most = self.max_num_iterations or 0
        for field, name in self.plan_fields.items():
            plan, length = self._plan_of(field), getattr(self, name)
            self._require(field, len(plan) == length, f"an int or a list of {name} ({length})")
            for layer, r in enumerate(plan):
                if r > most:
                    accepted = f"from 0 to {most} (max_num_iterations)"
                    raise ValueError(f"{field}[{layer}]: expected {accepted}, got {r}")
        self._validate_stops(most)

    def _validate_stops(self, most: int) -> None:
        """Raise ValueError for an extrapolation, tolerance or list of plans that does not fit the layers."""
        L = len(self.iterations)
        accepted = (
            f"none or, for each of {L} layers, at most {max(most - 1, 0)} lists (max_num_iterations - 1), the first "
            "of at most two numbers, the second of at most three, and so on"
        )
        self._require("extrapolation", fits_extrapolation(self.extrapolation, L, most), accepted)
        alone = self.cache_policy == "shared" and not self.extrapolation
        accepted = (
            "none with cache_policy 'exact', whose later evaluations attend to each other, or extrapolation"
        )
        self._require("tolerance", self.tolerance is None or alone, accepted)
        self._require("tolerance", len(self.tolerances) == L, f"one number, or one for each of {L} layers")
        accepted = f"plans of other names and of {L} numbers from 0 to {most} (max_num_iterations)"
        self._require("plans", fits_plans(self.plans or [], L, most), accepted)

    def _require(self, field: str, fits: bool, accepted: str) -> None:
        """Raise ValueError, naming field, accepted values and what was found, unless the value fits."""
        if not fits:
            raise ValueError(f"{field}: expected {accepted}, got {reprlib.repr(getattr(self, field, None))}")
