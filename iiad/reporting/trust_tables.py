"""How far a profile can be trusted: fixed points, agreement of the metrics, stability over the text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from iiad.influence.agreement import agreements
from iiad.influence.diagnostics import advice, diagnose
from iiad.influence.profile import Profile
from iiad.planning import choose_threshold, threshold_curve
from iiad.planning.stability import keep_frequency, measure_stability

from .evaluation_tables import plain_table

__all__ = ["trust_report"]

REFERENCE = "kl"
"""The metric that the others are held against, where it was measured."""


def trust_report(profile: Profile, threshold: float | None, seed: int) -> Iterator[RenderableType]:
    """The tables below the scores, each with what its columns mean, and one line of advice.

    threshold: at which to show how surely each iteration is kept; None: that of the curve's knee.
    """
    reference = REFERENCE if REFERENCE in profile.scores else next(iter(profile.scores))
    yield Text("fixed points: does the iteration settle?", style="italic")
    yield _fixed_points(profile)
    yield Text(advice(profile) + "\n")
    if len(profile.scores) > 1:
        yield Text(f"agreement with {reference}", style="italic")
        yield _agreement(profile, reference)
        yield Text(
            "ranks of all iterations compared: 1 is the same order, 0 none; top half: share of the iterations that "
            f"{reference} ranks in its upper half and the metric too (0.5 by chance).\n",
            style="dim",
        )
    yield from _stability(profile, reference, threshold, seed)


def _fixed_points(profile: Profile) -> Table:
    table = plain_table(["layer"], ["residuals", "contraction", "turns", "the iteration"])
    for number, layer in enumerate(profile.fixed_point, 1):
        table.add_row(
            str(number),
            " ".join(f"{residual:.3f}" for residual in layer.residuals) or "-",
            " ".join(f"{contraction:.2f}" for contraction in layer.contractions) or "-",
            " ".join(f"{turn:+.2f}" for turn in layer.turns) or "-",
            diagnose(layer).verdict,
        )
    return table


def _agreement(profile: Profile, reference: str) -> Table:
    table = plain_table(["metric"], ["Spearman", "Kendall", "top half"])
    for found in agreements(profile, reference):
        table.add_row(found.metric, _signed(found.spearman), _signed(found.kendall), _share(found.overlap))
    return table


def _stability(
    profile: Profile, reference: str, threshold: float | None, seed: int
) -> Iterator[RenderableType]:
    if threshold is None:
        threshold, _ = choose_threshold(threshold_curve(profile, reference))
    kept = keep_frequency(profile, reference, threshold, seed=seed)
    if kept is None:
        yield Text("one batch says nothing about how the scores depend on the text: give more --max-tokens\n")
    else:
        title = f"kept at threshold {threshold:.3g} on {reference}, share of bootstrap samples"
        yield Text(title, style="italic")
        table = plain_table(["layer"], [f"iteration {i}" for i in range(1, max(map(len, kept)) + 1)])
        for number, layer in enumerate(kept, 1):
            table.add_row(str(number), *(f"{100 * share:.0f} %" for share in layer))
        yield table
        yield Text(
            "near 0 or 100 % the decision holds on other text of this kind; near 50 % it is a toss-up.\n",
            style="dim",
        )
    stability = plain_table(["metric"], ["median", "5th percentile", *_pairs(profile)])
    for metric in profile.scores:
        found = measure_stability(profile, metric, seed=seed)
        between = [_signed(value) for value in found.between_sets.values()]
        stability.add_row(metric, _signed(found.median), _signed(found.low), *between)
    yield Text("rank correlation of the scores with those of other samples of the text", style="italic")
    yield stability
    if len(profile.data) > 1:
        named = ", ".join(f"{n}: {' '.join(part.names)}" for n, part in enumerate(profile.data, 1))
        yield Text(f"over bootstrap samples of the batches; between data sets ({named}).\n", style="dim")
    else:
        yield Text("Spearman, over bootstrap samples of the batches.\n", style="dim")


def _pairs(profile: Profile) -> list[str]:
    numbers = range(1, len(profile.data) + 1)
    return [f"{a} with {b}" for a in numbers for b in numbers if a < b]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
