"""`iiad train`: a teacher, a Transformer or a PCformer, from scratch or on from a model that is there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from iiad.checkpoints import load_model, model_fingerprint
from iiad.data import (
    Source,
    TokenBlocks,
    TokenCorpus,
    evaluation_windows,
    load_tokenizer,
    pack,
    read_documents,
    resolve_inputs,
    tokenizer_fingerprint,
    train_tokenizer,
)
from iiad.errors import InputError, one_line
from iiad.files import atomic_folder
from iiad.models import IIETConfig, IIETForCausalLM, PCformerConfig, PCformerForCausalLM
from iiad.progress import print_status, progress

from .batches import blocks_per_step
from .interruption import TimeLimit
from .loop import run_stage
from .model_card import model_card
from .phases import TwoPhases
from .processes import first_process_first, from_first_process, join_processes
from .recipes import TrainRecipe
from .requirements import announce, check_stage
from .runs import RunFolder
from .scoring import TokenScore, evaluate_model
from .sections import DataSection, ModelSection, OptimizationSection, TokenizerSection
from .stage import RunContext, Stage

__all__ = ["Corpora", "build_model", "train"]

# What LlamaForCausalLM and ours have under the same name.
_SHARED = """
hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim max_position_embeddings rms_norm_eps
initializer_range attention_dropout tie_word_embeddings
""".split()


class Corpora:
    """The tokens that a run learns from and, where its recipe names some, those that it is measured on.

    Raises InputError for text that cannot be read or is too short for one block or one prediction.
    """

    def __init__(self, section: DataSection, context: int, tokenizer: Any, optimization: OptimizationSection):
        """context: the longest block that the model takes, in tokens."""
        self.block_size = section.block_tokens(context)
        self.batch_size = optimization.per_device_train_batch_size
        self.dtype = "bfloat16" if optimization.bf16 else "float32"
        self.training = self._pack(section, section.train, "train", tokenizer)
        self.blocks = TokenBlocks(self.training, self.block_size)
        self.validation = (
            self._pack(section, section.validation, "validation", tokenizer) if section.validation else None
        )
        self.fingerprints = {"tokenizer": tokenizer_fingerprint(tokenizer), "data": self.training.fingerprint}
        if self.validation is not None:
            evaluation_windows(self.validation, self.block_size)  # checks its length
            self.fingerprints["validation"] = self.validation.fingerprint

    @staticmethod
    def _pack(section: DataSection, inputs: list[str], split: str, tokenizer: Any) -> TokenCorpus:
        sources = resolve_inputs(inputs, split)
        with first_process_first():
            return pack(sources, tokenizer, text_field=section.text_field, cache_dir=section.cache_dir)

    @property
    def score(self) -> Callable[[Any], TokenScore] | None:
        """What a model scores on the whole validation corpus; None where there is none."""
        return None if self.validation is None else partial(self._score, self.validation)

    def _score(self, corpus: TokenCorpus, model: Any) -> TokenScore:
        windows = evaluation_windows(corpus, self.block_size, batch_size=self.batch_size)
        return evaluate_model(model, windows, name="validation", dtype=self.dtype)


def build_model(section: ModelSection, tokenizer: Any) -> PreTrainedModel:
    """A freshly initialised model for a tokenizer's vocabulary. Raises InputError for a shape that cannot be."""
    fields = {name: getattr(section, name) for name in _SHARED}
    fields |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,  # blocks are packed without padding; a padding row would be left out of training
        "rope_parameters": {"rope_type": "default", "rope_theta": section.rope_theta},
    }
    for unused in section.unused_fields():
        print_status(f"model.{unused} is not used by solver {section.solver}")
    try:
        if section.solver == "transformer":
            return LlamaForCausalLM(LlamaConfig(**fields, num_hidden_layers=section.num_layers))
        fields |= {"num_layers": section.num_layers, "cache_policy": section.cache_policy}
        if section.solver == "pcformer":
            predictor = {"predictor_order": section.predictor_order, "coefficients": section.coefficients}
            return PCformerForCausalLM(PCformerConfig(**fields, **predictor))
        if section.num_iterations is not None:
            fields["num_iterations"] = section.num_iterations
        return IIETForCausalLM(IIETConfig(**fields, history=section.history, relaxation=section.relaxation))
    except (ValueError, StrictDataclassError) as error:
        raise InputError(f"model: {one_line(error)}") from None


def train(
    recipe: TrainRecipe,
    output_dir: str | Path,
    resume: bool = False,
    max_minutes: float | None = None,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train the recipe's model; the finished model, its card and log lie in output_dir.

    max_minutes: save and raise Unfinished when they are over. on_step: called before each step with its number, from
    1. Under torchrun every process calls this.
    Returns the results that the run's record holds: tokens learnt from and, with validation text, its nats per
    token. Raises InputError for text, tokenizer, shape or folder that cannot be used, and as `run_stage`; up to the
    first step nothing has been written then.
    """
    limit = TimeLimit(max_minutes)
    join_processes()
    announce(recipe.training)
    run = RunFolder(
        output_dir, "train", recipe.model_dump(mode="json"), resume, blocks_per_step(recipe.training)
    )
    set_seed(recipe.training.seed)
    kept = run.path / "tokenizer"
    tokenizer = prepare_tokenizer(recipe, kept)
    model, inputs = _start(recipe, tokenizer)
    corpora = Corpora(recipe.data, model.config.max_position_embeddings, tokenizer, recipe.training)
    check_stage(model, corpora.blocks, recipe.training)
    phases = _phases(recipe, model)
    run.begin({**corpora.fingerprints, **inputs})
    from_first_process(lambda: _keep_tokenizer(tokenizer, kept))
    context = RunContext(
        run.path,
        recipe.training,
        tokenizer,
        lambda model, figures: model_card(model, run.record, figures),
        corpora.score,
        limit,
        on_step,
    )
    stage = Stage(
        name="train",
        folder=run.path,
        blocks=corpora.blocks,
        length=recipe.training,
        seed=recipe.training.seed,
        phases=phases,
        unused=phases is not None or _has_unused(model),
    )
    run_stage(model, stage, context)
    blocks_seen = recipe.training.max_steps * blocks_per_step(recipe.training)
    results: dict[str, Any] = {"tokens": blocks_seen * corpora.block_size}
    if corpora.score is not None:
        results["validation_nll"] = corpora.score(model).nll
    run.finish(model, tokenizer, model_card(model, run.record, results), results)
    return results


def prepare_tokenizer(recipe: TrainRecipe, kept: Path) -> Any:
    """The tokenizer that the recipe names, or one trained on its text, which the folder `kept` holds later on."""
    section: TokenizerSection = recipe.tokenizer
    if section.path is not None:
        return load_tokenizer(section.path)
    if kept.is_dir():
        return load_tokenizer(kept)
    return from_first_process(lambda: _train_tokenizer(recipe))


def _keep_tokenizer(tokenizer: Any, kept: Path) -> None:
    if not kept.is_dir():
        with atomic_folder(kept) as stage:
            tokenizer.save_pretrained(stage)


def _train_tokenizer(recipe: TrainRecipe) -> Any:
    assert recipe.tokenizer.vocab_size is not None
    sources = resolve_inputs(recipe.data.train, "train")
    total = sum(source.path.stat().st_size for source in sources)
    with progress("training the tokenizer", total, "B") as advance:

        def texts(source: Source) -> Any:
            for document in read_documents(source, recipe.data.text_field):
                yield from document
            advance(source.path.stat().st_size)

        every = (text for source in sources for text in texts(source))
        return train_tokenizer(every, recipe.tokenizer.vocab_size)


def _start(recipe: TrainRecipe, tokenizer: Any) -> tuple[PreTrainedModel, dict[str, str]]:
    """The model to begin with, in float32, and its hash, if it is one that was there before."""
    section = recipe.model
    if section.path is None:
        return build_model(section, tokenizer), {}
    model = load_model(section.path, num_iterations=section.num_iterations)
    fingerprint = model_fingerprint(model)
    if "cache_policy" in section.model_fields_set:
        if not hasattr(model, "set_cache_policy"):
            raise InputError(
                f"model.cache_policy is for models with iterations; {section.path} is {model.config.model_type}"
            )
        model.set_cache_policy(section.cache_policy)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"tokenizer has {len(tokenizer)} tokens, {section.path} a vocabulary of {model.config.vocab_size}"
        )
    if (recipe.data.block_size or 0) > model.config.max_position_embeddings:
        raise InputError(
            f"data.block_size must be at most max_position_embeddings of {section.path} "
            f"({model.config.max_position_embeddings}), found {recipe.data.block_size}"
        )
    for parameter in model.parameters():
        # Not model.float(): that would touch the frequencies of the rotary embedding, a buffer, as well.
        parameter.data = parameter.data.float()
    return model, {"model": fingerprint}


def _has_unused(model: PreTrainedModel) -> bool:
    """Whether the model has parameters that its plan, or its predictor's stages, leave without use."""
    config = model.config
    idle_stages = (getattr(config, "predictor_stages", None) or 4) < getattr(config, "predictor_order", 0)
    return idle_stages or 0 in getattr(config, "num_iterations", [])


def _phases(recipe: TrainRecipe, model: PreTrainedModel) -> TwoPhases | None:
    """The schedule of the iterations; None where all run from the start, as in a model that is there by default."""
    training, config = recipe.training, model.config
    if config.model_type != IIETConfig.model_type or not any(config.iterations):
        return None
    if recipe.model.path is not None:
        if "iterations_start" not in training.model_fields_set or not training.iterations_start:
            return None
        if config.history:
            raise InputError(
                f"training.iterations_start is for models from scratch: {recipe.model.path} has iterations that "
                "have learnt, and would begin them anew; accepted: 0"
            )
    return TwoPhases(config.iterations, training.iterations_start, training.max_steps, training.smooth_start)
