"""One stage of training: Hugging Face's Trainer with atomic checkpoints, a log of its own and a NaN guard.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Subset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from iiad.checkpoints import read_weights
from iiad.errors import InputError, one_line
from iiad.recipes import OptimizationSection, StageSection, TrainingSection
from iiad.reporting.progress import say

from .callbacks import FiniteGradients, StageLog, StepProgress, Validation

__all__ = [
    "Blocks",
    "Objective",
    "StageTrainer",
    "blocks_per_step",
    "check_stage",
    "cross_entropy",
    "language_modelling",
    "latest_checkpoint",
    "run_stage",
]


class Blocks(Protocol):
    """Equally long blocks of tokens: item i is a dict with input_ids (T,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Tensor]: ...


# An objective takes the model and input_ids (B, T) and gives the loss, and its parts by name for the log.
Objective = Callable[[PreTrainedModel, Tensor], tuple[Tensor, dict[str, Tensor]]]


def cross_entropy(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean nats per predicted token, in float32. logits: (B, T, V), input_ids: (B, T)."""
    predictions, targets = logits[:, :-1], input_ids[:, 1:]
    return torch.nn.functional.cross_entropy(predictions.flatten(0, 1).float(), targets.flatten())


def language_modelling(model: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Next-token cross-entropy: learning from text. input_ids: (B, T) -> the loss, and itself as the part "ce"."""
    loss = cross_entropy(model(input_ids=input_ids, use_cache=False).logits, input_ids)
    return loss, {"ce": loss.detach()}


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a stage, oldest first. Half-written ones have another name."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a stage, if there is one."""
    return next(reversed(checkpoints(Path(folder))), None)


def check_stage(model: PreTrainedModel, blocks: Blocks, optimization: OptimizationSection) -> None:
    """Raise InputError, before anything is written, for what would stop `run_stage` at its start.

    That is: fewer blocks than one step needs, bf16 on a GPU without it, an attention or a logger that is not
    installed. Sets the model's attention.
    """
    batch = blocks_per_step(optimization)
    if len(blocks) < batch:
        raise InputError(
            f"data.train has {len(blocks)} blocks; one step needs {batch} "
            "(per_device_train_batch_size x gradient_accumulation_steps)"
        )
    if optimization.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError("training.bf16: this GPU has no bfloat16; accepted here: false")
    if optimization.attn_implementation is not None:
        try:
            model.set_attn_implementation(optimization.attn_implementation)
        except (ImportError, ValueError) as error:
            wanted = optimization.attn_implementation
            raise InputError(f"training.attn_implementation: {wanted}: {one_line(error)}") from None
    installed = get_available_reporting_integrations()
    for logger in optimization.report_to:
        if logger not in installed:
            known = ", ".join(installed) or "none"
            raise InputError(f"training.report_to: {logger!r} is not installed; installed here: {known}")


def blocks_per_step(optimization: OptimizationSection) -> int:
    """Blocks that one optimizer step learns from."""
    return optimization.per_device_train_batch_size * optimization.gradient_accumulation_steps


def run_stage(
    model: PreTrainedModel,
    blocks: Blocks,
    optimization: OptimizationSection,
    length: TrainingSection | StageSection,
    folder: Path,
    *,
    name: str,
    log: Path,
    objective: Objective = language_modelling,
    validate: Callable[[PreTrainedModel], float] | None = None,
    tokenizer: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train the model in place, from the newest checkpoint in the folder if there is one.

    blocks: items with input_ids (T,), all of one length. length: steps, learning rate and warm-up; where the last
    step was made before, its weights are loaded and nothing is run. folder: for checkpoints. log: the JSONL file
    that all stages of a run share. validate: nats per token of the model on held-out text.
    Raises InputError for a loss or gradient that is NaN or infinite, and a checkpoint that cannot be saved.
    """
    start = latest_checkpoint(folder)
    if start is not None and start.name == f"checkpoint-{length.max_steps}":
        say(f"{name}: all steps were made before; not run again")
        model.load_state_dict(read_weights(start), strict=False)  # without a tied head, which follows
        return
    if optimization.gradient_checkpointing:
        new_name = "activation_checkpointing_enable"  # older transformers know the old name alone
        (getattr(model, new_name, None) or model.gradient_checkpointing_enable)({"use_reentrant": False})
    # A whole number of steps, so that none at the end of an epoch has fewer blocks than the others.
    whole = len(blocks) - len(blocks) % blocks_per_step(optimization)
    bar = StepProgress(name)
    trainer = StageTrainer(
        model=model,
        args=training_arguments(optimization, length, folder),
        train_dataset=Subset(cast(Any, blocks), range(whole)),
        tokenizer=tokenizer,
        callbacks=[StageLog(log, name), bar, FiniteGradients(), *callbacks],
        stage_objective=objective,
        save_total_limit=optimization.save_total_limit,
    )
    if validate is not None and optimization.eval_steps:
        trainer.add_callback(Validation(trainer, validate, optimization.eval_steps))
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    finally:
        bar.closing.close()


def training_arguments(
    optimization: OptimizationSection, length: TrainingSection | StageSection, folder: Path
) -> TrainingArguments:
    """Our recipe's sections as Hugging Face's arguments, which have the same names."""
    shared = """
    per_device_train_batch_size gradient_accumulation_steps lr_scheduler_type weight_decay adam_beta1 adam_beta2
    adam_epsilon max_grad_norm bf16 seed save_steps logging_steps
    """.split()
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{name: getattr(optimization, name) for name in shared},
        max_steps=length.max_steps,
        learning_rate=length.learning_rate,
        warmup_steps=length.warmup_steps,
        report_to=list(optimization.report_to) or "none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_nan_inf_filter=False,  # we stop at NaN; the filter would hide it
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    # Several GPUs without torchrun: one is used. DataParallel would copy the model at each step.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class StageTrainer(Trainer):
    """Trainer that saves checkpoints atomically, keeps the parts of the loss and stops at NaN."""

    def __init__(
        self, *, stage_objective: Objective, tokenizer: Any, save_total_limit: int | None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.stage_objective = stage_objective
        # Kept from Trainer, which would write the tokenizer's padding token, our end-of-text, into the model.
        self.tokenizer = tokenizer
        self.save_total_limit = save_total_limit
        self.staging: Path | None = None
        self.parts: dict[str, list[float]] = {}
        # The objective gives a mean over the micro-batch: let the Trainer divide by the accumulation steps.
        # (One of these is read by older transformers, the other by newer.)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss. Raises InputError if it is NaN or infinite."""
        loss, parts = self.stage_objective(model, inputs["input_ids"])
        if not math.isfinite(loss.item()):
            last = latest_checkpoint(self.args.output_dir)
            raise InputError(
                f"loss is {loss.item()} at step {self.state.global_step + 1} "
                f"(learning rate {self._get_learning_rate():.3g}); "
                f"last whole checkpoint: {last or 'none yet'}; try a lower learning rate or a longer warm-up"
            )
        for name, part in parts.items():
            self.parts.setdefault(name, []).append(part.item())
        return (loss, {"loss": loss}) if return_outputs else loss

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Matrices alone decay: not norms, biases, history weights or relaxation."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss, averaged since the last time."""
        if "loss" in logs:
            logs = {**logs, **{name: sum(values) / len(values) for name, values in self.parts.items()}}
            self.parts.clear()
        super().log(logs, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging) if self.staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save beside the others under another name, then rename: a checkpoint is whole or not there."""
        folder = Path(self.args.output_dir)
        final = folder / f"checkpoint-{self.state.global_step}"
        self.staging = folder / ".saving"
        for leftover in folder.glob(".checkpoint-*-deleted"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
            super()._save_checkpoint(model, trial)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(self.staging / final.name)
            if final.exists():
                _remove(final)
            os.replace(self.staging / final.name, final)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{final}: cannot be saved: {one_line(error)}; "
                f"last whole checkpoint: {latest_checkpoint(folder) or 'none yet'}"
            ) from error
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None
        for old in checkpoints(folder)[: -self.save_total_limit] if self.save_total_limit else []:
            _remove(old)


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that at no moment a part of it has a checkpoint's name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}-deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)
