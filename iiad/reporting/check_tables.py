"""Tables of checks: a row per claim, with the figure that decides."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.evaluation.check_artefact import Check, CheckResult

from .tables import format_number

__all__ = ["check_table"]

_LEGEND = (
    "of logits' std: largest difference of two logits, in standard deviations of the logits; of gradient: "
    "largest difference of loss or gradient, relative to each parameter's own; tokens: those that the model without "
    "a cache would not choose, ties within rounding aside; a bound of 0: to the last bit."
)
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim"}


def check_table(check: Check) -> RenderableType:
    """Render a check: its settings, a row per claim, reasons of skipped and failed ones, and counts."""
    parts: list[RenderableType] = [Text(_head(check)), Text(), _table(check.results), Text()]
    notes: dict[tuple[str, str], list[str]] = {}
    for result in check.results:
        if result.note is not None:
            notes.setdefault((result.outcome, result.note), []).append(result.name)
    parts += [Text(f"{outcome}: {'; '.join(names)}: {note}") for (outcome, note), names in notes.items()]
    parts += [Text()] if notes else []
    return Group(*parts, Text(_LEGEND, style="dim"), Text(), _summary(check))


def _head(check: Check) -> str:
    settings, model = check.settings, check.model
    what = f"{model.name} ({model.model_type}, iterations {model.num_iterations})"
    if check.teacher is not None:
        what += f", teacher {check.teacher.name}"
    engine = f", {settings.engine}" if settings.engine else ""
    return (
        f"{what}\n{settings.prompt_tokens} prompt + {settings.new_tokens} new random tokens, seed "
        f"{settings.seed}, {settings.dtype} on {settings.device} ({settings.device_name}), torch "
        f"{settings.torch_version}, transformers {settings.transformers_version}{engine}"
    )


def _table(results: list[CheckResult]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("claim", overflow="fold", min_width=22)
    table.add_column("result", no_wrap=True)
    for heading in ("figure", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit")
    for result in results:
        word = "FAILED" if result.outcome == "failed" else result.outcome
        numbers = (_number(result.figure), _number(result.bound))
        table.add_row(result.name, Text(word, style=_STYLES[result.outcome]), *numbers, result.unit)
    return table


def _number(value: float | None) -> str:
    return format_number(value, ".1e" if value is None or value != int(value) else ".0f")


def _summary(check: Check) -> Text:
    counts = ", ".join(f"{check.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
    style = _STYLES["passed" if check.passed else "failed"]
    return Text(f"{len(check.results)} claims: {counts}", style=style)
