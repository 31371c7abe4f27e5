"""`iiad generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Device

__all__ = ["generate"]


def generate(
    model: Annotated[str, typer.Argument(help="A model folder or hub name, with its tokenizer.")],
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from. Default: the beginning of a text.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a file instead.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy; above 0 samples.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the likeliest tokens of this probability together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    num_samples: Annotated[int, typer.Option(help="Texts to make, when sampling.")] = 1,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="Print as it comes. Default: on a terminal, for one sample."
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="plan.json: run the model truncated to it.")] = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights: float32 or bfloat16. Default: float32 on the CPU, else bfloat16."),
    ] = None,
) -> None:
    """Continue a text: the prompt and what the model adds go to stdout, the speed to stderr.

    Example:  iiad generate student --prompt "def main(" --temperature 0.8 --top-p 0.95
    """
    from iiad.generation import check_sampling, generate_text, load_generator, read_prompt, text_streamer
    from iiad.reporting.progress import say

    check_sampling(max_new_tokens, temperature, top_k, top_p, seed, num_samples)
    text = read_prompt(prompt, prompt_file)
    loaded, tokenizer = load_generator(model, plan=plan, device=device, dtype=dtype)
    if stream is None:
        stream = sys.stdout.isatty() and num_samples == 1
    generation = generate_text(
        loaded,
        tokenizer,
        text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_samples=num_samples,
        streamer=text_streamer(tokenizer) if stream else None,
    )
    for number, sample in enumerate([] if stream else generation.texts, 1):
        if num_samples > 1:
            print(f"--- sample {number} of {num_samples} ---")
        print(sample)
    say(f"{generation.num_new_tokens} new tokens, {generation.tokens_per_second:.1f} tokens/s")
