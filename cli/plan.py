"""`iiad plan`: from a profile and a threshold or targets to a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from iiad.errors import require_seed

from .options import Details, Overwrite, all_data, claim_outputs, require_models, require_text
from .plan_steps import plan_family, plan_one

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
    adaptive: Annotated[
        bool,
        _by(
            "Of --family: layers have tolerances, as with --tolerance-for; cuts are of the mean.",
            "--adaptive",
        ),
    ] = False,
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
            "Let tokens stop by themselves: choose stops and tolerances of the layers so that tokens drop this share "
            "of all iterations in the mean, within what other targets keep. Of a teacher with a shared cache."
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
    given = SimpleNamespace(**locals())
    files = {"output": output, "verification": verification}
    claim_outputs([profile, latency, verify], all_data(data or []), files=files, overwrite=overwrite)
    if family:
        plan_family(command, given)
    else:
        plan_one(command, given)
