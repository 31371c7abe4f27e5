"""`iiad plan`: from a profile and a threshold or targets to a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from iiad.errors import require_seed

from .options import (
    Details,
    Overwrite,
    all_data,
    claim_outputs,
    pair_limits,
    refuse_options,
    require_models,
    require_text,
    split_data,
)
from .output import print_result

__all__ = ["plan"]


def _panel(name: str) -> Callable[..., Any]:
    """Make options of one panel of the help: text, flags if they are not the parameter's name, limits."""
    return lambda text, *flags, **limits: typer.Option(*flags, help=text, rich_help_panel=name, **limits)


_by, _within, _on = _panel("Plan by"), _panel("Bounds"), _panel("Latency and context")
_verify = _panel("Verify on the teacher")


def plan(
    command: typer.Context,
    profile: Annotated[Path, typer.Argument(help="profile.json, as `iiad profile` writes it.")],
    threshold: Annotated[
        float | None,
        _by("Least influence of an iteration to keep, in the metric's unit; 0 keeps the teacher."),
    ] = None,
    normalize: Annotated[
        str | None,
        _by("none, layer or model: --threshold is a share of the largest score of each layer or of all."),
    ] = None,
    overhead_cut: Annotated[float | None, _by("Drop at least this share of all iterations, 0 to 1.")] = None,
    compute_cut: Annotated[
        float | None, _by("Drop at least this share of block evaluations, 0 to 1.")
    ] = None,
    max_evaluations: Annotated[int | None, _by("Most block evaluations per token.")] = None,
    max_cache_bytes: Annotated[int | None, _by("Most bytes of cache per token.")] = None,
    max_latency_ms: Annotated[
        float | None, _by("Most milliseconds of a call, as --latency predicts.")
    ] = None,
    speedup: Annotated[float | None, _by("Least speed-up over the teacher, as --latency predicts.")] = None,
    max_score: Annotated[
        float | None, _by("Most predicted loss, in the metric's unit: make the cheapest such plan.")
    ] = None,
    curve: Annotated[
        bool, _by("Show every best trade of evaluations for predicted loss.", "--curve")
    ] = False,
    family: Annotated[
        bool,
        _by("Write nested plans of several cuts, for `iiad distill --elastic`, instead of one.", "--family"),
    ] = False,
    cuts: Annotated[
        str | None,
        _by("Of --family: shares of all iterations to drop at least. Default: 0,0.3,0.55,0.75,1."),
    ] = None,
    extrapolate: Annotated[
        bool,
        _by(
            "Extrapolate the layers' stops by the profile's least squares: no training, no evaluation. "
            "Always of a profile that was measured so.",
            "--extrapolate",
        ),
    ] = False,
    tolerance_for: Annotated[
        float | None,
        _by(
            "Let tokens stop by themselves: find the tolerance that drops this share of all iterations, beside what "
            "the plan drops. Of a teacher with a shared cache."
        ),
    ] = None,
    metric: Annotated[str, _by("Metric of the profile to plan by.")] = "kl",
    min_iterations: Annotated[
        int | None, _within("Fewest of every layer; all where the teacher has fewer.")
    ] = None,
    max_iterations: Annotated[int | None, _within("Most of every layer.")] = None,
    pin: Annotated[
        list[str] | None,
        _within(
            "LAYER=ITERATIONS, as in 3=2: layer 3, counted from 1, runs exactly 2. Of an encoder-decoder by name: "
            "'decoder 3=2'. Repeatable."
        ),
    ] = None,
    latency: Annotated[
        Path | None, _on("Latency table of the teacher, as `iiad bench --layers` writes it.")
    ] = None,
    phase: Annotated[
        str | None,
        _on(
            "decode, prefill or, of an encoder-decoder, sentence: calls that the latency is of. "
            "Default: decode, of an encoder-decoder sentence."
        ),
    ] = None,
    device: Annotated[
        str | None, _on("Require a table of this device; without a table, run --verify on it.")
    ] = None,
    dtype: Annotated[
        str | None, _on("Require a table of this dtype; without a table, run --verify in it.")
    ] = None,
    context: Annotated[
        int | None, _on("Tokens to count FLOPs and cache for. Default: the table's, or 1024.")
    ] = None,
    source_tokens: Annotated[
        int | None,
        _on("Tokens of a source, of an encoder-decoder instead of --context. Default: the table's, or 64."),
    ] = None,
    target_tokens: Annotated[
        int | None,
        _on("Tokens of a target, of an encoder-decoder. Default: the table's, or 64."),
    ] = None,
    batch_size: Annotated[int | None, _on("Sequences to count them for. Default: the table's, or 1.")] = None,
    verify: Annotated[
        str | None,
        _verify(
            "Folder of the teacher: run the plan, the curve's points and baselines on it, untrained.",
            callback=require_models,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        _verify("Text for --verify; best not the profile's.", callback=require_text),
    ] = None,
    text_field: Annotated[str, _verify("jsonl field or parquet column with the text.")] = "text",
    max_source_tokens: Annotated[int | None, _verify("Of pairs: leave out longer sources.")] = None,
    max_target_tokens: Annotated[int | None, _verify("Of pairs: leave out longer targets.")] = None,
    cut_sources: Annotated[
        bool, _verify("Cut sources above --max-source-tokens instead.", "--cut-sources")
    ] = False,
    max_tokens: Annotated[int | None, _verify("Tokens for --verify. Default: as the profile.")] = None,
    seed: Annotated[int, _verify("Seed of the random baselines.", callback=require_seed)] = 0,
    verification: Annotated[Path | None, _verify("Write what --verify measured (JSON).")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for pictures of curve and verification (PNG, SVG).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the plan (JSON). Required unless --curve stands alone.")
    ] = None,
    details: Details = False,
    overwrite: Overwrite = False,
) -> None:
    """Choose how many iterations each layer keeps: by a threshold, or the best plan for targets.

    Needs a model only for --verify; another plan takes a second. Targets may be combined; all must hold.

    Example:  iiad plan profile.json --threshold 0.01 --output plan.json

    Example:  iiad plan profile.json --overhead-cut 0.55 --pin 1=3 --output plan.json

    Example:  iiad plan profile.json --family --cuts 0,0.3,0.55,0.75,1 --output plans.json

    Example:  iiad plan profile.json --tolerance-for 0.4 --output plan.json

    Example:  iiad plan profile.json --curve

    Example:  iiad plan profile.json --curve --verify teacher --data valid.jsonl
    """
    from iiad import planning
    from iiad.errors import InputError
    from iiad.influence.profile import Profile
    from iiad.progress import print_status
    from iiad.reporting.plan_tables import CurveReport, PlanReport, draw_trade_off

    files = {"output": output, "verification": verification}
    claim_outputs([profile, latency, verify], all_data(data or []), files=files, overwrite=overwrite)
    if family:
        limits_of_layers = (min_iterations, max_iterations, pin or [])
        _plan_family(command, profile, cuts, metric, extrapolate, output, limits_of_layers)
        return
    refuse_options(command, "without --family", "cuts")
    if (verify is None) != (data is None):
        raise InputError("verify: expected --verify and --data together, got one of them")
    if verify is None:
        refuse_options(command, "without --verify", "verification", "max_tokens", "text_field", "seed")
        refuse_options(command, "without --verify", "max_source_tokens", "max_target_tokens")
    limits = pair_limits(command, max_source_tokens, max_target_tokens, cut_sources)
    if plot is not None:
        from iiad.reporting.pictures import require_pictures

        require_pictures(plot)
    measured = Profile.load(profile)
    extrapolate = extrapolate or measured.settings.extrapolate
    if source_tokens is not None:
        refuse_options(command, "beside --source-tokens", "context")
        if not measured.model.num_encoder_layers:
            raise InputError(f"source_tokens: expected an encoder-decoder, got {measured.model.model_type}")
        context = source_tokens
    # Without a table, device and dtype are those of --verify.
    machine = {} if latency is None and verify is not None else {"device": device, "dtype": dtype}
    wanted = {**machine, "batch_size": batch_size, "context": context, "target_tokens": target_tokens}
    table = planning.load_latency(latency, measured.model, phase, **wanted)
    bounds = planning.Bounds(min_iterations, max_iterations, planning.read_pins(pin or [], measured.model))
    targets = planning.Targets(
        overhead_cut=overhead_cut,
        compute_cut=compute_cut,
        max_evaluations=max_evaluations,
        max_cache_bytes=max_cache_bytes,
        max_latency_ms=max_latency_ms,
        speedup=speedup,
        max_score=max_score,
        phase=phase or ("sentence" if measured.model.num_encoder_layers else "decode"),
    )
    made = None
    if tolerance_for is not None:
        refuse_options(command, "with --tolerance-for", "verify")  # evaluate --plan runs it
        threshold = 0.0 if threshold is None and not targets else threshold
    if threshold is not None or targets or not curve:
        made = planning.make_plan(measured, threshold, targets, metric, normalize, bounds, table)
        if extrapolate:
            made = made.extrapolated(measured)
        if tolerance_for is not None:
            made = planning.with_tolerance(made, measured, tolerance_for)
        if output is None:
            raise InputError("output: expected a file for the plan, got none; --curve alone needs none")
    else:
        refuse_options(command, "with --curve alone, without a threshold or a target", "output")
        if table is None:
            refuse_options(
                command, "with --curve alone, without --latency", "context", "target_tokens", "batch_size"
            )

    curves = planning.trade_off(measured, metric, normalize or "none", bounds)
    if made is not None:
        costs, kept = made.costs(context, batch_size, table, target_tokens), None
        if threshold is not None:
            kept = planning.keep_frequency(measured, metric, threshold, normalize or "none", bounds)
    if verify is not None:
        from iiad.evaluation.plan_trials import verify_plans
        from iiad.reporting.verification_tables import VerificationReport, draw_predictions

        found = verify_plans(
            verify,
            split_data(data or []),
            measured,
            metric,
            planning.candidates(
                measured,
                curves,
                made.num_iterations if made else None,
                seed=seed,
                extrapolate=extrapolate,
            ),
            text_field=text_field,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            limits=limits,
        )
        if verification is not None:
            found.save(verification)
        if plot is not None:
            draw_predictions(found, plot)
    if plot is not None:
        draw_trade_off(curves, plot)
    if made is not None and output is not None:
        # After all that can go wrong, before the reader of the tables (`| head`) may go away.
        made.save(output)
        print_status(f"plan written to {output}")
    if verify is not None:
        print_result(found, lambda width: VerificationReport(found, details))
    if curve:
        print_result(
            {"kind": "curve", **vars(curves)},
            lambda width: CurveReport(curves, table, targets.phase, details),
        )
    if made is not None:
        report = PlanReport(made, costs, kept, table)
        print_result(made, lambda width: report)


_OF_FAMILIES = (
    "profile family cuts extrapolate metric min_iterations max_iterations pin output overwrite details json quiet"
).split()


def _plan_family(
    command: typer.Context,
    profile: Path,
    cuts: str | None,
    metric: str,
    extrapolate: bool,
    output: Path | None,
    limits: tuple[int | None, int | None, list[str]],
) -> None:
    """Make nested plans, write and print them. limits: fewest and most iterations of a layer, and pins.

    Raises InputError for options of a single plan.
    """
    from iiad import planning
    from iiad.errors import InputError
    from iiad.influence.profile import Profile
    from iiad.planning.family import DEFAULT_CUTS
    from iiad.progress import print_status
    from iiad.reporting.plan_tables import family_table

    others = [
        str(parameter.name) for parameter in command.command.params if parameter.name not in _OF_FAMILIES
    ]
    refuse_options(command, "with --family", *others)
    if output is None:
        raise InputError("output: expected a file for the plans, got none")
    wanted = DEFAULT_CUTS if cuts is None else planning.read_cuts(cuts)
    measured = Profile.load(profile)
    least, most, pins = limits
    bounds = planning.Bounds(least, most, planning.read_pins(pins, measured.model))
    extrapolate = extrapolate or measured.settings.extrapolate
    made = planning.make_family(measured, wanted, metric, bounds, extrapolate)
    made.save(output)
    print_status(f"{len(made.plans)} plans written to {output}")
    if len(made.plans) < len(wanted):
        print_status(f"{len(wanted) - len(made.plans)} cuts gave a plan that was there already; left out")
    print_result(made, lambda width: family_table(made))
