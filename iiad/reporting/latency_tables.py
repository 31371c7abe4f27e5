"""A latency table as tables: layers down, iterations across; then predicted beside measured plans."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.identities import ModelIdentity
from iiad.planning.latency import LatencyTable, PhaseLatency

from .tables import format_share, report, stacked_tables

__all__ = ["latency_table"]

_LEGEND = (
    "ms: of one call, median over the rounds, scaled to equal length; r: iterations of the layer; fixed: all but the "
    "layers (embedding, mask, final norm, head, choice of the token); plan: r of each layer; predicted: fixed + the "
    "layers at their r; measured: the whole model in the same rounds; error: predicted / measured - 1."
)
NOISY = 0.05
"""A larger error is shown with advice."""


def latency_table(table: LatencyTable, width: int) -> RenderableType:
    """Return what `iiad bench --layers` prints on `width` characters: both phases, the checks, the largest error."""
    settings = table.settings
    context = f"context {settings.context}"
    if settings.target_tokens is not None:
        context = f"source {settings.context}, target {settings.target_tokens} tokens"
    head = (
        f"{table.model.name}: batch {settings.batch_size}, {context}, {settings.repeats} rounds, "
        f"{settings.dtype} on {settings.device} ({settings.device_name}), {settings.num_threads} threads, "
        f"torch {settings.torch_version}"
    )
    parts = [
        *_layers("decode step, ms", table.model, table.decode, width),
        *_layers("prefill, ms", table.model, table.prefill, width),
        *_checks(table, width),
    ]
    # Not dim, and last: no figure of the table is more exact than this.
    return Group(report(head, parts, _LEGEND), Text(), Text(_largest_errors(table)))


def _layers(title: str, model: ModelIdentity, phase: PhaseLatency, width: int) -> list[Table]:
    columns = max(len(layer) for layer in phase.layers)
    digits = _digits([phase.fixed_seconds, *chain.from_iterable(phase.layers)])
    named = [("fixed", [phase.fixed_seconds])]
    # An encoder has no part in a decoding step.
    named += [(model.layer_name(t), layer) for t, layer in enumerate(phase.layers) if any(layer)]
    rows = [
        [name, *(_milliseconds(seconds, digits) for seconds in numbers), *[""] * (columns - len(numbers))]
        for name, numbers in named
    ]
    return stacked_tables([title, *(f"r = {r}" for r in range(columns))], rows, width)


def _checks(table: LatencyTable, width: int) -> list[Table]:
    columns = ["plan"]
    rows = [[_plan(check.num_iterations)] for check in table.decode.checks]
    for name, phase in (("decode", table.decode), ("prefill", table.prefill)):
        columns += [f"{name}\npredicted, ms", f"{name}\nmeasured, ms", f"{name}\nerror"]
        digits = _digits([check.measured_seconds for check in phase.checks])
        for row, check in zip(rows, phase.checks, strict=True):
            seconds = (check.predicted_seconds, check.measured_seconds)
            row += [*(_milliseconds(each, digits) for each in seconds), f"{100 * check.error:+.1f} %"]
    return stacked_tables(columns, rows, width)


def _largest_errors(table: LatencyTable) -> str:
    errors = (table.decode.largest_error, table.prefill.largest_error)
    decode, prefill = map(format_share, errors)
    number = len(table.decode.checks)
    over = f"{number} plan{'s' if number > 1 else ''}"
    found = (
        f"The largest error of the table, over {over}: {decode} of a decoding step, {prefill} of a prefill."
    )
    return (
        found if max(errors) <= NOISY else f"{found} More rounds (--repeats) or an idle machine may lower it."
    )


def _plan(num_iterations: Sequence[int]) -> str:
    """Return "3 everywhere" or "0 1 2 3 0 1"."""
    if len(set(num_iterations)) == 1:
        return f"{num_iterations[0]} everywhere"
    return " ".join(map(str, num_iterations))


def _digits(seconds: Sequence[float]) -> int:
    """Return the decimals that give the largest number of a table three or four figures."""
    largest = 1000 * max(seconds)
    return 3 if largest < 10 else 2 if largest < 100 else 1


def _milliseconds(seconds: float, digits: int) -> str:
    return f"{1000 * seconds:,.{digits}f}"
