"""The sections of a recipe: fields, what they accept, what they mean.

Names are those of transformers' TrainingArguments where it has the field.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from iiad.artefacts import MOST_ITERATIONS
from iiad.data import PairLimits, parse_task
from iiad.data.task_base import Task
from iiad.errors import InputError

from .problems import Conflicts, Section, described

__all__ = [
    "DataSection",
    "ModelSection",
    "OptimizationSection",
    "Scheduler",
    "StageSection",
    "TokenizerSection",
    "TrainingSection",
    "count_warmup",
]

Steps = Annotated[int, Field(ge=1, le=2**40)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Scheduler = Literal["linear", "cosine", "constant_with_warmup", "warmup_stable_decay"]

Warmup = Annotated[
    Annotated[int, Field(ge=0, le=2**40)] | Annotated[float, Field(ge=0, lt=1)],
    described("a number of steps, or a share of max_steps below 1"),
    Field(description="steps, or a share of max_steps below 1; never more than max_steps"),
]


class ModelSection(Section):
    """A model from scratch: `solver` changes between Transformer, IIET and PCformer. Or a model to train on from."""

    path: str | None = Field(
        None, description="model folder or hub name to train on from; replaces the shape below"
    )
    solver: Literal["transformer", "iiet", "pcformer"] = "iiet"
    hidden_size: int = Field(512, ge=2, le=2**17, description="D")
    intermediate_size: int = Field(1408, ge=1, le=2**20, description="width of the MLP")
    num_layers: int = Field(12, ge=1, le=2**12, description="L, layers with weights of their own")
    num_encoder_layers: int | None = Field(
        None,
        ge=1,
        le=2**12,
        description="makes an encoder-decoder, whose decoder has num_layers; learns from pairs",
    )
    num_attention_heads: int = Field(4, ge=1, le=2**12)
    num_key_value_heads: int | None = Field(None, ge=1, le=2**12, description="default: num_attention_heads")
    head_dim: int | None = Field(
        None, ge=2, le=2**14, description="default: hidden_size / num_attention_heads"
    )
    max_position_embeddings: int = Field(2048, ge=2, le=2**24, description="longest context, in tokens")
    rope_theta: float = Field(10000.0, gt=0, le=1e18)
    rms_norm_eps: float = Field(1e-6, gt=0, lt=1)
    initializer_range: float = Field(0.02, gt=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    tie_word_embeddings: bool = True
    num_iterations: Annotated[
        int | list[int] | None, described("an integer, or a list of integers, one per layer")
    ] = Field(None, description="iiet: r_t, one number or one per layer; default: 3")
    num_encoder_iterations: Annotated[
        int | list[int] | None, described("an integer, or a list of integers, one per layer")
    ] = Field(None, description="iiet: those of the encoder's layers; default: 3")
    shared_embeddings: bool = Field(True, description="encoder and decoder embed tokens by one table")
    history: bool = Field(True, description="iiet: learned multistep history; false: the plain equation")
    relaxation: bool = Field(False, description="iiet without history: learned damping")
    predictor_order: Literal[2, 4] = Field(2, description="pcformer: order of its Runge-Kutta predictor")
    coefficients: Literal["ema", "fixed"] = Field("ema", description="pcformer: how its stages are combined")
    cache_policy: Literal["exact", "shared"] = Field(
        "exact", description="iiet, pcformer: a slot of keys and values per evaluation (exact) or per layer"
    )

    def conflicts(self) -> Conflicts:
        """Shape and iterations."""
        plans = {"num_iterations": self.num_layers, "num_encoder_iterations": self.num_encoder_layers}
        for name in plans:
            given = getattr(self, name)
            if not all(
                0 <= r <= MOST_ITERATIONS for r in (given if isinstance(given, list) else [given or 0])
            ):
                yield name, f"from 0 to {MOST_ITERATIONS}"
        if self.path is not None:
            for name in sorted(self.model_fields_set - {"path", "num_iterations", "cache_policy"}):
                yield name, "none beside model.path, which brings its own shape"
            return
        for name, length in plans.items():
            given = getattr(self, name)
            if isinstance(given, list) and length is not None and len(given) != length:
                yield name, f"one number or {length} ({name.replace('iterations', 'layers')})"
        if self.num_encoder_layers is None:
            # By value: the record of a run names every field.
            defaults = {"num_encoder_iterations": None, "shared_embeddings": True}
            for name in (name for name, default in defaults.items() if getattr(self, name) != default):
                yield name, "none without num_encoder_layers, which makes an encoder-decoder"
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            yield "hidden_size", f"a multiple of num_attention_heads ({heads})"
        elif (self.head_dim or self.hidden_size // heads) % 2:
            yield "head_dim", f"even, for rotary position embeddings (default: {self.hidden_size // heads})"
        if heads % (self.num_key_value_heads or heads):
            yield "num_key_value_heads", f"a divisor of num_attention_heads ({heads})"
        if self.history and self.relaxation:
            yield "relaxation", "false with history"

    def unused_fields(self) -> list[str]:
        """Return the fields that were given and that only another solver uses."""
        owners = {
            "iiet": {"num_iterations", "num_encoder_iterations", "history", "relaxation", "cache_policy"},
            "pcformer": {"predictor_order", "coefficients", "cache_policy"},
            "transformer": set(),
        }
        foreign = set().union(*owners.values()) - owners[self.solver]
        return sorted(self.model_fields_set & foreign)


class TokenizerSection(Section):
    """A tokenizer to load, or the size of a byte-level BPE to train on the text. Generated tasks bring their own."""

    path: str | None = Field(None, description="Hugging Face tokenizer folder or hub name")
    vocab_size: int | None = Field(None, ge=257, le=2**24, description="train a tokenizer of this size")

    def conflicts(self) -> Conflicts:
        """Not both."""
        if self.path is not None and self.vocab_size is not None:
            yield "vocab_size", "none beside path"


class DataSection(Section):
    """Text to learn from."""

    train: list[str] = Field(
        min_length=1,
        description="files, globs, folders, stdlib, a task (states, expressions, hops), or pairs: files, "
        "pairs:source=FILE,target=FILE, docstrings",
    )
    validation: list[str] = Field([], description="the same, for validation loss")
    text_field: str = Field("text", min_length=1, description="field of .jsonl and .parquet documents")
    block_size: int | None = Field(
        None, ge=2, le=2**24, description="tokens in a block; default: 512, or the model's context if shorter"
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=2,
        le=2**30,
        description="pairs: tokens of a batch of one process, padding included; default: 4096",
    )
    max_source_tokens: int | None = Field(
        None, ge=2, le=2**24, description="pairs: longest source to use, its end counted; default: no limit"
    )
    max_target_tokens: int | None = Field(
        None, ge=2, le=2**24, description="pairs: longest target to use, its end counted; default: no limit"
    )
    long_sources: Literal["drop", "cut"] = Field(
        "drop", description="pairs: leave out pairs above max_source_tokens, or cut their sources"
    )
    cache_dir: str | None = Field(None, description="folder for tokenized data")

    @property
    def limits(self) -> PairLimits | None:
        """Limits of pairs; None without any."""
        found = PairLimits(self.max_source_tokens, self.max_target_tokens, self.long_sources == "cut")
        return None if found[:2] == (None, None) else found

    @property
    def batch_tokens(self) -> int:
        """Most tokens of a batch of pairs."""
        return self.max_batch_tokens or 4096

    def block_tokens(self, context: int) -> int:
        """Return the most tokens in a block, for a model of that context (max_position_embeddings)."""
        most = self.block_size or min(512, context)
        return min(most, max(task.longest for task in self.tasks)) if self.tasks else most

    @property
    def tasks(self) -> list[Task]:
        """Return the generated tasks; none where the data is anything else, too."""
        found = [task for task in map(parse_task, self.train) if task is not None]
        return found if len(found) == len(self.train) else []

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def conflicts(self) -> Conflicts:
        """Settings of tasks, limits of pairs."""
        if self.long_sources == "cut" and self.max_source_tokens is None:
            yield "long_sources", "drop without max_source_tokens"
        for field in ("train", "validation"):
            for name in getattr(self, field):
                try:
                    parse_task(name)
                except InputError as error:
                    yield field, f"files or a task with its settings ({error})"


class OptimizationSection(Section):
    """Optimization, the same fields for teachers and for every stage of distillation."""

    per_device_train_batch_size: int = Field(
        8, ge=1, le=2**20, description="blocks in a batch of one process"
    )
    gradient_accumulation_steps: int = Field(1, ge=1, le=2**20)
    lr_scheduler_type: Scheduler = "cosine"
    min_lr_ratio: float = Field(
        0.0, ge=0, lt=1, description="learning rate at the schedule's end, as a share of learning_rate"
    )
    decay_steps: Steps | None = Field(
        None, description="warmup_stable_decay: length of the decay; default: a tenth of max_steps"
    )
    weight_decay: float = Field(0.1, ge=0, lt=1, description="on matrices alone")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    max_grad_norm: Weight = Field(1.0, description="0: no clipping")
    max_skipped_steps: int = Field(
        10,
        ge=0,
        le=2**40,
        description="steps in a row that may be skipped for a NaN or infinite loss or gradient",
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay per step of an average of the weights; the average is the result"
    )
    bf16: Annotated[bool | Literal["auto"], described("true, false or auto")] = Field(
        False, description="autocast to bfloat16, on CPU as on GPU; auto: where it is faster than float32"
    )
    gradient_checkpointing: Annotated[
        bool | Literal["layer", "evaluation"], described("true, false, layer or evaluation")
    ] = Field(False, description="recompute each layer (true, layer) or each evaluation in the backward pass")
    torch_compile: bool = Field(False, description="compile the model, not its head and loss")
    torch_compile_backend: str = Field("inductor", min_length=1)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = Field(
        None, description="attention while training; default: transformers' choice"
    )
    fsdp: bool = Field(
        False, description="several processes: shard weights, gradients and optimizer (FSDP2); default: DDP"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    save_steps: Steps = 500
    save_total_limit: Steps | None = Field(2, description="checkpoints to keep besides the best; null: all")
    logging_steps: Steps = 10
    eval_steps: Steps | None = Field(
        None, description="steps between validation losses; default: at the end alone"
    )
    report_to: list[str] = Field([], description="tensorboard, wandb, ...")

    @property
    def blocks_per_process(self) -> int:
        """Blocks of one optimizer step in one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def autocast(self) -> bool:
        """True for bfloat16, once bf16 is decided."""
        assert self.bf16 != "auto", "decide_bf16 comes first"
        return self.bf16

    def schedule_conflicts(self, schedules: Set[Scheduler]) -> Conflicts:
        """Yield what conflicts with the schedules that run."""
        if self.decay_steps is not None and schedules and "warmup_stable_decay" not in schedules:
            found = ", ".join(sorted(schedules))
            yield "decay_steps", f"none with lr_scheduler_type {found}; only warmup_stable_decay uses it"
        if self.min_lr_ratio and schedules == {"constant_with_warmup"}:
            yield "min_lr_ratio", "0 with lr_scheduler_type constant_with_warmup, which has no end"


class StageSection(Section):
    """One stage of distillation: its length, learning rate and schedule."""

    max_steps: int = Field(1000, ge=0, le=2**40, description="optimizer steps; 0 leaves the stage out")
    learning_rate: float = Field(1e-4, gt=0, lt=10)
    warmup_steps: Warmup = 50
    lr_scheduler_type: Scheduler | None = Field(None, description="default: training.lr_scheduler_type")


class TrainingSection(OptimizationSection):
    """Training from scratch, or on from a model."""

    max_steps: Steps = Field(description="optimizer steps")
    learning_rate: float = Field(3e-4, gt=0, lt=10)
    warmup_steps: Warmup = 100
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each target's probability that all tokens get alike"
    )
    iterations_start: float = Field(
        0.75, ge=0, le=1, description="share of the steps before iterations start (paper: 0.75)"
    )
    smooth_start: bool = Field(
        True, description="iterations start as identities; false: at their initial values"
    )

    def conflicts(self) -> Conflicts:
        """Fields that fit the schedule."""
        yield from self.schedule_conflicts({self.lr_scheduler_type})


def count_warmup(length: TrainingSection | StageSection) -> int:
    """Return the steps of the warm-up, at most all steps."""
    asked = length.warmup_steps
    steps = round(asked * length.max_steps) if isinstance(asked, float) else asked
    return min(steps, length.max_steps)
