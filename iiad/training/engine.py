"""One stage of training, from where it was left to its end: what `iiad train` and `iiad distill` run on."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from iiad.checkpoints import read_weights
from iiad.errors import InputError, Unfinished, one_line
from iiad.memory import memory_explained
from iiad.progress import print_status

from .averaging import AveragedWeights, load_average
from .callbacks import StageLog, StepProgress, Validation
from .checkpointing import Checkpoints, latest_checkpoint, read_notes
from .interruption import Interruption, TimeLimit
from .learner import LanguageModelling, Learner, Objective
from .processes import is_first_process, num_processes, whole
from .scoring import TokenScore
from .stage_sections import OptimizationSection, StageSection, TrainingSection
from .stage_trainer import StageTrainer

__all__ = ["Blocks", "RunContext", "announce", "blocks_per_step", "check_stage", "run_stage"]


class Blocks(Protocol):
    """Equally long blocks of tokens: item i is a dict with input_ids (T,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class RunContext:
    """What the stages of a run share.

    folder: of the run. optimization: the recipe's section. tokenizer: saved with checkpoints. card: the model card
    for figures by name. score: of a model on held-out text. limit: of the run's minutes.
    """

    folder: Path
    optimization: OptimizationSection
    tokenizer: Any
    card: Callable[[PreTrainedModel, dict[str, Any]], str]
    score: Callable[[Any], TokenScore] | None = None
    limit: TimeLimit = field(default_factory=TimeLimit)


def check_stage(model: PreTrainedModel, blocks: Blocks, optimization: OptimizationSection) -> None:
    """Raise InputError, before anything is written, for what would stop `run_stage` at its start.

    That is: fewer blocks than one step needs, bf16 on a GPU without it, an attention, a logger or a compiler that is
    not installed. Sets the model's attention.
    """
    batch = blocks_per_step(optimization)
    if len(blocks) < batch:
        raise InputError(
            f"data.train has {len(blocks)} blocks; one step needs {batch} "
            "(per_device_train_batch_size x gradient_accumulation_steps x processes)"
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
    if optimization.torch_compile:  # not otherwise: to look for backends takes seconds
        backends = sorted(torch._dynamo.list_backends(None))
        if optimization.torch_compile_backend not in backends:
            raise InputError(
                f"training.torch_compile_backend: found {optimization.torch_compile_backend!r}; accepted here: "
                f"{', '.join(backends)}"
            )


def announce(optimization: OptimizationSection) -> None:
    """Say what of a recipe will have no effect."""
    if optimization.fsdp and num_processes() == 1:
        print_status("training.fsdp: there is one process, so nothing is sharded")


def blocks_per_step(optimization: OptimizationSection) -> int:
    """Blocks that one optimizer step learns from, in all processes together."""
    one = optimization.per_device_train_batch_size * optimization.gradient_accumulation_steps
    return one * num_processes()


def run_stage(
    model: PreTrainedModel,
    blocks: Blocks,
    length: TrainingSection | StageSection,
    context: RunContext,
    folder: Path,
    *,
    name: str,
    objective: Objective | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    unused: bool = False,
    retain: float | None = None,
    teacher: TokenScore | None = None,
    seed: int | None = None,
) -> tuple[int, bool]:
    """Train the model in place, from the newest checkpoint in the folder if there is one.

    blocks: items with input_ids (T,), all of one length, and what the objective's signals ask for. length: steps,
    learning rate, warm-up and schedule; where its last step was made before, the weights are loaded and nothing is
    run. folder: for checkpoints. unused: see StageTrainer. retain, teacher: see Validation.
    Returns the steps made in all, and whether it stopped early because enough is retained. Raises Unfinished, with a
    checkpoint saved, after SIGTERM or when the time is over, and InputError for losses that stay NaN, checkpoints
    that cannot be saved, and where memory runs out.
    """
    optimization = context.optimization
    checkpoints = Checkpoints(folder, optimization.save_total_limit)
    if is_first_process():
        checkpoints.sweep()
    start = latest_checkpoint(folder)
    if start is not None and _is_finished(start, length):
        return _load_finished(model, start, name, optimization)
    sharded = optimization.fsdp and num_processes() > 1
    device = model.device
    # What is sharded cannot be made whole in place: a copy is, and the model waits for its weights in main memory.
    subject = copy.deepcopy(model.to("cpu")) if sharded else model
    average = AveragedWeights(optimization.ema_decay, start) if optimization.ema_decay is not None else None
    bar, interruption = StepProgress(name), Interruption(context.limit)
    tokens = blocks_per_step(optimization) * len(blocks[0]["input_ids"])
    log = StageLog(context.folder / "log.jsonl", name, tokens)
    # A whole number of steps, so that none at the end of an epoch has fewer blocks than the others.
    used = len(blocks) - len(blocks) % blocks_per_step(optimization)
    trainer = StageTrainer(
        learner=_make_learner(subject, objective, optimization),
        checkpoints=checkpoints,
        tokenizer=context.tokenizer,
        card=lambda figures: context.card(subject, {"stage": name, **figures}),
        average=average,
        max_skipped_steps=optimization.max_skipped_steps,
        sharded=sharded,
        unused=unused,
        args=training_arguments(optimization, length, folder, seed),
        train_dataset=Subset(cast(Any, blocks), range(used)),
        callbacks=[*callbacks, *([average] if average else []), log, bar, interruption],
    )
    if context.score is not None and optimization.eval_steps:
        score = _scorer(context.score, trainer.learner if sharded else subject, subject, average)
        trainer.add_callback(Validation(score, trainer.log, optimization.eval_steps, retain, teacher))
    try:
        size = (optimization.per_device_train_batch_size, len(blocks[0]["input_ids"]))
        with memory_explained(f"{name} on {device}", subject, *size, training=True):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        leaving = interruption.is_due()  # in its last step, too, or while that was being saved
        num_steps = trainer.state.global_step
    finally:
        bar.closing.close()
        interruption.restore()
        _release(trainer)
    last = latest_checkpoint(folder)
    if leaving:
        raise Unfinished(f"{context.folder}: {interruption.reason}; saved {last}; continue with --resume")
    if average is not None:
        average.swap(subject)
    if sharded:
        model.load_state_dict({name: whole(value).cpu() for name, value in subject.state_dict().items()})
        model.to(device)
    return num_steps, last is not None and "stopped" in read_notes(last)


def _is_finished(checkpoint: Path, length: TrainingSection | StageSection) -> bool:
    """Whether a stage ended with this checkpoint: by its last step, or early."""
    return checkpoint.name == f"checkpoint-{length.max_steps}" or "stopped" in read_notes(checkpoint)


def _load_finished(
    model: PreTrainedModel, checkpoint: Path, name: str, optimization: OptimizationSection
) -> tuple[int, bool]:
    """Give the model what a stage ended with; what `run_stage` returns."""
    stopped = "stopped" in read_notes(checkpoint)
    print_status(f"{name}: {'stopped early' if stopped else 'all steps were made'} before; not run again")
    model.load_state_dict(read_weights(checkpoint), strict=False)  # without a tied head, which follows
    if optimization.ema_decay is not None:
        load_average(model, checkpoint)
    return int(checkpoint.name.rpartition("-")[2]), stopped


def _make_learner(
    model: PreTrainedModel, objective: Objective | None, optimization: OptimizationSection
) -> Learner:
    """The model as the recipe has it run."""
    _recompute(model, optimization)
    backend = optimization.torch_compile_backend if optimization.torch_compile else None
    return Learner(model, objective or LanguageModelling(), optimization.bf16, backend)


def _release(trainer: StageTrainer) -> None:
    """Free the optimizer's state and what else a stage holds; trainer and callbacks hold each other."""
    trainer.callback_handler.callbacks.clear()
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    gc.collect()


def _recompute(model: PreTrainedModel, optimization: OptimizationSection) -> None:
    """Have the backward pass compute again what the recipe says; exact."""
    level = optimization.gradient_checkpointing
    if hasattr(model, "set_recompute"):
        model.set_recompute(level if isinstance(level, str) else "layer" if level else "none")
    elif level:  # a Transformer, whose layers are evaluated once
        enable = "activation_checkpointing_enable"  # older transformers know the old name alone
        (getattr(model, enable, None) or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _scorer(
    score: Callable[[Any], TokenScore], scored: Any, model: PreTrainedModel, average: AveragedWeights | None
) -> Callable[[], TokenScore]:
    """Score the model, with its averaged weights where there are some."""

    def measure() -> TokenScore:
        with average.applied(model) if average is not None else nullcontext():
            found = score(scored)
            if isinstance(scored, FSDPModule):
                scored.reshard()  # a forward pass without its backward pass leaves parts whole
        return found

    return measure


def training_arguments(
    optimization: OptimizationSection,
    length: TrainingSection | StageSection,
    folder: Path,
    seed: int | None = None,
) -> TrainingArguments:
    """Our recipe's sections as Hugging Face's arguments, which have the same names.

    seed: of the data's order; default: the recipe's.
    """
    shared = """
    per_device_train_batch_size gradient_accumulation_steps weight_decay adam_beta1 adam_beta2 adam_epsilon
    max_grad_norm save_steps logging_steps
    """.split()
    scheduler, scheduler_kwargs = _schedule(optimization, length)
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{name: getattr(optimization, name) for name in shared},
        seed=optimization.seed if seed is None else seed,
        max_steps=length.max_steps,
        learning_rate=length.learning_rate,
        warmup_steps=length.warmup_steps,
        lr_scheduler_type=scheduler,
        lr_scheduler_kwargs=scheduler_kwargs,
        optim="adamw_torch_fused",
        report_to=list(optimization.report_to) or "none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_nan_inf_filter=False,  # bad steps are skipped and counted; the filter would hide them
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    # Several GPUs without torchrun: one is used. DataParallel would copy the model at each step.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _schedule(
    optimization: OptimizationSection, length: TrainingSection | StageSection
) -> tuple[str, dict[str, Any]]:
    """Hugging Face's name of the schedule, and what it asks for besides."""
    name, least = length.lr_scheduler_type or optimization.lr_scheduler_type, optimization.min_lr_ratio
    if name == "warmup_stable_decay":
        left = length.max_steps - length.warmup_steps
        decay = min(optimization.decay_steps or max(1, length.max_steps // 10), left)
        return name, {"num_decay_steps": decay, "min_lr_ratio": least}
    if least and name == "cosine":
        return "cosine_with_min_lr", {"min_lr_rate": least}
    if least and name == "linear":
        return "polynomial", {"power": 1.0, "lr_end": least * length.learning_rate}
    return name, {}
