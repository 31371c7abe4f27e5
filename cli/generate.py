"""`iiad generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .listed_plans import resolve_plan
from .options import (
    CachePolicy,
    Device,
    Dtype,
    Seed,
    TrustRemoteCode,
    refuse_options,
    require_models,
    require_plan,
)
from .output import is_json, print_result

__all__ = ["generate"]


def generate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Model folder with its tokenizer, or hub name.", callback=require_models)
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text to continue, or an encoder-decoder's source. Default: the beginning of a text."
        ),
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File with the prompt.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with a prompt on each line: a text of each, greedy or by beams.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts of --prompts at a time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add, at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy; above 0 samples.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the likeliest tokens of this probability together.")
    ] = None,
    num_beams: Annotated[int, typer.Option(help="Beams to search by; 1: none.")] = 1,
    length_penalty: Annotated[
        float | None,
        typer.Option(
            help="Compare beams by log likelihood over length to this power: more is longer. Default: 1."
        ),
    ] = None,
    seed: Seed = 0,
    num_samples: Annotated[int, typer.Option(help="Texts to make, when sampling.")] = 1,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="Print as it comes. Default: on a terminal, for one sample."
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME|CUT",
            help="plan.json, or a plan that an elastic student lists: run the model truncated to it.",
            callback=require_plan,
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|self|auto",
            callback=require_models,
            help="Let a model of the same tokenizer propose tokens: faster, same greedy text, same distribution of "
            "samples. self: the model's own weights, at an elastic student's smallest plan, else without iterations; "
            "auto: at a measured plan.",
        ),
    ] = None,
    draft_plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME|CUT",
            help="plan.json, or a listed plan, for --draft self.",
            callback=require_plan,
        ),
    ] = None,
    draft_length: Annotated[
        int | None, typer.Option(help="Tokens to propose at a time, at most. Default: measured first.")
    ] = None,
    cache_policy: CachePolicy = None,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue a text, or make the target of a source: text goes to stdout, the speed to stderr.

    Example:  iiad generate student --prompt "def main(" --temperature 0.8 --top-p 0.95

    Example:  iiad generate teacher --draft self --prompt "def main("

    Example:  iiad generate translator --prompts english.txt --num-beams 4 > italian.txt
    """
    from transformers import TextStreamer

    from iiad.checkpoints import require_cache_policy
    from iiad.errors import InputError
    from iiad.generation.prompting import read_prompt, read_prompts
    from iiad.generation.searching import Search
    from iiad.generation.speculation import Chooser
    from iiad.generation.text import check_sampling, generate_text, generate_texts, load_drafted_generator
    from iiad.progress import print_status

    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "num_samples": num_samples,
    }
    beams: dict[str, Any] = {"num_beams": num_beams, "length_penalty": length_penalty}
    check_sampling(**sampling)
    Search(**beams, chooser=Chooser(temperature))
    _refuse_others(context, temperature, num_beams, prompts)
    text = read_prompt(prompt, prompt_file)
    lines = None if prompts is None else read_prompts(prompts)
    require_cache_policy([model], cache_policy)
    if draft is not None and num_samples > 1:
        raise InputError(f"num_samples: expected 1 with --draft, got {num_samples}")
    loaded, tokenizer, proposer = load_drafted_generator(
        model,
        draft,
        draft_plan=resolve_plan(draft_plan, model),
        draft_length=draft_length,
        plan=resolve_plan(plan, model),
        device=device,
        dtype=dtype,
    )
    if lines is not None:
        options = {"max_new_tokens": max_new_tokens, **beams, "batch_size": batch_size}
        made = generate_texts(loaded, tokenizer, lines, **options)
        print_result(made, lambda width: "\n".join(" ".join(each.split("\n")) for each in made.texts))
        print_status(_describe_speed(made))
        return
    if stream is None:
        stream = sys.stdout.isatty() and num_samples == num_beams == 1
    stream = stream and not is_json()
    generation = generate_text(
        loaded,
        tokenizer,
        text,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True) if stream else None,
        draft=proposer,
        **sampling,
        **beams,
    )
    if not stream:
        print_result(generation, lambda width: "\n".join(_with_numbers(generation.texts)))
    print_status(_describe_speed(generation))
    for found in (generation.speculation, generation.choice):
        if found is not None:
            print_status(str(found))


def _refuse_others(context: typer.Context, temperature: float, num_beams: int, prompts: Path | None) -> None:
    """Raise InputError for options that do not apply beside these."""
    if temperature == 0:
        refuse_options(context, "without a --temperature above 0", "seed")
    if num_beams > 1:
        refuse_options(context, "with --num-beams", "stream", "draft")
    if prompts is None:
        refuse_options(context, "without --prompts", "batch_size")
    else:
        refuse_options(context, "with --prompts", "prompt", "prompt_file", "temperature", "stream", "draft")


def _describe_speed(generation: Any) -> str:
    mean = generation.evaluations
    taken = "" if mean is None else f", {mean:.2f} evaluations a token"
    return f"{generation.num_new_tokens} new tokens, {generation.tokens_per_second:.1f} tokens/s{taken}"


def _with_numbers(texts: list[str]) -> Iterator[str]:
    """Yield each text, of several behind a line with its number."""
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            yield f"--- sample {number} of {len(texts)} ---"
        yield text
