"""The training loop: what `iiad train` and every stage of `iiad distill` run."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from iiad.checkpoints import read_weights
from iiad.errors import InputError, Unfinished, one_line
from iiad.memory import is_out_of_memory, memory_explained
from iiad.progress import format_duration, print_status, progress

from .averaging import AVERAGE, AveragedWeights
from .batches import micro_batches, seed_step, steps_per_epoch, tokens_per_step
from .checkpointing import Checkpoints, StageState
from .learner import Learner, set_recompute, shard, unsharded
from .optimizing import clip_gradient, gather_optimizer, load_optimizer, make_optimizer, make_schedule
from .processes import any_process, from_first_process, gather, gather_full, mean_over_processes
from .stage import RunContext, Stage
from .stage_log import StageLog
from .turns import summarize_scores

__all__ = ["run_stage"]


def run_stage(model: PreTrainedModel, stage: Stage, context: RunContext) -> StageState:
    """Train the model in place, from the newest whole checkpoint in the stage's folder if there is one.

    Returns how far it is: to the last step, or to where enough is retained. Raises Unfinished, with a checkpoint
    saved, after SIGTERM or when the time is over, and InputError for losses that stay NaN, checkpoints that cannot be
    saved or used, and where memory runs out.
    """
    settings = context.optimization
    checkpoints = Checkpoints(stage.folder, settings.save_total_limit, f"{context.run} {stage.name}")
    start = from_first_process(checkpoints.newest_whole)
    state = StageState(run=checkpoints.run)
    if start is not None:
        with _going_on_from(start):
            state = StageState.load(start)
            model.load_state_dict(read_weights(start), strict=False)  # without a tied head, which follows
    if state.step == stage.length.max_steps or state.stopped:
        found = "stopped early" if state.stopped else "all steps were made"
        print_status(f"{stage.name}: {found} before; not run again")
        AveragedWeights(model, settings.ema_decay, start).swap()
        return state
    in_batch = stage.blocks.batch_tokens(settings.per_device_train_batch_size)
    size = (max(1, round(in_batch / stage.blocks.block_size)), stage.blocks.block_size)
    with memory_explained(f"{stage.name} on {model.device}", model, *size, training=True):
        run = _StageRun(model, stage, context, checkpoints, state)
        try:
            if start is not None:
                with _going_on_from(start):
                    run.load(start)
            run.make_steps()
            run.take_result(model)
        finally:
            run.close()
    return state


@contextmanager
def _going_on_from(checkpoint: Path) -> Iterator[None]:
    """Raise InputError for whatever the libraries raise of files that are whole and no checkpoint's."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise InputError(f"{checkpoint}: expected a checkpoint of this run, got {one_line(error)}") from error


class _StageRun:
    """A stage under way: the model as it is run, its optimizer, and how far it is.

    What is run is the learner around the model, wrapped by DDP or sharded; what is saved, averaged and shown is the
    model, the same for one process, DDP and FSDP2.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stage: Stage,
        context: RunContext,
        checkpoints: Checkpoints,
        state: StageState,
    ):
        self.stage, self.context, self.checkpoints, self.state = stage, context, checkpoints, state
        self.settings = settings = context.optimization
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",  # the learner's own autocast serves its teacher as well
            gradient_accumulation_steps=settings.gradient_accumulation_steps * stage.turns.num_turns,
            log_with=list(settings.report_to) or None,
            project_dir=context.folder / "trackers",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=stage.unused)],
        )
        sharded = settings.fsdp and self.accelerator.num_processes > 1
        # What is sharded cannot be made whole in place: a copy is, and the model waits in main memory.
        self.model = copy.deepcopy(model.to("cpu")) if sharded else model
        set_recompute(self.model, settings.gradient_checkpointing)
        backend = settings.torch_compile_backend if settings.torch_compile else None
        self.learner = Learner(self.model, stage.objective, settings.autocast, backend).train()
        if sharded:
            shard(self.learner)
        self.wrapped = self.learner if sharded else self.accelerator.prepare(self.learner)
        self.optimizer = make_optimizer(self.model, settings, stage.length.learning_rate)
        self.schedule = make_schedule(self.optimizer, settings, stage.length)
        self.average = AveragedWeights(self.model, settings.ema_decay)
        self.window: dict[str, Tensor] = {}  # StageState's, where the losses are
        tokens = tokens_per_step(stage.blocks, settings)
        self.log = StageLog(context.folder / "log.jsonl", stage.name, state, tokens, self.accelerator)
        name = f"{context.folder.name} {stage.name}"
        fields = {key: value for key, value in settings if isinstance(value, int | float | str)}
        self.accelerator.init_trackers("iiad", fields, {"wandb": {"name": name}})

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, whose weights and state are there already."""
        stored = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        load_optimizer(self.optimizer, stored["optimizer"])
        self.schedule.load_state_dict(stored["schedule"])
        self.average.load(checkpoint)
        device = self.accelerator.device
        for name, total in self.state.window.items():
            self.window[name] = torch.tensor(total, dtype=torch.float64, device=device)

    def make_steps(self) -> None:
        """The loop: from where the stage was left to its last step. Raises Unfinished where it is interrupted."""
        stage, state, settings = self.stage, self.state, self.settings
        last_step, interruption = stage.length.max_steps, self.context.interruption
        work, begun = stage.work, time.monotonic()
        total = work.between(state.step, last_step)
        with progress(stage.name, total, share=stage.share) as advance, interruption:
            while state.step < last_step and not state.stopped and not interruption.reason:
                if self.context.on_step is not None:
                    self.context.on_step(state.step + 1)
                if stage.phases is not None:
                    stage.phases.enter(state.step, self.model)
                self.average.restart_unlearnt(self.optimizer)
                learning_rate = float(self.schedule.get_last_lr()[0])
                norm = self.make_step(learning_rate)
                self.schedule.step()
                self.average.update()
                state.step += 1
                if state.step % settings.logging_steps == 0:
                    self.log_window(norm, learning_rate)
                saving = state.step % settings.save_steps == 0 or state.step == last_step
                saving |= interruption.is_due()
                if settings.eval_steps and state.step % settings.eval_steps == 0:
                    saving |= self.validate(saving)
                if saving:
                    self.save()
                advance(work.between(state.step - 1, state.step), self.describe_step)
            if stage.phases is not None:
                stage.phases.leave(self.model)
            print_status(
                f"{stage.name}: {self.describe_step()}, in {format_duration(time.monotonic() - begun)}"
            )
            if interruption.is_due():  # also while the last step was being saved
                saved = f"saved {self.checkpoints.newest()}; continue with --resume"
                raise Unfinished(f"{self.context.folder}: {interruption.reason}; {saved}")

    def describe_step(self) -> str:
        """Say how far the stage is, with the newest figures; before the first are logged, with the loss so far."""
        state = self.state
        figures = self.log.note
        if not figures and state.window_steps:
            figures = f"loss {float(self.window['loss']) / state.window_steps:.4f}"
        return ", ".join(filter(None, [f"step {state.step:,} of {self.stage.length.max_steps:,}", figures]))

    def make_step(self, learning_rate: float) -> float:
        """One optimizer step, skipped if its loss or gradient is NaN or infinite; returns the gradient's norm."""
        stage, state = self.stage, self.state
        seed_step(stage.seed, state.step)
        means = self.add_gradients()
        # The one wait for the device in a step.
        norm = float(clip_gradient(self.model, self.settings.max_grad_norm))
        if norm < float("inf"):
            state.skipped_in_a_row = 0
            state.window_steps += 1
            self.window = {name: mean + self.window.get(name, 0.0) for name, mean in means.items()}
        else:
            self.count_skipped(norm, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def add_gradients(self) -> dict[str, Tensor]:
        """Run the turns of a step over its micro-batches; returns the losses, each a mean over these, turns added."""
        stage, settings, device = self.stage, self.settings, self.accelerator.device
        turns, means = stage.turns, dict[str, Tensor]()
        turns.draw(stage.seed, self.state.step)
        stage.rewriting.draw(stage.seed, self.state.step)
        for batch, weight in micro_batches(stage.blocks, self.state.step, settings, stage.seed, device):
            batch = stage.rewriting.rewrite(batch)
            signal = stage.objective.signal(batch)
            for turn in range(turns.num_turns):
                turns.enter(self.model, turn)
                with self.accelerator.accumulate(self.wrapped):
                    if isinstance(self.learner, FSDPModule):
                        self.learner.set_requires_gradient_sync(self.accelerator.sync_gradients)
                    loss, parts = self.wrapped(batch, signal)
                    # An infinite loss may have a finite gradient: have it tell, since all processes see the gradient.
                    # accelerate divides by the number of passes; turns are added up.
                    self.accelerator.backward(turns.num_turns * loss * (weight + 0 * loss.detach()))
                for name, part in {"loss": loss.detach(), **parts}.items():
                    means[name] = (
                        means.get(name, 0.0) + weight * part.double() / settings.gradient_accumulation_steps
                    )
        turns.leave(self.model)
        return means

    def count_skipped(self, norm: float, learning_rate: float) -> None:
        """Note a skipped step. Raises InputError for too many in a row."""
        state, problem = self.state, "loss or gradient is NaN or infinite"
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row > self.settings.max_skipped_steps:
            raise InputError(
                f"{problem} at step {state.step + 1} (gradient norm {norm}, learning rate {learning_rate:.3g}), "
                f"{state.skipped_in_a_row} in a row; the weights are as they were; last good checkpoint: "
                f"{self.checkpoints.newest() or 'none yet in this stage'}; "
                "try a lower learning rate or a longer warm-up"
            )
        print_status(f"step {state.step + 1}: {problem}; skipped ({state.skipped_steps} so far)")

    def log_window(self, norm: float, learning_rate: float) -> None:
        """Log the mean losses of the steps since the last time; null where all were skipped. Collective."""
        state = self.state
        sums = mean_over_processes(self.window)
        means = {name: total / state.window_steps for name, total in sums.items()}
        state.newest |= {"loss": means["loss"]} if means else {}
        self.window, state.window_steps = {}, 0
        figures: dict[str, Any] = {
            **(means or {"loss": None}),
            "grad_norm": norm if norm < float("inf") else None,  # JSON has no NaN
            "learning_rate": learning_rate,
            "skipped_steps": state.skipped_steps,
            "epoch": state.step / steps_per_epoch(self.stage.blocks, self.settings),
            **self.stage.rewriting.take_figures(),
        }
        self.log.write(state.step, figures, self.model)

    def validate(self, saving: bool) -> bool:
        """Score on held-out text, log, and note the best; returns whether to save for it. Collective.

        saving: the step is saved anyway; else the best is where scores are no more frequent than checkpoints.
        """
        state, stage = self.state, self.stage
        if self.context.score is None:
            return False
        with self.average.applied(), unsharded(self.learner):
            figures = summarize_scores(stage.turns.score(self.model, self.context.score), stage.teacher)
        loss, retained = figures["eval_loss"], figures.get("retained")
        # Together: one process that stopped alone would leave the others waiting for ever.
        if retained is not None and stage.retain is not None and any_process(retained >= stage.retain):
            state.stopped = f"retains {100 * retained:.2f} % of the teacher's accuracy"
            print_status(f"step {state.step}: {state.stopped}; {100 * stage.retain:g} % were asked for")
        state.newest |= figures
        self.log.write(state.step, figures, self.model)
        saving |= bool(state.stopped) or (self.settings.eval_steps or 0) >= self.settings.save_steps
        if saving and loss < state.best.get("eval_loss", float("inf")):
            state.best = {"step": state.step, "eval_loss": loss}
        return bool(state.stopped) or state.best.get("step") == state.step

    def save(self) -> None:
        """Make a checkpoint. Collective."""
        state = dataclasses.replace(self.state, window=mean_over_processes(self.window))
        weights, average = gather(self.model.state_dict()), gather(self.average.values)
        stored = {"optimizer": gather_optimizer(self.optimizer), "schedule": self.schedule.state_dict()}

        def write(folder: Path) -> None:
            self.model.save_pretrained(folder, state_dict=weights)
            if self.context.tokenizer is not None:
                self.context.tokenizer.save_pretrained(folder)
            card = self.context.card(self.model, {"stage": self.stage.name, **state.figures()})
            (folder / "README.md").write_text(card, encoding="utf-8")
            if average:
                save_file({name: value.contiguous() for name, value in average.items()}, folder / AVERAGE)
            torch.save(stored, folder / "optimizer.pt")
            state.save(folder)

        from_first_process(lambda: self.checkpoints.save(state.step, write, state.best.get("step")))

    def take_result(self, model: PreTrainedModel) -> None:
        """Give run_stage's model the trained weights, averaged if the recipe says so. Collective."""
        self.average.swap()
        if model is not self.model:
            model.load_state_dict({name: gather_full(v).cpu() for name, v in self.model.state_dict().items()})
            model.to(self.accelerator.device)

    def close(self) -> None:
        """End the trackers and free what the stage holds."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()
