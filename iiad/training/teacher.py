"""`iiad train`: a teacher, a Transformer or a PCformer, from scratch or on from a model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from iiad.checkpoints import load_identified, read_limits
from iiad.data import (
    PAIR,
    FileSource,
    TaskSource,
    load_tokenizer,
    read_texts,
    require_readable,
    resolve_inputs,
    row_fields,
    start_token_id,
    task_tokenizer,
    train_tokenizer,
)
from iiad.errors import InputError, one_line
from iiad.files import atomic_folder
from iiad.models import (
    IIETConfig,
    IIETForCausalLM,
    IIETForConditionalGeneration,
    IIETSeq2SeqConfig,
    PCformerConfig,
    PCformerForCausalLM,
    PCformerForConditionalGeneration,
    PCformerSeq2SeqConfig,
)
from iiad.progress import print_status, progress

from .batches import tokens_per_step
from .checkpointing import find_damage, write_manifest
from .corpora import Corpora
from .estimates import StageWork, teacher_work
from .interruption import Interruption
from .learner import LanguageModelling
from .loop import run_stage
from .phases import TwoPhases
from .processes import from_first_process, join_processes, lock_run
from .recipes import TrainRecipe
from .requirements import fit_recipe, require_memory, set_attention
from .runs import RunFolder
from .sections import ModelSection
from .stage import RunContext, Stage

__all__ = ["build_model", "train"]

_SHARED = """
hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim max_position_embeddings rms_norm_eps
initializer_range attention_dropout tie_word_embeddings
""".split()
"""Fields that LlamaConfig and our configurations have under the recipe's name."""


_CLASSES: dict[tuple[str, str], tuple[Any, Any]] = {
    ("transformer", "text"): (LlamaConfig, LlamaForCausalLM),
    ("transformer", "pairs"): (IIETSeq2SeqConfig, IIETForConditionalGeneration),
    ("iiet", "text"): (IIETConfig, IIETForCausalLM),
    ("iiet", "pairs"): (IIETSeq2SeqConfig, IIETForConditionalGeneration),
    ("pcformer", "text"): (PCformerConfig, PCformerForCausalLM),
    ("pcformer", "pairs"): (PCformerSeq2SeqConfig, PCformerForConditionalGeneration),
}


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
    interruption = Interruption(max_minutes)
    join_processes()
    recipe = fit_recipe(recipe, output_dir)
    training = recipe.training
    with lock_run(output_dir):
        run = RunFolder(output_dir, "train", recipe, resume)
        set_seed(training.seed)
        kept = run.path / "tokenizer"
        tokenizer = _prepare_tokenizer(recipe, kept)
        require_memory(recipe, len(tokenizer))
        model, inputs = _start_model(recipe.model, tokenizer)
        set_attention(model, training)
        corpora = Corpora(recipe, tokenizer, model.config)
        phases = _plan_phases(recipe, model)
        stage = Stage(
            name="train",
            folder=run.path,
            blocks=corpora.blocks,
            length=training,
            objective=LanguageModelling(training.label_smoothing),
            seed=training.seed,
            phases=phases,
            work=teacher_work(recipe) if phases is not None else StageWork(),
            unused=phases is not None or _has_unused(model.config),
        )
        run.begin({**corpora.fingerprints, **inputs})
        from_first_process(lambda: _keep_tokenizer(tokenizer, kept))
        run_stage(
            model,
            stage,
            RunContext(
                run.path,
                run.record.identity,
                training,
                tokenizer,
                run.card,
                corpora.score,
                interruption,
                on_step,
            ),
        )
        results: dict[str, Any] = {"tokens": training.max_steps * tokens_per_step(corpora.blocks, training)}
        if corpora.score is not None:
            results["validation_nll"] = corpora.score(model, "validation").nll
        run.finish(model, tokenizer, results)
        return results


def build_model(section: ModelSection, tokenizer: Any) -> PreTrainedModel:
    """Make a new model, causal or with an encoder, for a tokenizer's vocabulary.

    Raises InputError for a shape that cannot be.
    """
    fields = {name: getattr(section, name) for name in _SHARED}
    fields |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,  # of text nothing is padded; a padding row would be left out of training
        "rope_parameters": {"rope_type": "default", "rope_theta": section.rope_theta},
    }
    for unused in section.unused_fields():
        print_status(f"model.{unused} is not used by solver {section.solver}")
    kind = "pairs" if section.num_encoder_layers else "text"
    if kind == "pairs":
        fields |= {
            "num_encoder_layers": section.num_encoder_layers,
            "shared_embeddings": section.shared_embeddings,
            "pad_token_id": tokenizer.pad_token_id,
            "decoder_start_token_id": start_token_id(tokenizer),
        }
    config_class, model_class = _CLASSES[section.solver, kind]
    try:
        return model_class(config_class(**fields, **_solver_fields(section, config_class)))
    except (ValueError, StrictDataclassError) as error:
        raise InputError(f"model: {one_line(error)}") from None


def _solver_fields(section: ModelSection, config_class: Any) -> dict[str, Any]:
    """Return the fields of layers and solver. The Transformer of pairs is a plain IIET without iterations."""
    if config_class is LlamaConfig:
        return {"num_hidden_layers": section.num_layers}
    fields = {"num_layers": section.num_layers, "cache_policy": section.cache_policy}
    if section.solver == "transformer":
        return {**fields, "num_iterations": 0, "num_encoder_iterations": 0, "history": False}
    if section.solver == "pcformer":
        return {**fields, "predictor_order": section.predictor_order, "coefficients": section.coefficients}
    for name in ("num_iterations", "num_encoder_iterations"):
        if getattr(section, name) is not None:
            fields[name] = getattr(section, name)
    return {**fields, "history": section.history, "relaxation": section.relaxation}


def _prepare_tokenizer(recipe: TrainRecipe, kept: Path) -> Any:
    """Load the recipe's tokenizer, or the one in folder `kept`, if it is there; else train one on the text."""
    if recipe.tokenizer.path is not None:
        return load_tokenizer(recipe.tokenizer.path)
    if kept.is_dir():
        if damage := find_damage(kept):
            raise InputError(f"{kept}: {damage}; remove the folder to train the tokenizer again")
        return load_tokenizer(kept)
    return from_first_process(lambda: _make_tokenizer(recipe))


def _keep_tokenizer(tokenizer: Any, kept: Path) -> None:
    if not kept.is_dir():
        with atomic_folder(kept) as stage:
            tokenizer.save_pretrained(stage)
            write_manifest(stage)


def _make_tokenizer(recipe: TrainRecipe) -> Any:
    """Train a tokenizer on the text; of generated tasks take their words."""
    found = resolve_inputs(recipe.data.train, "train")
    if recipe.tokenizer.vocab_size is None:
        words = [word for source in found if isinstance(source, TaskSource) for word in source.task.words]
        return task_tokenizer(list(dict.fromkeys(words)))
    sources = [source for source in found if not isinstance(source, TaskSource)]
    if len(sources) < len(found):
        raise InputError(
            "tokenizer.vocab_size: expected none with generated tasks, which bring their own words"
        )
    fields = [row_fields(source, recipe.data.text_field) for source in sources]
    text = [source for source, pair in zip(sources, fields, strict=True) if pair is None]
    require_readable([file for source in text for file in source.files], recipe.data.text_field)
    sizes = {source: sum(file.path.stat().st_size for file in source.files) for source in sources}
    with progress("training the tokenizer", sum(sizes.values()), "B") as advance:

        def texts(source: FileSource) -> Any:
            for document in read_texts(source, recipe.data.text_field):
                yield from document
            advance(sizes[source])

        return train_tokenizer(
            (text for each in sources for text in texts(each)),
            recipe.tokenizer.vocab_size,
            padding=PAIR in fields,
        )


def _start_model(section: ModelSection, tokenizer: Any) -> tuple[PreTrainedModel, dict[str, str]]:
    """Make or load the model to begin with, in float32; return it and the hash of one that was loaded."""
    if section.path is None:
        return build_model(section, tokenizer), {}
    read_limits(section.path)  # which blocks and batches are cut by
    model, identity = load_identified(
        section.path, "cpu", "float32", cast=True, num_iterations=section.num_iterations, kind=None
    )
    if "cache_policy" in section.model_fields_set:
        if not hasattr(model, "set_cache_policy"):
            raise InputError(
                f"model.cache_policy: expected none for {section.path}, a {model.config.model_type} without "
                f"iterations, got {section.cache_policy}"
            )
        model.set_cache_policy(section.cache_policy)
    return model, {"model": identity.fingerprint}


def _has_unused(config: Any) -> bool:
    """Return whether the plan, or the predictor's stages, leave parameters without use."""
    if isinstance(config, PCformerConfig) and (config.predictor_stages or 4) < config.predictor_order:
        return True
    return isinstance(config, IIETConfig) and 0 in config.iterations


def _plan_phases(recipe: TrainRecipe, model: PreTrainedModel) -> TwoPhases | None:
    """Return the schedule of the iterations; None where all run from the start, the default for a loaded model."""
    training, config = recipe.training, model.config
    if not isinstance(config, IIETConfig) or isinstance(config, PCformerConfig) or not any(config.iterations):
        return None
    if recipe.model.path is not None:
        if "iterations_start" not in training.model_fields_set or not training.iterations_start:
            return None
        if config.history:
            raise InputError(
                f"training.iterations_start: expected 0 for {recipe.model.path}, whose iterations have learnt and "
                f"would begin anew, got {training.iterations_start}"
            )
    return TwoPhases(config.iterations, training.iterations_start, training.max_steps, training.smooth_start)
