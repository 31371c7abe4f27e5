"""Configuration of the Iterative Implicit Euler Transformer (IIET)."""

from __future__ import annotations

import difflib
import math
import warnings
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

__all__ = ["IIETConfig", "require"]


def require(condition: bool, field: str, accepted: str, found: object) -> None:
    """Raise ValueError, naming field, accepted values and what was found, unless the condition holds."""
    if not condition:
        raise ValueError(f"{field}: expected {accepted}, got {found!r}")


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
    cache_policy: "exact", each evaluation attends to keys and values of its own (paper); "shared" (ours), all
        evaluations of a layer attend to those of its first one, in training, prefill and decoding alike, which saves
        the other evaluations' key and value projections and their place in the cache. Weights are trained for one
        of them: only `model.set_cache_policy` changes it.

    `num_hidden_layers` is derived: the number of cache slots, because transformers sizes its caches by that name.
    Under the exact policy it is the number of block evaluations, `num_evaluations`, under the shared one that of
    layers. The depth in weights is `num_layers`.

    Raises ValueError naming field, accepted values and what was found.
    """

    model_type = "iiet"
    keys_to_ignore_at_inference = ["past_key_values"]
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
    cache_policy: str = "exact"

    def __post_init__(self, **kwargs: Any) -> None:
        derived = kwargs.get("num_hidden_layers")
        require(
            "num_hidden_layers" not in kwargs,
            "num_hidden_layers",
            "num_layers instead (it is derived)",
            derived,
        )
        self._check_names(kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            require(
                self.hidden_size % self.num_attention_heads == 0,
                "hidden_size",
                f"a multiple of num_attention_heads ({self.num_attention_heads}), unless head_dim is given",
                self.hidden_size,
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.num_iterations = self.iterations
        if self.max_num_iterations is None:
            self.max_num_iterations = max(self.iterations, default=0)
        super().__post_init__(**kwargs)

    def _check_names(self, unknown: dict[str, Any]) -> None:
        """Refuse names nearly like a field's, which transformers would keep; warn where they come from a file."""
        is_saved = self.transformers_version is not None
        for name, value in unknown.items():
            near = difflib.get_close_matches(name, type(self).__dataclass_fields__, n=1, cutoff=0.85)
            if near and not hasattr(type(self), name):
                accepted = f"a known field (did you mean {near[0]}?)"
                require(is_saved, name, accepted, value)
                warnings.warn(
                    f"{name}: expected {accepted}, got {value!r}, which changes nothing", stacklevel=4
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a saved configuration, as from_pretrained does, with fields among the keywords in place of its own.

        Raises ValueError for another cache_policy than the saved one.
        """
        own = {*cls.__dataclass_fields__, "num_hidden_layers"} - {*PreTrainedConfig.__dataclass_fields__}
        given = {name: kwargs.pop(name) for name in own & kwargs.keys()}
        policy = config_dict.get("cache_policy", cls.cache_policy)
        accepted = f"{policy!r}, which the weights are for (model.set_cache_policy is for training)"
        require(
            given.get("cache_policy", policy) == policy, "cache_policy", accepted, given.get("cache_policy")
        )
        return super().from_dict({**config_dict, **given}, **kwargs)

    @property
    def iterations(self) -> list[int]:
        """The plan: r_t for each of the L layers."""
        r = self.num_iterations
        return [r] * self.num_layers if isinstance(r, int) else r

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

    def validate_architecture(self) -> None:
        """Raise ValueError for a value out of range, a plan of the wrong length or above the maximum."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_attention_heads"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("rms_norm_eps", "layer_norm_eps", "initializer_range"):
            require(0 < getattr(self, name) < math.inf, name, "above 0", getattr(self, name))
        require(
            self.max_position_embeddings >= 1,
            "max_position_embeddings",
            "at least 1",
            self.max_position_embeddings,
        )
        require(0 <= self.attention_dropout < 1, "attention_dropout", "in [0, 1)", self.attention_dropout)
        heads = self.num_key_value_heads
        require(
            heads is not None and heads >= 1 and self.num_attention_heads % heads == 0,
            "num_key_value_heads",
            f"a divisor of num_attention_heads ({self.num_attention_heads})",
            heads,
        )
        require(
            self.head_dim is not None and self.head_dim >= 2 and self.head_dim % 2 == 0,
            "head_dim",
            "even, for rotary position embeddings",
            self.head_dim,
        )
        require(not (self.history and self.relaxation), "relaxation", "false with history", self.relaxation)
        policies = ("exact", "shared")
        require(self.cache_policy in policies, "cache_policy", "'exact' or 'shared'", self.cache_policy)
        self._validate_plan()

    def _validate_plan(self) -> None:
        plan, most = self.iterations, self.max_num_iterations
        require(
            len(plan) == self.num_layers,
            "num_iterations",
            f"an int or a list of num_layers ({self.num_layers})",
            plan,
        )
        require(most is not None and most >= 0, "max_num_iterations", "at least 0", most)
        for layer, r in enumerate(plan):
            require(
                0 <= r <= (most or 0), f"num_iterations[{layer}]", f"from 0 to {most} (max_num_iterations)", r
            )
