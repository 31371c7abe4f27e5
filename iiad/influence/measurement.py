"""`iiad profile`: from a model folder and text to a profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iiad.artefacts import DataIdentity
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs
from iiad.errors import InputError
from iiad.loading import choose_device, choose_dtype, load_identified, read_limits
from iiad.reporting.progress import progress, say

from .calibration import calibration_batches, sample_blocks
from .profile import METRICS, Profile, ProfileSettings
from .profiler import make_profile, num_profile_evaluations, profile_model, require_iterations

__all__ = ["measure_influence"]

LONGEST_DEFAULT_BLOCK = 512


def measure_influence(
    model: str | Path,
    data: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    text_field: str = "text",
    block_size: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = 65536,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
) -> Profile:
    """Score what each iteration of a model contributes on a sample of a text's blocks.

    Args:
        model: a folder, with its tokenizer, or a hub name.
        data: files, patterns, folders or `stdlib`, which here is its training split.
        metrics: names from `METRICS`; default: all of them.
        text_field: the jsonl field or parquet column with the text.
        block_size: tokens of a block; default: 512, or the model's context where that is less.
        batch_size: blocks at a time.
        max_tokens: tokens to draw, as whole blocks from all of the text; None: all of it.
        seed: of the draw.
        device: default: CUDA where there is one, else the CPU.
        dtype: weights are put in it, "float32" or "bfloat16"; default: float32 on the CPU, bfloat16 elsewhere.
        cache_dir: where tokenized text is kept.

    Raises InputError for a model without iterations, and where a model, a file or a value cannot be used.
    """
    for metric in metrics or ():
        if metric not in METRICS:
            raise InputError(f"metric: found {metric!r}; accepted: {', '.join(METRICS)}")
    chosen = list(dict.fromkeys(metrics or METRICS))
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    context, _ = read_limits(model)
    block_size = block_size or min(LONGEST_DEFAULT_BLOCK, context)
    if not 2 <= block_size <= context:
        raise InputError(f"block_size: found {block_size}; accepted: 2 to {context}, the model's context")
    sources = resolve_inputs(data, "train")
    teacher, identity = load_identified(model, device, dtype, cast=True)
    require_iterations(teacher)
    corpus = pack(sources, load_tokenizer(model), text_field=text_field, cache_dir=cache_dir)
    blocks = TokenBlocks(corpus, block_size)
    drawn = sample_blocks(len(blocks), block_size, max_tokens, seed)
    num_tokens = len(drawn) * block_size
    times = num_profile_evaluations(identity, chosen) / identity.num_evaluations
    say(f"{num_tokens:,} of {corpus.num_tokens:,} tokens, at the cost of {times:.1f} forward passes")
    with progress("profiling", num_tokens, "tokens") as advance:
        scores = profile_model(teacher, calibration_batches(blocks, drawn, batch_size), chosen, advance)
    # The names as given: those of the embedded corpus run to hundreds, and the fingerprint covers their content.
    source = DataIdentity(names=list(data), fingerprint=corpus.fingerprint, num_tokens=num_tokens)
    settings = ProfileSettings(
        block_size=block_size, batch_size=batch_size, max_tokens=max_tokens, seed=seed, dtype=dtype
    )
    return make_profile(scores, identity, source, settings)
