"""What a recipe says of model, tokenizer and data: which fields there are, what they accept and what they mean.

What they have in common is in section.py.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from .section import Section, check

__all__ = ["DataSection", "ModelSection", "TokenizerSection"]


class ModelSection(Section):
    """The model: one line, `solver`, changes between Transformer, IIET and PCformer; or one to train on from."""

    path: str | None = Field(
        None,
        description="a model folder or hub name to train on from; its shape, in place of the fields below",
    )
    solver: Literal["transformer", "iiet", "pcformer"] = "iiet"
    hidden_size: int = Field(512, ge=2, le=2**17, description="D")
    intermediate_size: int = Field(1408, ge=1, le=2**20, description="width of the MLP")
    num_layers: int = Field(12, ge=1, le=2**12, description="L, layers with weights of their own")
    num_attention_heads: int = Field(4, ge=1, le=2**12)
    num_key_value_heads: int | None = Field(None, ge=1, description="default: as many as attention heads")
    head_dim: int | None = Field(None, ge=2, description="default: hidden_size / num_attention_heads")
    max_position_embeddings: int = Field(2048, ge=2, le=2**24, description="longest context, in tokens")
    rope_theta: float = Field(10000.0, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0, lt=1)
    initializer_range: float = Field(0.02, gt=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    tie_word_embeddings: bool = True
    num_iterations: int | list[int] | None = Field(
        None, description="r_t, one number or one per layer; iiet only; default: 3"
    )
    history: bool = Field(True, description="iiet: the learned multistep history; false: the plain equation")
    relaxation: bool = Field(False, description="iiet without history: learned damping")
    predictor_order: Literal[2, 4] = Field(2, description="pcformer: order of its Runge-Kutta predictor")
    coefficients: Literal["ema", "fixed"] = Field("ema", description="pcformer: how its stages are combined")
    cache_policy: Literal["exact", "shared"] = Field(
        "exact",
        description="iiet, pcformer: keys and values, and a cache slot, for each evaluation or for each layer",
    )

    @check
    def _shape_comes_from_one_place(self) -> str | None:
        given = sorted(self.model_fields_set - {"path", "num_iterations", "cache_policy"})
        if self.path is None or not given:
            return None
        return f"path names a model, which has a shape of its own; {', '.join(given)} cannot be given as well"

    @check
    def _iterations_are_counts(self) -> str | None:
        given = self.num_iterations
        plan = given if isinstance(given, list) else [given or 0]
        return f"num_iterations must be at least 0, found {given}" if any(r < 0 for r in plan) else None

    @check
    def _iterations_fit_the_layers(self) -> str | None:
        plan = self.num_iterations
        if self.path is not None or not isinstance(plan, list) or len(plan) == self.num_layers:
            return None
        return f"num_iterations must be one number or {self.num_layers} (num_layers), found {plan}"

    @check
    def _heads_divide_the_width(self) -> str | None:
        heads = self.num_attention_heads
        if self.hidden_size % heads == 0:
            return None
        return f"hidden_size must be a multiple of num_attention_heads ({heads}), found {self.hidden_size}"

    @check
    def _heads_can_share_keys(self) -> str | None:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if heads % (shared or heads) == 0:
            return None
        return f"num_key_value_heads must divide num_attention_heads ({heads}), found {shared}"

    @check
    def _heads_can_rotate(self) -> str | None:
        if self.head_dim is not None:
            width, rest = self.head_dim, 0
        else:
            width, rest = divmod(self.hidden_size, self.num_attention_heads)
        if width % 2 == 0 or rest:
            return None
        return f"head_dim must be even, for rotary position embeddings, found {width}"

    @check
    def _damping_is_without_history(self) -> str | None:
        return "relaxation is for history: false" if self.history and self.relaxation else None

    def unused_fields(self) -> list[str]:
        """Fields that were given and that only another solver uses: one line of a recipe changes the solver."""
        owners = {
            "iiet": {"num_iterations", "history", "relaxation", "cache_policy"},
            "pcformer": {"predictor_order", "coefficients", "cache_policy"},
            "transformer": set(),
        }
        foreign = set().union(*owners.values()) - owners[self.solver]
        return sorted(self.model_fields_set & foreign)


class TokenizerSection(Section):
    """A tokenizer folder, or the size of a byte-level BPE to train on the corpus."""

    path: str | None = Field(None, description="a Hugging Face tokenizer folder or hub name")
    vocab_size: int | None = Field(None, ge=257, le=2**24, description="train one of this size instead")

    @check
    def _one_of_them(self) -> str | None:
        return "give either path or vocab_size" if (self.path is None) == (self.vocab_size is None) else None


class DataSection(Section):
    """Text to learn from."""

    train: list[str] = Field(
        min_length=1, description="files, globs, folders, or stdlib", examples=[["corpus/*.jsonl"]]
    )
    validation: list[str] = Field([], description="the same, for validation loss")
    text_field: str = Field("text", min_length=1, description="field of .jsonl and .parquet documents")
    block_size: int | None = Field(
        None,
        ge=2,
        description="tokens in a block; default: 512, or the model's context where that is shorter",
    )
    cache_dir: str | None = Field(None, description="where tokenized data are kept")

    def block_tokens(self, context: int) -> int:
        """Tokens in a block, for a model of that context (max_position_embeddings)."""
        return self.block_size or min(512, context)

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
