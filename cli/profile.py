"""`iiad profile`: measure what each iteration of a model contributes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from iiad.data import TokenCorpus
    from iiad.influence import Profile, ProfileSettings

__all__ = ["profile"]

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
LONGEST_DEFAULT_BLOCK = 512


def profile(
    model: Annotated[
        str, typer.Argument(help="The teacher: a model folder with its tokenizer, or a hub name.")
    ],
    data: Annotated[
        list[str], typer.Option(help="Calibration text: file, folder, pattern or `stdlib`. May be repeated.")
    ],
    output: Annotated[Path, typer.Option(help="The profile to write (JSON).")],
    metric: Annotated[
        list[str] | None, typer.Option(help="kl or cosine; may be repeated. Default: both.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field or column that holds the text.")] = "text",
    block_size: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a block. Default: 512, or the model's context if shorter."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks run at a time.")] = 8,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens to draw, as whole blocks from all of the text.")
    ] = 65536,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda if there is one.")] = None,
    dtype: Annotated[
        str, typer.Option(help=f"One of {', '.join(DTYPES)}; auto is the checkpoint's.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Measure what each iteration contributes to a model's output, on given text.

    The model must have iterations (an IIET or PCformer). `kl` is exact and runs
    the layers above again for each iteration; `cosine` takes one pass.

    Example:  iiad profile teacher --data stdlib --output profile.json
    """
    from rich.console import Console

    from iiad.artefacts import require_new_file
    from iiad.errors import InputError
    from iiad.reporting.influence import InfluenceReport
    from iiad.reporting.progress import say

    require_new_file(output, overwrite)
    if dtype not in DTYPES:
        raise InputError(f"dtype: found {dtype!r}; accepted: {', '.join(DTYPES)}")
    metrics = _checked_metrics(metric)
    teacher, corpus = _load(model, data, text_field, device, dtype)
    settings = _settings(teacher, block_size, batch_size, max_tokens, seed)
    measured = _measure(teacher, model, corpus, data, settings, metrics)
    measured.save(output)
    Console().print(InfluenceReport(measured))
    say(f"profile written to {output}")


def _checked_metrics(metrics: list[str] | None) -> list[str]:
    """Each metric once; all of them where none was named. Raises InputError for an unknown one."""
    from iiad.errors import InputError
    from iiad.influence import METRICS

    for metric in metrics or ():
        if metric not in METRICS:
            raise InputError(f"metric: found {metric!r}; accepted: {', '.join(METRICS)}")
    return list(dict.fromkeys(metrics or METRICS))


def _load(
    model: str, data: list[str], text_field: str, device: str | None, dtype: str
) -> tuple[Any, TokenCorpus]:
    """The model and the corpus in its tokens; what is quick to refuse comes first."""
    import torch

    from iiad.checkpoints import load_model
    from iiad.data import load_tokenizer, pack, resolve_inputs
    from iiad.influence.profiler import require_iterations

    sources = resolve_inputs(data)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    teacher = load_model(model, dtype=dtype, device=place)
    require_iterations(teacher)
    return teacher, pack(sources, load_tokenizer(model), text_field=text_field)


def _settings(
    teacher: Any, block_size: int | None, batch_size: int, max_tokens: int, seed: int
) -> ProfileSettings:
    from iiad.errors import InputError
    from iiad.influence import ProfileSettings

    context = teacher.config.max_position_embeddings
    block_size = block_size or min(LONGEST_DEFAULT_BLOCK, context)
    if block_size > context:
        raise InputError(f"block_size: found {block_size}; accepted: 2 to {context}, the model's context")
    return ProfileSettings(
        block_size=block_size,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
        dtype=str(teacher.dtype).removeprefix("torch."),
    )


def _measure(
    teacher: Any,
    name: str,
    corpus: TokenCorpus,
    data: list[str],
    settings: ProfileSettings,
    metrics: list[str],
) -> Profile:
    """Draw the blocks, score them, and put the profile together."""
    from iiad.artefacts import DataIdentity
    from iiad.checkpoints import identify_model
    from iiad.data import TokenBlocks
    from iiad.influence import (
        calibration_batches,
        make_profile,
        num_profile_evaluations,
        profile_model,
        sample_blocks,
    )
    from iiad.reporting.progress import progress, say

    blocks = TokenBlocks(corpus, settings.block_size)
    drawn = sample_blocks(len(blocks), settings.block_size, settings.max_tokens, settings.seed)
    num_tokens = len(drawn) * settings.block_size
    identity = identify_model(teacher, name)
    times = num_profile_evaluations(identity, metrics) / identity.num_evaluations
    say(f"{num_tokens:,} of {corpus.num_tokens:,} tokens, at the cost of {times:.1f} forward passes")
    with progress("profiling", num_tokens, "tokens") as advance:
        batches = calibration_batches(blocks, drawn, settings.batch_size)
        scores = profile_model(teacher, batches, metrics, advance)
    # The names as given: those of the embedded corpus run to hundreds, and the fingerprint covers their content.
    source = DataIdentity(names=data, fingerprint=corpus.fingerprint, num_tokens=num_tokens)
    return make_profile(scores, identity, source, settings)
