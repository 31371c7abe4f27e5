"""`iiad train`: a teacher, a Transformer or a PCformer from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

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
from iiad.errors import InputError
from iiad.evaluation import evaluate_model
from iiad.models import IIETConfig, IIETForCausalLM, PCformerConfig, PCformerForCausalLM
from iiad.reporting.model_card import model_card
from iiad.reporting.progress import say

from .engine import run_stage
from .phases import TwoPhases
from .recipe import DataSection, ModelSection, TokenizerSection, TrainRecipe
from .runs import RunFolder

__all__ = ["build_model", "prepare_data", "train", "validation_nll"]

# What LlamaForCausalLM and ours have under the same name.
_SHARED = """
hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim max_position_embeddings rms_norm_eps
initializer_range attention_dropout tie_word_embeddings
""".split()


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
    try:
        if section.solver == "transformer":
            return LlamaForCausalLM(LlamaConfig(**fields, num_hidden_layers=section.num_layers))
        fields["num_layers"] = section.num_layers
        if section.num_iterations is not None:
            fields["num_iterations"] = section.num_iterations
        if section.solver == "pcformer":
            return PCformerForCausalLM(
                PCformerConfig(
                    **fields, predictor_order=section.predictor_order, coefficients=section.coefficients
                )
            )
        return IIETForCausalLM(IIETConfig(**fields, history=section.history, relaxation=section.relaxation))
    except (ValueError, StrictDataclassError) as error:
        raise InputError(f"model: {str(error).splitlines()[-1].removeprefix('    ValueError: ')}") from None


def prepare_tokenizer(section: TokenizerSection, sources: list[Source], text_field: str, kept: Path) -> Any:
    """The tokenizer that the recipe names, or one trained on the sources and kept in the folder `kept`."""
    if section.path is not None:
        return load_tokenizer(section.path)
    if kept.is_dir():
        return load_tokenizer(kept)
    assert section.vocab_size is not None
    say(f"training a byte-level BPE of {section.vocab_size} tokens")
    texts = (
        piece for source in sources for document in read_documents(source, text_field) for piece in document
    )
    return train_tokenizer(texts, section.vocab_size)


def prepare_data(section: DataSection, tokenizer: Any) -> tuple[TokenCorpus, TokenCorpus | None]:
    """The training corpus and, if the recipe names one, the validation corpus, tokenized once."""

    def packed(inputs: list[str], split: str) -> TokenCorpus:
        sources = resolve_inputs(inputs, split)
        return pack(sources, tokenizer, text_field=section.text_field, cache_dir=section.cache_dir)

    return packed(section.train, "train"), packed(
        section.validation, "validation"
    ) if section.validation else None


def validation_nll(model: PreTrainedModel, corpus: TokenCorpus, block_size: int, batch_size: int) -> float:
    """Mean nats per token over the whole corpus, in windows of block_size."""
    windows = evaluation_windows(corpus, block_size, batch_size=batch_size)
    return evaluate_model(model, windows, name="validation").nll


def train(recipe: TrainRecipe, output_dir: str | Path, resume: bool = False) -> dict[str, Any]:
    """Train the recipe's model from scratch; the finished model, its card and log lie in output_dir.

    Returns the results that the run's record holds. Raises InputError for anything the user can mend.
    """
    run = RunFolder(output_dir, "train", recipe.model_dump(mode="json"), resume)
    set_seed(recipe.training.seed)
    sources = resolve_inputs(recipe.data.train, "train")
    kept = run.path / "tokenizer"
    tokenizer = prepare_tokenizer(recipe.tokenizer, sources, recipe.data.text_field, kept)
    model = build_model(recipe.model, tokenizer)
    corpus, validation = prepare_data(recipe.data, tokenizer)
    blocks = TokenBlocks(corpus, recipe.data.block_size)
    run.begin({"tokenizer": tokenizer_fingerprint(tokenizer), "data": corpus.fingerprint})
    if not kept.is_dir():
        tokenizer.save_pretrained(kept)
    callbacks = []
    if recipe.model.solver == "iiet":
        assert isinstance(model.config, IIETConfig)
        training = recipe.training
        callbacks.append(
            TwoPhases(
                model.config.iterations,
                training.iterations_start,
                training.max_steps,
                training.smooth_start,
            )
        )
    run_stage(
        model,
        blocks,
        recipe.training,
        recipe.training,
        run.path,
        name="train",
        validation=TokenBlocks(validation, recipe.data.block_size) if validation else None,
        tokenizer=tokenizer,
        log=run.path / "log.jsonl",
        callbacks=callbacks,
    )
    results: dict[str, Any] = {"tokens": _tokens_seen(recipe)}
    if validation is not None:
        results["validation_nll"] = validation_nll(
            model, validation, recipe.data.block_size, recipe.training.per_device_train_batch_size
        )
    run.finish(model, tokenizer, model_card(model, run.record, results), results)
    return results


def _tokens_seen(recipe: TrainRecipe) -> int:
    training = recipe.training
    blocks = training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    return blocks * recipe.data.block_size
