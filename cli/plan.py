"""`iiad plan`: from a profile and a threshold or targets to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import split_data

if TYPE_CHECKING:
    from iiad.influence.profile import Profile
    from iiad.planning import Candidate

__all__ = ["plan"]

BY, WITHIN, FOR, TRY = "What to plan by", "Bounds", "What the plan is for", "Try it on the teacher"


def plan(
    profile: Annotated[Path, typer.Argument(help="A profile, as `iiad profile` writes it.")],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="The influence that an iteration must reach, in the metric's unit; 0 keeps the teacher.",
            rich_help_panel=BY,
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            help="none, layer or model: the threshold is then a share of the largest score of each layer or of all.",
            rich_help_panel=BY,
        ),
    ] = None,
    overhead_cut: Annotated[
        float | None,
        typer.Option(help="Drop at least this share of all iterations, 0 to 1.", rich_help_panel=BY),
    ] = None,
    compute_cut: Annotated[
        float | None,
        typer.Option(help="Drop at least this share of all block evaluations, 0 to 1.", rich_help_panel=BY),
    ] = None,
    max_evaluations: Annotated[
        int | None, typer.Option(help="At most so many block evaluations per token.", rich_help_panel=BY)
    ] = None,
    max_cache_bytes: Annotated[
        int | None, typer.Option(help="At most so many bytes of cache per token.", rich_help_panel=BY)
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(help="At most so many milliseconds a call, as --latency predicts.", rich_help_panel=BY),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option(
            help="At least so many times as fast as the teacher, as --latency predicts.", rich_help_panel=BY
        ),
    ] = None,
    max_score: Annotated[
        float | None,
        typer.Option(
            help="At most this predicted loss, in the metric's unit: the cheapest such plan.",
            rich_help_panel=BY,
        ),
    ] = None,
    curve: Annotated[
        bool,
        typer.Option(
            "--curve", help="Show every best trade of evaluations for predicted loss.", rich_help_panel=BY
        ),
    ] = False,
    metric: Annotated[
        str, typer.Option(help="The metric of the profile to go by.", rich_help_panel=BY)
    ] = "kl",
    min_iterations: Annotated[
        int | None,
        typer.Option(
            help="Of every layer; as many as the teacher where it has fewer.", rich_help_panel=WITHIN
        ),
    ] = None,
    max_iterations: Annotated[
        int | None, typer.Option(help="Of every layer.", rich_help_panel=WITHIN)
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            help="LAYER=ITERATIONS, as in 3=2: layer 3, counted from 1, runs exactly 2. May be repeated.",
            rich_help_panel=WITHIN,
        ),
    ] = None,
    latency: Annotated[
        Path | None,
        typer.Option(
            help="A latency table of the teacher, as `iiad bench --layers` writes it.", rich_help_panel=FOR
        ),
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(help="decode (default) or prefill: what the latency is of.", rich_help_panel=FOR),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="The table must be of this device; without one, --verify runs on it.", rich_help_panel=FOR
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The table must be of this dtype; without one, --verify runs in it.", rich_help_panel=FOR
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens that FLOPs and cache are counted for. Default: the table's, or 1024.",
            rich_help_panel=FOR,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences likewise. Default: the table's, or 1.", rich_help_panel=FOR)
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            help="The profiled teacher's folder: run the plan, the curve's points and baselines on it, untrained.",
            rich_help_panel=TRY,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text for --verify; best not the profile's.", rich_help_panel=TRY),
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="jsonl field or parquet column with the text.", rich_help_panel=TRY)
    ] = "text",
    max_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens for --verify. Default: as the profile.", rich_help_panel=TRY),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random baselines.", rich_help_panel=TRY)] = 0,
    verification: Annotated[
        Path | None, typer.Option(help="Where to write what --verify found (JSON).", rich_help_panel=TRY)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for pictures of curve and verification (PNG, SVG).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The plan to write (JSON). Needed unless --curve stands alone.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Choose how many iterations each layer keeps: by a threshold, or the best plan for targets.

    No model is loaded: another plan takes a second, but for --verify. Targets may be combined; all must hold.

    Example:  iiad plan profile.json --threshold 0.01 --output plan.json

    Example:  iiad plan profile.json --overhead-cut 0.55 --pin 1=3 --output plan.json

    Example:  iiad plan profile.json --curve

    Example:  iiad plan profile.json --curve --verify teacher --data valid.jsonl
    """
    from rich.console import Console

    from iiad.errors import InputError
    from iiad.files import require_new_file
    from iiad.influence.profile import Profile
    from iiad.planning import Bounds, Targets, candidates, load_latency, make_plan, read_pins
    from iiad.progress import print_status
    from iiad.reporting.plan_tables import CurveReport, PlanReport

    if output is not None and output == verification:
        raise InputError(f"verification: found {verification}, the plan's file; accepted: another")
    for file in (output, verification):
        if file is not None:
            require_new_file(file, overwrite)
    if (verify is None) != (data is None) or (verification is not None and verify is None):
        raise InputError("verify: --verify and --data go together, and --verification needs both")
    if verify is None and (max_tokens is not None or text_field != "text"):
        raise InputError("verify: found none; accepted with --max-tokens and --text-field, which are for it")
    if plot is not None:
        from iiad.reporting.pictures import require_pictures

        require_pictures(plot)
    measured = Profile.load(profile)
    # Without a table, device and dtype are those of --verify.
    wanted = (None, None) if latency is None and verify is not None else (device, dtype)
    table = load_latency(latency, measured.model, phase, *wanted, batch_size, context)
    bounds = Bounds(min_iterations, max_iterations, read_pins(pin or []))
    targets = Targets(
        overhead_cut=overhead_cut,
        compute_cut=compute_cut,
        max_evaluations=max_evaluations,
        max_cache_bytes=max_cache_bytes,
        max_latency_ms=max_latency_ms,
        speedup=speedup,
        max_score=max_score,
        phase=phase or "decode",
    )
    made = None
    if threshold is not None or targets or not curve:
        made = make_plan(measured, threshold, targets, metric, normalize, bounds, table)
    if made is not None and output is None:
        raise InputError(
            "output: found none; accepted: a file to write the plan to (--curve alone needs none)"
        )
    if made is None and output is not None:
        raise InputError(
            "output: found with --curve alone, which makes no plan; accepted: a threshold or a target"
        )

    console = Console()
    if curve:
        console.print(CurveReport(measured, metric, normalize or "none", bounds, table, targets.phase))
    if made is not None:
        console.print(PlanReport(made, measured, table, context, batch_size))
    if plot is not None:
        from iiad.reporting.plan_tables import draw_trade_off

        draw_trade_off(measured, metric, normalize or "none", bounds, plot)
    if verify is not None:
        _verify(
            measured,
            metric,
            candidates(
                measured,
                metric,
                None if made is None else made.num_iterations,
                normalize=normalize or "none",
                bounds=bounds,
                seed=seed,
            ),
            model=verify,
            data=split_data(data or []),
            text_field=text_field,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            file=verification,
            pictures=plot,
        )
    if made is not None and output is not None:  # last, so that nothing is written where something was wrong
        made.save(output)
        print_status(f"plan written to {output}")


def _verify(
    profile: Profile,
    metric: str,
    plans: list[Candidate],
    *,
    file: Path | None,
    pictures: Path | None,
    **options: Any,
) -> None:
    """Run plans on the teacher, show what was found, and write it where that is asked for."""
    from rich.console import Console

    from iiad.evaluation.plan_trials import verify_plans
    from iiad.reporting.verification_tables import VerificationReport, draw_predictions

    found = verify_plans(options.pop("model"), options.pop("data"), profile, metric, plans, **options)
    if file is not None:
        found.save(file)
    Console().print(VerificationReport(found))
    if pictures is not None:
        draw_predictions(found, pictures)
