"""Text of a run: packed with its tokenizer, cut into blocks that its model takes, and scored on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from iiad.data import (
    AnyCorpus,
    PairBlocks,
    PairCorpus,
    TokenCorpus,
    evaluation_windows,
    make_blocks,
    pack_for,
    resolve_inputs,
    tokenizer_fingerprint,
)
from iiad.errors import InputError
from iiad.progress import progress

from .batches import blocks_per_step, steps_per_epoch
from .processes import first_process_first
from .recipes import DistillRecipe, TrainRecipe
from .scoring import TokenScore, evaluate_model
from .sections import DataSection, OptimizationSection

__all__ = ["Corpora", "require_step"]


class Corpora:
    """Tokens that a run learns from and, where its recipe names some, tokens that it is measured on.

    fingerprints: of tokenizer and texts. Raises InputError for a vocabulary or block that the model does not take,
    and for text that cannot be read or is too short for one step or one prediction.
    """

    def __init__(self, recipe: TrainRecipe | DistillRecipe, tokenizer: Any, config: Any):
        """config: the model's."""
        data, optimization = recipe.data, recipe.training
        _require_fit(data, tokenizer, config)
        self.batch_size = optimization.per_device_train_batch_size
        self.dtype = "bfloat16" if optimization.autocast else "float32"
        num_rows = recipe.num_steps * blocks_per_step(optimization)
        self.training = _pack(data, "train", tokenizer, config, num_rows)
        most, batch_tokens = data.block_tokens(config.max_position_embeddings), data.max_batch_tokens
        if isinstance(self.training, PairCorpus):
            _require_pair_settings(data, optimization)
            most, batch_tokens = config.max_position_embeddings, data.batch_tokens
        self.blocks = make_blocks(self.training, most, batch_tokens)
        self.block_size = self.blocks.block_size
        if batch_tokens is not None:
            self.batch_size = max(1, batch_tokens // self.block_size)
        if isinstance(self.blocks, PairBlocks):
            _require_pair_step(self.blocks, optimization)
        else:
            require_step("data.train", len(self.blocks), optimization)
        self.fingerprints = {"tokenizer": tokenizer_fingerprint(tokenizer), "data": self.training.fingerprint}
        self.validation = _pack(data, "validation", tokenizer, config) if data.validation else None
        if self.validation is not None:
            self.window_size = self.block_size if isinstance(self.validation, TokenCorpus) else most
            evaluation_windows(self.validation, self.window_size)  # checks its length
            self.fingerprints["validation"] = self.validation.fingerprint

    @property
    def score(self) -> Callable[..., TokenScore] | None:
        """Function that scores a model on the whole validation text; None where there is none."""
        return None if self.validation is None else self.score_validation

    def score_validation(self, model: Any, task: str = "") -> TokenScore:
        """Score a model on the whole validation text; task: what to show progress under."""
        assert self.validation is not None
        windows = evaluation_windows(self.validation, self.window_size, batch_size=self.batch_size)
        num_asked = len(self.validation.targets(self.validation.num_tokens))
        shown = progress(task, num_asked, "tokens") if task else nullcontext()
        with shown as advance:
            return evaluate_model(model, windows, name="validation", dtype=self.dtype, advance=advance)


def _require_fit(data: DataSection, tokenizer: Any, config: Any) -> None:
    for field, got, most, limit in (
        ("tokenizer", len(tokenizer), config.vocab_size, "vocab_size"),
        ("data.block_size", data.block_size or 0, config.max_position_embeddings, "max_position_embeddings"),
    ):
        if got > most:
            raise InputError(f"{field}: expected at most {most} tokens, the model's {limit}, got {got}")


def _require_pair_settings(data: DataSection, optimization: OptimizationSection) -> None:
    """Raise InputError for settings that pairs have others for."""
    if data.block_size is not None:
        raise InputError(
            "data.block_size: expected none for pairs, which have max_source_tokens and max_target_tokens, got "
            f"{data.block_size}"
        )
    size = "per_device_train_batch_size"
    if (given := getattr(optimization, size)) != type(optimization).model_fields[size].default:
        raise InputError(
            f"training.{size}: expected none for pairs, which have data.max_batch_tokens, got {given}"
        )


def _require_pair_step(blocks: PairBlocks, optimization: OptimizationSection) -> None:
    """Raise InputError for fewer batches than one step needs."""
    if not steps_per_epoch(blocks, optimization):
        raise InputError(
            "data.train: expected enough pairs for one step (gradient_accumulation_steps x processes batches of "
            f"data.max_batch_tokens), got {blocks.num_batches(1)} batches"
        )


def _pack(
    data: DataSection, split: str, tokenizer: Any, config: Any, num_rows: int | None = None
) -> AnyCorpus:
    sources = resolve_inputs(getattr(data, split), split)
    with first_process_first():
        return pack_for(
            config,
            sources,
            tokenizer,
            where=f"data.{split}",
            text_field=data.text_field,
            cache_dir=data.cache_dir,
            num_rows=num_rows,
            limits=data.limits,
        )


def require_step(where: str, num_blocks: int, optimization: OptimizationSection) -> None:
    """Raise InputError for fewer blocks than one step needs."""
    least = blocks_per_step(optimization)
    if num_blocks < least:
        raise InputError(
            f"{where}: expected at least {least} blocks, for one step (per_device_train_batch_size x "
            f"gradient_accumulation_steps x processes), got {num_blocks}"
        )
