"""What a training step of an iterated model costs, against a Llama with as many layers as it has evaluations.

    python benchmarks/training_cost.py                              # 4 layers of the paper's 55M model, r = 3
    python benchmarks/training_cost.py --section activations --num-layers 12

Counts are the same every time. What is timed is timed in pairs, in turns, in one run: the figure is the median over
the pairs. Without the head, which is the same for both. Exit code 1 where a bound is missed:

    activations     saved for backward, as a multiple of that Llama's: at most 1.05; with recomputation at most 0.1
    step            forward and backward, seconds as a multiple of that Llama's: at most 1.05
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from iiad.benchmarking.memory import saved_bytes
from iiad.models import IIETConfig, IIETModel


class Row(NamedTuple):
    """One figure that must not be above its bound."""

    name: str
    figure: float
    bound: float


def measure_activations(options: Any) -> list[Row]:
    """Bytes saved for backward by one forward pass, by recomputation and type."""
    ours, llama = make_models(options)
    rows = []
    for autocast in (False, True):
        base = saved_bytes(lambda: forward(llama, options, autocast), llama)  # noqa: B023 (run at once)
        for recompute, bound in (("none", 1.05), ("layer", 0.1), ("evaluation", 0.1)):
            ours.set_recompute(recompute)
            saved = saved_bytes(lambda: forward(ours, options, autocast), ours)  # noqa: B023
            rows.append(Row(f"recompute {recompute}, {type_name(autocast)}", saved / base, bound))
    return rows


def measure_step(options: Any) -> list[Row]:
    """Seconds of forward and backward."""
    ours, llama = make_models(options)
    rows = []
    for autocast in (False, True):
        seconds = time_in_pairs(
            lambda: step(ours, options, autocast),  # noqa: B023
            lambda: step(llama, options, autocast),  # noqa: B023
            options,
        )
        rows.append(Row(f"forward and backward, {type_name(autocast)}", seconds, 1.05))
    return rows


SECTIONS: dict[str, Callable[[Any], list[Row]]] = {
    "activations": measure_activations,
    "step": measure_step,
}


def main() -> int:
    """Measure section by section, print, and say whether every bound is kept."""
    options = read_options()
    missed = False
    for name in options.section or SECTIONS:
        rows = SECTIONS[name](options)
        print_rows(name, rows)
        missed |= any(row.figure > row.bound for row in rows)
    return int(missed)


def print_rows(section: str, rows: Sequence[Row]) -> None:
    """Each figure beside its bound."""
    print(section)
    for row in rows:
        verdict = "ok" if row.figure <= row.bound else "MISSED"
        print(f"  {row.name:48}{row.figure:8.3f}   at most {row.bound:<6g} {verdict}", flush=True)


def make_models(options: Any) -> tuple[IIETModel, LlamaModel]:
    """An IIET and a Llama of its evaluations, without heads, with random weights: cost does not depend on them."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 1000,
        "hidden_size": options.hidden_size,
        "intermediate_size": options.hidden_size * 11 // 4,
        "num_attention_heads": max(1, options.hidden_size // 128),
        "max_position_embeddings": max(2048, options.num_tokens),
        "attn_implementation": options.attention,
    }
    ours = IIETModel(
        IIETConfig(**shape, num_layers=options.num_layers, num_iterations=options.num_iterations)
    )
    llama = LlamaModel(LlamaConfig(**shape, num_hidden_layers=ours.config.num_hidden_layers))
    return ours.train().to(options.device), llama.train().to(options.device)


def forward(model: nn.Module, options: Any, autocast: bool) -> Tensor:
    """The last hidden states of a batch of tokens, (B, T, D)."""
    tokens = torch.arange(options.batch_size * options.num_tokens, device=options.device) % 1000
    with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=autocast):
        return model(tokens.view(options.batch_size, -1), use_cache=False).last_hidden_state


def step(model: nn.Module, options: Any, autocast: bool) -> None:
    """Forward and backward; the gradients are dropped."""
    forward(model, options, autocast).float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def time_in_pairs(first: Callable[[], Any], second: Callable[[], Any], options: Any) -> float:
    """Median over the rounds of the seconds of the first, as a multiple of the second's right beside it."""
    ratios = []
    for number in range(options.rounds + 1):
        pair = (
            (first, second) if number % 2 else (second, first)
        )  # neither is always the one that comes first
        seconds = {work: time_of(work, options.device) for work in pair}
        ratios.append(seconds[first] / seconds[second])
    return median(ratios[1:])  # without the first round, which warms up


def time_of(work: Callable[[], Any], device: str) -> float:
    """Seconds of one run."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: str) -> None:
    """Wait until all that was asked of a GPU is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def type_name(autocast: bool) -> str:
    """What it is computed in."""
    return "bfloat16 autocast" if autocast else "float32"


def read_options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--num-iterations", type=int, default=3)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
