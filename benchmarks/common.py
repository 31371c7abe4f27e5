"""Shared by the benchmarks: options, random models, works timed in turns, figures beside their bounds."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import torch

from iiad.evaluation.timing import now
from iiad.models import IIETConfig, IIETForCausalLM

__all__ = [
    "Row",
    "autocasts",
    "distil_once",
    "make_iiet",
    "make_parser",
    "median_ratio",
    "model_shape",
    "print_rows",
    "ratio_in_turns",
    "run_sections",
    "spread",
    "time_in_turns",
]

CHOICES = {"dtype": ["float32", "bfloat16"], "attention": ["sdpa", "eager"]}


class Row(NamedTuple):
    """One figure that must not be above its bound."""

    name: str
    figure: float
    bound: float


Section = Callable[[Any], Iterator[Row]]  # measures under the options


def print_rows(rows: Iterable[Row]) -> bool:
    """Print each figure beside its bound, as it comes. Return whether all bounds are kept."""
    all_kept = True
    for name, figure, bound in rows:
        kept = figure <= bound
        all_kept &= kept
        print(f"{name:56}{figure:8.3f}   at most {bound:<6g} {'kept' if kept else 'MISSED'}", flush=True)
    return all_kept


def run_sections(parser: argparse.ArgumentParser, sections: Mapping[str, Section], *gpu_only: str) -> int:
    """Measure the sections that the command line asks for, print, and return 1 where a bound is missed.

    gpu_only: sections that need a GPU, not among the default ones elsewhere.
    """
    parser.add_argument("--section", action="append", choices=sections, help="default: all")
    options = parser.parse_args()
    skipped = () if options.device.startswith("cuda") else gpu_only
    missed = False
    for name in options.section or [name for name in sections if name not in skipped]:
        print(name, flush=True)
        missed |= not print_rows(sections[name](options))
    return int(missed)


def time_in_turns(works: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each work in each round, after a round that warms up.

    Every other round runs backwards, so that none is always the one after another.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works) if number % 2 else reversed(works):
            started = now(torch.device(device))
            works[name]()
            seconds[name].append(now(torch.device(device)) - started)
    return {name: found[1:] for name, found in seconds.items()}


def median_ratio(seconds: Mapping[str, list[float]], work: str, *others: str) -> float:
    """Return the median over rounds of a work's seconds as a multiple of the others' together."""
    rounds = zip(seconds[work], *(seconds[name] for name in others), strict=True)
    return median(own / sum(rest) for own, *rest in rounds)


def ratio_in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int, device: str) -> float:
    """Return the median over rounds of the first's seconds as a multiple of the second's."""
    return median_ratio(time_in_turns({"first": first, "second": second}, rounds, device), "first", "second")


def make_parser(doc: str | None, rounds: int, **defaults: Any) -> argparse.ArgumentParser:
    """Return a command line with width, rounds and device, and an option for each default, of the default's type."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"hidden_size": 512, "rounds": rounds, **defaults}
    defaults["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in defaults.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(value), default=value, choices=CHOICES.get(name), help=f"default: {value}"
        )
    return parser


def model_shape(options: Any) -> dict[str, Any]:
    """Return the configuration fields that an IIET and a Llama share: the paper's shape at the options' width."""
    width = options.hidden_size
    return {
        "vocab_size": options.vocab_size,
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_attention_heads": max(1, width // 128),
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "attn_implementation": getattr(options, "attention", "sdpa"),
    }


def make_iiet(options: Any, **fields: Any) -> IIETForCausalLM:
    """Return an IIET with random weights, on which cost does not depend, in evaluation mode on the device."""
    torch.manual_seed(0)
    sizes = {"num_layers": options.num_layers, "num_iterations": getattr(options, "num_iterations", 3)}
    model = IIETForCausalLM(IIETConfig(**{**model_shape(options), **sizes, **fields}))
    return model.eval().to(options.device, getattr(torch, getattr(options, "dtype", "float32")))


def autocasts() -> Iterator[tuple[str, bool]]:
    """Yield the name of a training precision, and whether it is bfloat16 autocast."""
    yield from (("float32", False), ("bfloat16 autocast", True))


def distil_once(folder: Path, arguments: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Run `iiad distill` with one thread, or go on with it, unless the folder's run is finished; its results.

    arguments: the teacher and what else stands before the recipe's fields.
    """
    record = folder / "run.json"
    if not (record.exists() and json.loads(record.read_text())["finished"]):
        command = ["iiad", "distill", *arguments, "--output-dir", str(folder)]
        command += [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
        command += ["--resume"] if record.exists() else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    results: dict[str, Any] = json.loads(record.read_text())["results"]
    return results


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Return mean and standard deviation of several runs; of one its figure."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"
