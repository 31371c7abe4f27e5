"""`iiad validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import Settings

if TYPE_CHECKING:
    from iiad.training.recipes import DistillRecipe, TrainRecipe

__all__ = ["validate"]


def validate(
    recipe: Annotated[str, typer.Argument(help="A YAML recipe, or the name of one that ships with iiad.")],
    set_: Settings = None,
    kind: Annotated[
        str | None,
        typer.Option(help="train or distill: the command that it is for. Default: by its sections."),
    ] = None,
) -> None:
    """Report all that is wrong with a recipe, a line each, before anything loads; or what it comes to.

    Exit code 0 for a valid recipe, 2 for any other.

    Example:  iiad validate 55m --set training.max_steps=1000
    """
    from iiad.errors import InputError
    from iiad.training.recipe_inputs import missing_inputs
    from iiad.training.recipe_validation import find_problems
    from iiad.training.recipes import COMMANDS, commands_of, read_fields

    if kind not in (None, *COMMANDS):
        raise InputError(f"--kind {kind}: accepted: {', '.join(COMMANDS)}")
    fields = read_fields(recipe, set_ or [])
    problems = {
        name: find_problems(accepted, fields) for name, accepted in COMMANDS.items() if kind in (None, name)
    }
    chosen, reason = _choose(commands_of(fields), problems)
    if reason:
        typer.echo(f"note: {reason}", err=True)
    if problems[chosen]:
        found = problems[chosen]
        typer.echo(f"{recipe}: {len(found)} problem{'s' if len(found) > 1 else ''}", err=True)
        for problem in found:
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(2)
    checked = COMMANDS[chosen].model_validate(fields)
    print(f"{recipe}: a valid recipe for `iiad {chosen}`")
    for name, text in _summary(checked).items():
        print(f"  {name:12} {text}")
    for note in missing_inputs(checked):
        print(f"note: {note}")


def _choose(own: list[str], problems: dict[str, list[str]]) -> tuple[str, str]:
    """The command that the recipe is for, and why where its sections do not say so."""
    if len(problems) == 1:
        return next(iter(problems)), ""
    if len(own) == 1:
        return own[0], ""
    best = min(problems, key=lambda kind: len(problems[kind]))
    which = "both" if own else "neither"
    return (
        best,
        f"its sections are of {which} `iiad train` and `iiad distill`; read for {best}; --kind chooses",
    )


def _summary(recipe: TrainRecipe | DistillRecipe) -> dict[str, str]:
    """What the recipe comes to, by name."""
    from iiad.training.recipes import TrainRecipe

    return _training_summary(recipe) if isinstance(recipe, TrainRecipe) else _distillation_summary(recipe)


def _training_summary(recipe: TrainRecipe) -> dict[str, str]:
    from iiad.training.estimates import (
        count_parameters,
        evaluations_per_layer,
        training_bytes,
        training_flops,
    )

    model, training = recipe.model, recipe.training
    if model.path is not None:
        block = recipe.data.block_size
        told = f"goes on from {model.path}, in its own shape"
        return {"model": told, **(_tokens(recipe, training.max_steps, block) if block else {})}
    vocab_size = recipe.tokenizer.vocab_size
    block = recipe.data.block_tokens(model.max_position_embeddings)
    runs = sum(evaluations_per_layer(model))
    told = f"{model.solver}, {_large(count_parameters(model, vocab_size or 0))} parameters"
    if vocab_size is None:
        told += (
            f", and {model.hidden_size * (1 if model.tie_word_embeddings else 2):,} a token of the vocabulary"
        )
    evaluations = f"{runs} per token"
    if model.solver == "iiet" and runs > model.num_layers and training.iterations_start:
        evaluations += f"; {model.num_layers} in the first {training.iterations_start:.0%} of the steps"
    lines = {"model": told, "evaluations": evaluations, **_tokens(recipe, training.max_steps, block)}
    if vocab_size is not None:
        flops = training_flops(model, training, vocab_size, block)
        memory = training_bytes(model, training, vocab_size, block) / 1e9
        lines["estimated"] = (
            f"{flops:.1e} floating-point operations; {memory:.1f} GB and logits, in one process"
        )
    unused = model.unused_fields()
    return lines | ({"not used": ", ".join(f"model.{field}" for field in unused)} if unused else {})


def _distillation_summary(recipe: DistillRecipe) -> dict[str, str]:
    from iiad.training.student_sections import STAGES

    section = recipe.distillation
    steps = {stage: getattr(section, stage).max_steps for stage in STAGES}
    return {
        "student": f"starts from {recipe.student.init}; its plan decides on its evaluations per token",
        "stages": ", ".join(f"{stage} {count:,} steps" for stage, count in steps.items() if count),
        **_tokens(recipe, sum(steps.values()), recipe.data.block_size),
    }


def _tokens(recipe: TrainRecipe | DistillRecipe, steps: int, block: int | None) -> dict[str, str]:
    """block: None where only the teacher says what it is."""
    from iiad.training.estimates import blocks_per_process_step

    training, blocks = recipe.training, blocks_per_process_step(recipe.training)
    batch = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps} blocks"
    if block is None:
        return {"tokens": f"{steps:,} steps of {batch} of 512 tokens, or of the teacher's context if shorter"}
    step = f"{steps:,} steps of {blocks * block:,} tokens ({batch} of {block:,})"
    return {"tokens": f"{_large(steps * blocks * block)}: {step}, in each process"}


def _large(count: int) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,}"
