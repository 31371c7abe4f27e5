"""What a recipe says of model, tokenizer and data: which fields there are, what they accept and what they mean.

Sections are frozen and refuse what they do not know.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["DataSection", "ModelSection", "Section", "TokenizerSection"]


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """The model: one line, `solver`, changes between Transformer, IIET and PCformer."""

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

    @model_validator(mode="after")
    def _shape_is_possible(self) -> ModelSection:
        plan = self.num_iterations if isinstance(self.num_iterations, list) else [self.num_iterations or 0]
        if any(r < 0 for r in plan):
            raise ValueError(f"num_iterations must be at least 0, found {self.num_iterations}")
        if isinstance(self.num_iterations, list) and len(plan) != self.num_layers:
            raise ValueError(
                f"num_iterations must be one number or {self.num_layers} (num_layers), found {plan}"
            )
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads ({heads}), found {self.hidden_size}"
            )
        if heads % (self.num_key_value_heads or heads):
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads ({heads}), found {self.num_key_value_heads}"
            )
        head_dim = self.head_dim or self.hidden_size // heads
        if head_dim % 2:
            raise ValueError(f"head_dim must be even, for rotary position embeddings, found {head_dim}")
        if self.history and self.relaxation:
            raise ValueError("relaxation is for history: false")
        return self

    def unused_fields(self) -> list[str]:
        """Fields that were given and that only another solver uses: one line of a recipe changes the solver."""
        owners = {"num_iterations": "iiet", "history": "iiet", "relaxation": "iiet"}
        owners |= {"predictor_order": "pcformer", "coefficients": "pcformer"}
        return sorted(
            field for field in self.model_fields_set if owners.get(field, self.solver) != self.solver
        )


class TokenizerSection(Section):
    """A tokenizer folder, or the size of a byte-level BPE to train on the corpus."""

    path: str | None = Field(None, description="a Hugging Face tokenizer folder or hub name")
    vocab_size: int | None = Field(None, ge=257, le=2**24, description="train one of this size instead")

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizerSection:
        if (self.path is None) == (self.vocab_size is None):
            raise ValueError("give either path or vocab_size")
        return self


class DataSection(Section):
    """Text to learn from."""

    train: list[str] = Field(min_length=1, description="files, globs, folders, or stdlib")
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
