"""One stage of training: Hugging Face's Trainer with atomic checkpoints, a log of its own and a NaN guard.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from iiad.errors import InputError
from iiad.reporting.progress import progress

from .recipe import OptimizationSection, StageSection, TrainingSection

__all__ = ["Objective", "StageTrainer", "cross_entropy", "latest_checkpoint", "run_stage"]

# An objective takes the model and input_ids (B, T) and gives the loss, and its parts by name for the log.
Objective = Callable[[PreTrainedModel, Tensor], tuple[Tensor, dict[str, Tensor]]]


def cross_entropy(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean nats per predicted token, in float32. logits: (B, T, V), input_ids: (B, T)."""
    predictions, targets = logits[:, :-1], input_ids[:, 1:]
    return torch.nn.functional.cross_entropy(predictions.flatten(0, 1).float(), targets.flatten())


def language_modelling(model: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The ordinary objective: next-token cross-entropy."""
    return cross_entropy(model(input_ids=input_ids, use_cache=False).logits, input_ids), {}


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a stage, oldest first. Half-written ones have another name."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a stage, if there is one."""
    return next(reversed(checkpoints(Path(folder))), None)


def run_stage(
    model: PreTrainedModel,
    dataset: Dataset[dict[str, Tensor]],
    optimization: OptimizationSection,
    length: TrainingSection | StageSection,
    folder: str | Path,
    *,
    name: str,
    objective: Objective = language_modelling,
    validation: Dataset[dict[str, Tensor]] | None = None,
    tokenizer: Any = None,
    log: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train the model in place, from the newest checkpoint in the folder if there is one.

    dataset: items with input_ids (T,), all of one length. length: steps, learning rate and warm-up.
    folder: for checkpoints. log: the JSONL file that all stages of a run share.
    Raises InputError for too little data, a loss that is NaN or infinite, and a checkpoint that cannot be saved.
    """
    batch = optimization.per_device_train_batch_size * optimization.gradient_accumulation_steps
    if len(dataset) < batch:  # type: ignore[arg-type]
        raise InputError(
            f"data.train has {len(dataset)} blocks; one step needs "  # type: ignore[arg-type]
            f"{batch} (per_device_train_batch_size x gradient_accumulation_steps)"
        )
    if optimization.attn_implementation is not None:
        try:
            model.set_attn_implementation(optimization.attn_implementation)
        except (ImportError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"training.attn_implementation: {optimization.attn_implementation}: {reason}"
            ) from None
    if optimization.gradient_checkpointing:
        new_name = "activation_checkpointing_enable"  # older transformers know the old name alone
        (getattr(model, new_name, None) or model.gradient_checkpointing_enable)({"use_reentrant": False})
    bar = _Progress(name)
    trainer = StageTrainer(
        model=model,
        args=training_arguments(optimization, length, folder, evaluates=validation is not None),
        train_dataset=dataset,
        eval_dataset=validation,
        tokenizer=tokenizer,
        callbacks=[_Log(log, name), bar, *callbacks],
        stage_objective=objective,
        save_total_limit=optimization.save_total_limit,
    )
    start = latest_checkpoint(folder)
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    finally:
        bar.closing.close()


def training_arguments(
    optimization: OptimizationSection,
    length: TrainingSection | StageSection,
    folder: str | Path,
    evaluates: bool,
) -> TrainingArguments:
    """Our recipe's sections as Hugging Face's arguments, which have the same names."""
    shared = (
        "per_device_train_batch_size gradient_accumulation_steps lr_scheduler_type weight_decay adam_beta1 "
        "adam_beta2 adam_epsilon max_grad_norm bf16 seed save_steps logging_steps"
    ).split()
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{name: getattr(optimization, name) for name in shared},
        max_steps=length.max_steps,
        learning_rate=length.learning_rate,
        warmup_steps=length.warmup_steps,
        per_device_eval_batch_size=optimization.per_device_train_batch_size,
        eval_strategy="steps" if evaluates and optimization.eval_steps else "no",
        eval_steps=optimization.eval_steps,
        report_to=list(optimization.report_to) or "none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_drop_last=True,  # every batch has as many tokens, so that a mean of means is the mean
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_nan_inf_filter=False,  # we stop at NaN; the filter would hide it
        prediction_loss_only=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    if (
        arguments.n_gpu > 1
    ):  # several GPUs without torchrun: one is used, DataParallel would copy the model each step
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
        if model.training:
            for name, part in parts.items():
                self.parts.setdefault(name, []).append(part.item())
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Validation loss: always the next-token cross-entropy, whatever the stage learns from."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, _ = language_modelling(model, inputs["input_ids"])
        return loss.detach(), None, None

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
                f"{final}: cannot be saved: {' '.join(str(error).split())}; "
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


class _Log(TrainerCallback):
    """log.jsonl: a line whenever something is logged; after a resume, without what will be logged again."""

    def __init__(self, path: Path, stage: str):
        self.path, self.stage = path, stage
        self.started = time.monotonic()
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a kill in the middle of a line
            if entry["stage"] != self.stage or entry["step"] <= state.global_step:
                kept.append(line + "\n")
        self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any
    ) -> None:
        if not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        seconds = time.monotonic() - self.started
        entry = {"stage": self.stage, "step": state.global_step, **logs, "seconds": round(seconds, 3)}
        if hasattr(model.config, "num_iterations"):
            entry["evaluations_per_token"] = model.config.num_hidden_layers
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class _Progress(TrainerCallback):
    """A bar or lines with steps per second and time left."""

    def __init__(self, stage: str):
        self.stage = stage
        self.closing = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        left = state.max_steps - state.global_step
        self.advance = self.closing.enter_context(progress(self.stage, left, "steps"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)
