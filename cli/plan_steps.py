"""Steps of `iiad plan`: check the options, make the plan or the family, verify it, write and print.

`given` has the command's options by their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from .options import pair_limits, refuse_options, split_data
from .output import print_result

if TYPE_CHECKING:
    from iiad.influence.profile import Profile
    from iiad.planning import Bounds, LatencyTable, Plan, Targets, TradeOff, Verification

__all__ = ["plan_family", "plan_one"]

_OF_FAMILIES = (
    "profile family cuts adaptive extrapolate metric min_iterations max_iterations pin "
    "output overwrite details json quiet"
).split()


def plan_family(command: typer.Context, given: Any) -> None:
    """Make nested plans, write and print them. Raises InputError for options of a single plan."""
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
    if given.output is None:
        raise InputError("output: expected a file for the plans, got none")
    wanted = DEFAULT_CUTS if given.cuts is None else planning.read_cuts(given.cuts)
    measured = Profile.load(given.profile)
    extrapolate, bounds = given.extrapolate or measured.settings.extrapolate, _bounds(given, measured)
    if given.adaptive:
        refuse_options(command, "with --adaptive", "extrapolate")
        made = planning.make_adaptive_family(measured, wanted, given.metric, bounds)
    else:
        made = planning.make_family(measured, wanted, given.metric, bounds, extrapolate)
    made.save(given.output)
    print_status(f"{len(made.plans)} plans written to {given.output}")
    if len(made.plans) < len(wanted):
        print_status(f"{len(wanted) - len(made.plans)} cuts gave a plan that was there already; left out")
    print_result(made, lambda width: family_table(made))


def plan_one(command: typer.Context, given: Any) -> None:
    """Make a plan or show the curve, verify on the teacher where that is asked for, write and print."""
    from iiad import planning
    from iiad.influence.profile import Profile
    from iiad.progress import print_status
    from iiad.reporting.plan_tables import CurveReport, PlanReport, draw_trade_off
    from iiad.reporting.verification_tables import VerificationReport

    _check_options(command, given)
    measured = Profile.load(given.profile)
    table = _load_table(command, given, measured)
    targets, bounds = _targets(given, measured), _bounds(given, measured)
    made = _make(command, given, measured, table, targets, bounds)
    curves = planning.trade_off(measured, given.metric, given.normalize or "none", bounds)
    about = None if made is None else _describe(given, measured, made, bounds, table)
    found = None if given.verify is None else _verify(command, given, measured, curves, made)
    if given.plot is not None:
        draw_trade_off(curves, given.plot)
    if made is not None:
        # After all that can go wrong, before the reader of the tables (`| head`) may go away.
        made.save(given.output)
        print_status(f"plan written to {given.output}")
    if found is not None:
        print_result(found, lambda width: VerificationReport(found, given.details))
    if given.curve:
        fields = {"kind": "curve", **vars(curves)}
        print_result(fields, lambda width: CurveReport(curves, table, targets.phase, given.details))
    if made is not None and about is not None:
        report = PlanReport(made, *about, table)
        print_result(made, lambda width: report)


def _check_options(command: typer.Context, given: Any) -> None:
    """Raise InputError for options that do not go together, or pictures that cannot be drawn."""
    from iiad.errors import InputError

    refuse_options(command, "without --family", "cuts", "adaptive")
    if (given.verify is None) != (given.data is None):
        raise InputError("verify: expected --verify and --data together, got one of them")
    if given.verify is None:
        refuse_options(command, "without --verify", "verification", "max_tokens", "text_field", "seed")
        refuse_options(command, "without --verify", "max_source_tokens", "max_target_tokens")
    _limits(command, given)
    if given.tolerance_for is not None:
        refuse_options(command, "with --tolerance-for", "verify", "extrapolate")  # evaluate --plan runs it
    if given.plot is not None:
        from iiad.reporting.pictures import require_pictures

        require_pictures(given.plot)


def _limits(command: typer.Context, given: Any) -> Any:
    return pair_limits(command, given.max_source_tokens, given.max_target_tokens, given.cut_sources)


def _load_table(command: typer.Context, given: Any, measured: Profile) -> LatencyTable | None:
    """Return the latency table, if any. Raises InputError for one that does not fit the options or the profile."""
    from iiad import planning
    from iiad.errors import InputError

    if given.source_tokens is not None:
        refuse_options(command, "beside --source-tokens", "context")
        if not measured.model.num_encoder_layers:
            raise InputError(f"source_tokens: expected an encoder-decoder, got {measured.model.model_type}")
    # Without a table, device and dtype are those of --verify.
    alone = given.latency is None and given.verify is not None
    wanted = {} if alone else {"device": given.device, "dtype": given.dtype}
    wanted |= {
        "batch_size": given.batch_size,
        "context": _context(given),
        "target_tokens": given.target_tokens,
    }
    return planning.load_latency(given.latency, measured.model, given.phase, **wanted)


def _context(given: Any) -> int | None:
    return given.context if given.source_tokens is None else given.source_tokens


def _bounds(given: Any, measured: Profile) -> Bounds:
    from iiad import planning

    pins = planning.read_pins(given.pin or [], measured.model)
    return planning.Bounds(given.min_iterations, given.max_iterations, pins)


def _targets(given: Any, measured: Profile) -> Targets:
    from iiad import planning

    names = (
        "overhead_cut compute_cut max_evaluations max_cache_bytes max_latency_ms speedup max_score tolerance_for"
    ).split()
    phase = given.phase or ("sentence" if measured.model.num_encoder_layers else "decode")
    return planning.Targets(**{name: getattr(given, name) for name in names}, phase=phase)


def _make(
    command: typer.Context,
    given: Any,
    measured: Profile,
    table: LatencyTable | None,
    targets: Targets,
    bounds: Bounds,
) -> Plan | None:
    """Return the plan; None where the curve is asked for alone. Raises InputError where it has no file to go to."""
    from iiad import planning
    from iiad.errors import InputError

    if given.threshold is None and not targets and given.curve:
        refuse_options(command, "with --curve alone, without a threshold or a target", "output")
        if table is None:
            where = "with --curve alone, without --latency"
            refuse_options(command, where, "context", "target_tokens", "batch_size")
        return None
    made = planning.make_plan(
        measured, given.threshold, targets, given.metric, given.normalize, bounds, table
    )
    if given.extrapolate or measured.settings.extrapolate:
        made = made.extrapolated(measured)
    if given.output is None:
        raise InputError("output: expected a file for the plan, got none; --curve alone needs none")
    return made


def _describe(
    given: Any, measured: Profile, made: Plan, bounds: Bounds, table: LatencyTable | None
) -> tuple[Any, Any]:
    """Return the plan's costs and, of a threshold, how often each iteration is kept when batches are resampled."""
    from iiad import planning

    costs, kept = made.costs(_context(given), given.batch_size, table, given.target_tokens), None
    if made.threshold is not None:
        kept = planning.keep_frequency(
            measured, given.metric, made.threshold, given.normalize or "none", bounds
        )
    return costs, kept


def _verify(
    command: typer.Context, given: Any, measured: Profile, curves: TradeOff, made: Plan | None
) -> Verification:
    """Run the plan, the curve's points and baselines on the teacher; write and draw what was found."""
    from iiad import planning
    from iiad.evaluation.plan_trials import verify_plans
    from iiad.reporting.verification_tables import draw_predictions

    extrapolate = given.extrapolate or measured.settings.extrapolate
    own = None if made is None else made.num_iterations
    found = verify_plans(
        given.verify,
        split_data(given.data or []),
        measured,
        given.metric,
        planning.candidates(measured, curves, own, seed=given.seed, extrapolate=extrapolate),
        text_field=given.text_field,
        max_tokens=given.max_tokens,
        device=given.device,
        dtype=given.dtype,
        limits=_limits(command, given),
    )
    if given.verification is not None:
        found.save(given.verification)
    if given.plot is not None:
        draw_predictions(found, given.plot)
    return found
