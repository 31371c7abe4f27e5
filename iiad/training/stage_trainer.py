"""Hugging Face's Trainer for our stages: atomic checkpoints, losses apart, bad steps skipped, FSDP2."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback

from iiad.errors import InputError
from iiad.progress import print_status

from .averaging import AveragedWeights
from .checkpointing import Checkpoints, latest_checkpoint, notes_of
from .learner import Learner, shard
from .processes import gather, is_first_process, mean_over_processes, num_processes, whole

__all__ = ["StageTrainer"]


class StageTrainer(Trainer):
    """Runs a learner's objective.

    `self.model` stays the transformers model, which callbacks and checkpoints see; what is run, and wrapped by DDP
    or sharded, is the learner around it. What a checkpoint holds is the same for one process, DDP and FSDP2.

    card: the model card for a checkpoint, from figures by name. average: kept in checkpoints, too. unused: some
    parameters get no gradient in some steps (an IIET before its iterations start), which DDP must be told.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        checkpoints: Checkpoints,
        tokenizer: Any,
        card: Callable[[dict[str, Any]], str],
        average: AveragedWeights | None,
        max_skipped_steps: int,
        sharded: bool,
        unused: bool,
        **kwargs: Any,
    ):
        super().__init__(model=learner.model, **kwargs)
        self.remove_callback(PrinterCallback)
        self.learner, self.checkpoints, self.card, self.average = learner, checkpoints, card, average
        # Kept from Trainer, which would write the tokenizer's padding token, our end-of-text, into the model.
        self.tokenizer = tokenizer
        self.max_skipped_steps, self.sharded, self.unused = max_skipped_steps, sharded, unused
        self.skipped_in_a_row = 0
        self.parts: dict[str, list[Tensor]] = {}
        self.staging: Path | None = None
        # The objective gives a mean over the micro-batch: let the Trainer divide by the accumulation steps.
        # (One of these is read by older transformers, the other by newer.)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False

    # What is run.

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Over the sharded parameters, where they are sharded."""
        if self.sharded and self.optimizer is None:
            shard(self.learner)
        return super().create_optimizer(*args, **kwargs)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if num_processes() == 1 or self.sharded:
            return self.learner
        device = [self.args.device] if self.args.device.type == "cuda" else None
        return DistributedDataParallel(self.learner, device_ids=device, find_unused_parameters=self.unused)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Matrices alone decay: not norms, biases, history weights or relaxation."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss on the batch; its parts are kept for the log."""
        assert self.learner.objective is not None
        loss, parts = model(inputs, self.learner.objective.signal(inputs))
        for name, part in {"loss": loss.detach(), **parts}.items():
            self.parts.setdefault(name, []).append(part)
        # A loss can be infinite and its gradient finite: let the gradient tell, which all processes share.
        loss = loss * (1 + 0 * loss.detach())
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, for the Trainer's own sum, in which one NaN would stay for ever."""
        if isinstance(self.learner, FSDPModule):  # once a step; until then gradients add up where they are
            self.learner.set_requires_gradient_sync(self.accelerator.sync_gradients)
        return super().training_step(*args, **kwargs).nan_to_num(0.0, 0.0, 0.0)

    def _clip_grad_norm(self, model: Any) -> None:
        """Left to `_get_grad_norm`, which the Trainer calls next."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """Clip, or take a step whose gradient is NaN or infinite out of the optimizer's way. The norm before."""
        learning = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm([parameter.grad for parameter in learning]))
        found = float(norm)  # of one process, the one wait for the device in a step
        steps = self.args.gradient_accumulation_steps
        if norm.isfinite():
            self.skipped_in_a_row = 0
            if self.args.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(learning, self.args.max_grad_norm, norm)
            return found
        for parameter in learning:
            parameter.grad = None  # an optimizer leaves such parameters, and what it knows of them, alone
        for name in self.parts:
            del self.parts[name][-steps:]
        self._count_skipped(found)
        return found

    def _count_skipped(self, norm: float) -> None:
        notes = notes_of(self.state)
        notes["skipped_steps"] = notes.get("skipped_steps", 0) + 1
        self.skipped_in_a_row += 1
        step = self.state.global_step + 1
        if self.skipped_in_a_row > self.max_skipped_steps:
            last = latest_checkpoint(self.checkpoints.folder)
            raise InputError(
                f"loss or gradient is NaN or infinite at step {step} (gradient norm {norm}, learning rate "
                f"{self._get_learning_rate():.3g}), {self.skipped_in_a_row} in a row; the weights are as they were; "
                f"last good checkpoint: {last or 'none yet in this stage'}; "
                "try a lower learning rate or a longer warm-up"
            )
        print_status(
            f"step {step}: loss or gradient is NaN or infinite; skipped ({notes['skipped_steps']} so far)"
        )

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Put the losses in, apart, averaged over steps since the last time and over processes."""
        if "loss" in logs:
            del logs["loss"]
            means = {
                name: torch.stack(values).float().mean() for name, values in self.parts.items() if values
            }
            self.parts.clear()
            if means:
                shared = mean_over_processes(torch.stack(list(means.values()))).tolist()
                logs = {**dict(zip(means, shared, strict=True)), **logs}
            else:  # all skipped; JSON has no NaN
                logs = {"loss": None, **logs}
            if not logs.get("grad_norm", 0.0) < float("inf"):
                logs["grad_norm"] = None
            logs["skipped_steps"] = notes_of(self.state).get("skipped_steps", 0)
        super().log(logs, *args, **kwargs)

    # What is kept.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging) if self.staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint that is whole or not there, with tokenizer, model card and average."""
        step, notes = self.state.global_step, notes_of(self.state)
        with self.checkpoints.saving(step, notes.get("best", {}).get("step")) as self.staging:
            super()._save_checkpoint(model, trial)
            made = self.staging / f"checkpoint-{step}"
            if self.average is not None:
                self.average.save(made)
            if is_first_process():
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(made)
                (made / "README.md").write_text(self.card(self._figures()), encoding="utf-8")
        self.staging = None

    def _figures(self) -> dict[str, Any]:
        """What there is to say of the run so far: its step, the newest of each measure, and our notes."""
        measures = ("loss", "eval_loss", "eval_accuracy", "retained")
        newest = {name: entry[name] for entry in self.state.log_history for name in measures if name in entry}
        return {"step": self.state.global_step, **newest, **notes_of(self.state)}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole model, written by the first process."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        weights = gather(self.model.state_dict())
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self.optimizer.state_dict()
        state["state"] = {number: gather(values) for number, values in state["state"].items()}
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(os.path.join(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, values in state["state"].items():
            parameter = parameters[number]
            for name, value in values.items():
                if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                    value = value.to(parameter.device)
                    values[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(
            torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True)
        )
