"""`iiad distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    RECIPE_HELP,
    MaxMinutes,
    Resume,
    Settings,
    all_data,
    claim_outputs,
    refuse_options,
    require_budget,
    require_models,
)
from .output import print_result

__all__ = ["distill"]


def distill(
    context: typer.Context,
    teacher: Annotated[
        str, typer.Argument(help="The teacher's folder, with its tokenizer.", callback=require_models)
    ],
    plan: Annotated[
        Path | None,
        typer.Argument(
            help="plan.json or, for an elastic student, plans.json; none where student.* says what changes.",
            callback=require_budget,
        ),
    ] = None,
    *,
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the finished student.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text to learn from: files, globs, folders or stdlib.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help=RECIPE_HELP)] = None,
    set_: Settings = None,
    signals: Annotated[
        str | None, typer.Option(help="Folder from `iiad capture`; replaces the teacher in stage distill.")
    ] = None,
    elastic: Annotated[
        bool,
        typer.Option("--elastic", help="Learn several nested plans at once: one student for every budget."),
    ] = False,
    plans: Annotated[
        Path | None,
        typer.Option(help="plans.json from `iiad plan --family`, for --elastic.", callback=require_budget),
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option(
            help="For --elastic without plans.json: shares of iterations to drop, evenly over the layers. Default: "
            "0,0.3,0.55,0.75,1."
        ),
    ] = None,
    retain: Annotated[
        float | None,
        typer.Option(
            help="Stop at this share of the teacher's accuracy, as 0.994. Needs data.validation and "
            "training.eval_steps."
        ),
    ] = None,
    resume: Resume = False,
    max_minutes: MaxMinutes = None,
) -> None:
    """Distil a teacher into a cheaper student: learn from the teacher, then recover on the text.

    Example:  iiad distill teacher plan.json --data texts/*.jsonl --output-dir student --set distillation.kl_weight=2

    Example:  iiad distill teacher --elastic --plans plans.json --data texts/*.jsonl --output-dir elastic
    """
    from iiad.errors import InputError
    from iiad.planning.family import DEFAULT_CUTS, read_cuts
    from iiad.training.recipe_files import find_recipe
    from iiad.training.recipes import DistillRecipe, load_recipe, require_inputs

    if data is None and recipe is None:
        raise InputError("--data: expected text to learn from, here or as data.train of a --recipe, got none")
    overrides: dict[str, Any] = {"data": {"train": all_data(data)}} if data else {}
    given = {"signals": signals, "retain": retain}
    overrides["distillation"] = {name: value for name, value in given.items() if value is not None}
    budget = _choose_budget(context, plan, elastic, plans)
    if cuts is not None:
        overrides["distillation"]["elastic"] = {"cuts": read_cuts(cuts)}
    loaded = load_recipe(DistillRecipe, recipe, set_ or [], overrides)
    if elastic and budget is None and loaded.distillation.elastic.cuts is None:
        overrides["distillation"]["elastic"] = {"cuts": list(DEFAULT_CUTS)}
        loaded = load_recipe(DistillRecipe, recipe, set_ or [], overrides)
    texts = [*loaded.data.train, *loaded.data.validation]
    inputs = [teacher, budget, recipe and find_recipe(recipe), loaded.distillation.signals]
    inputs += [loaded.student.init] if loaded.student.init not in ("teacher", "random") else []
    claim_outputs(inputs, texts, folders={"output_dir": output_dir})
    require_inputs(loaded)
    from iiad.distillation import distill as run

    results = run(teacher, budget, loaded, output_dir, resume, max_minutes)
    cut = "overhead" if "overhead_cut" in results else "compute"
    line = f"{output_dir}: {cut} cut {100 * results[f'{cut}_cut']:.0f} %"
    if "validation_nll" in results:
        line += f", validation {results['validation_nll']:.4f} nats a token"
        line += f" (teacher {results['teacher_validation_nll']:.4f})"
    if results.get("retained") is not None:
        line += f", accuracy retained {100 * results['retained']:.2f} %"
    for each in results.get("plans", []):
        kept = "" if each["retained"] is None else f", accuracy retained {100 * each['retained']:.2f} %"
        line += f"\n  {each['name']}: validation {each['validation_nll']:.4f} nats a token{kept}"
    print_result({"output_dir": output_dir, **results}, lambda width: line)


def _choose_budget(
    context: typer.Context, plan: Path | None, elastic: bool, plans: Path | None
) -> Path | None:
    """Return the file of the plan or of the nested plans. Raises InputError for options that do not go together."""
    from iiad.errors import InputError
    from iiad.planning import Family
    from iiad.planning.family import read_budget

    if not elastic:
        refuse_options(context, "without --elastic", "plans", "cuts")
        return plan
    if plan is not None and plans is not None:
        raise InputError(f"plan: expected none with --plans, got {plan}")
    budget = plans or plan
    if budget is not None:
        refuse_options(context, "with plans.json", "cuts")
        if not isinstance(read_budget(budget), Family):
            raise InputError(
                f"plans: expected nested plans, as of `iiad plan --family`, got one plan in {budget}"
            )
    return budget
