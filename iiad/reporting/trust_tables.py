"""Trust in a profile as tables: fixed points, agreement of the metrics, stability over the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from iiad.influence.profile import Profile
from iiad.planning.trust import Trust

from .evaluation_tables import format_share, plain_table

__all__ = ["trust_report"]


def trust_report(profile: Profile, trust: Trust) -> Iterator[RenderableType]:
    """The tables below the scores, each with the meaning of its columns, and one line of advice."""
    yield Text("fixed points: does the iteration settle?", style="italic")
    yield _fixed_points(profile, trust)
    yield Text(trust.advice + "\n")
    if trust.agreements:
        yield Text(f"agreement with {trust.reference}", style="italic")
        table = plain_table(["metric"], ["Spearman", "Kendall", "top half"])
        for a in trust.agreements:
            table.add_row(
                a.metric, *(_number(value, "+.2f") for value in (a.spearman, a.kendall)), _number(a.overlap)
            )
        yield table
        yield Text(
            "order of all iterations: 1 is the same, -1 the reverse; top half: share of the iterations in the upper "
            f"half by {trust.reference} that are there by the metric too (0.5 by chance).\n",
            style="dim",
        )
    yield from _kept(trust)
    yield Text("rank correlation of the scores with those of other samples of the text", style="italic")
    yield _stabilities(trust)
    note = "Spearman's, over bootstrap samples of the batches"
    if len(profile.data) > 1:
        named = ", ".join(f"{n}: {' '.join(part.names)}" for n, part in enumerate(profile.data, 1))
        note += f"; between data sets ({named})"
    yield Text(f"{note}.\n", style="dim")


def _fixed_points(profile: Profile, trust: Trust) -> Table:
    table = plain_table(["layer"], ["residuals", "contraction", "turns", "the iteration"])
    for number, (layer, diagnosis) in enumerate(zip(profile.fixed_point, trust.diagnoses, strict=True), 1):
        numbers = ((layer.residuals, ".3f"), (layer.contractions, ".2f"), (layer.turns, "+.2f"))
        table.add_row(str(number), *(_numbers(*each) for each in numbers), diagnosis.verdict)
    return table


def _kept(trust: Trust) -> Iterator[RenderableType]:
    if trust.kept is None:
        yield Text("stability: expected several batches, got one; give more --max-tokens\n")
        return
    title = f"kept at threshold {trust.threshold:.3g} on {trust.reference}, share of bootstrap samples"
    yield Text(title, style="italic")
    table = plain_table(["layer"], [f"iteration {i}" for i in range(1, max(map(len, trust.kept)) + 1)])
    for number, layer in enumerate(trust.kept, 1):
        table.add_row(str(number), *(format_share(share, 0) for share in layer))
    yield table
    yield Text("near 0 or 100 %: decided; near 50 %: undecided on other text of this kind.\n", style="dim")


def _stabilities(trust: Trust) -> Table:
    pairs = [f"{a + 1} with {b + 1}" for a, b in trust.stabilities[0].between_sets]
    table = plain_table(["metric"], ["median", "5th percentile", *pairs])
    for found in trust.stabilities:
        values = (found.median, found.low, *found.between_sets.values())
        table.add_row(found.metric, *(_number(value, "+.2f") for value in values))
    return table


def _numbers(values: Sequence[float], form: str) -> str:
    return " ".join(format(value, form) for value in values) or "-"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
