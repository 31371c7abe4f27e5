"""Cost of a profile in block evaluations, seconds and memory, against full forward passes.

    python benchmarks/influence_cost.py                     # 12 layers of the paper's 55M model, r = 3
    python benchmarks/influence_cost.py --vocab-size 8192 --num-tokens 2048

Works are timed in turns; medians over the rounds. Exit code 1 where a bound is missed:

    exact kl over all (t, i)    at most half of L r + 1 full forward passes, in evaluations and in seconds
    taylor for all (t, i)       at most 4 full forward passes, in seconds
    memory, all metrics         at most twice that of the model's own forward pass
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from common import Row, make_iiet, make_parser, median_ratio, print_rows, time_in_turns

from iiad.checkpoints import identify_model
from iiad.evaluation.activation_memory import peak_bytes
from iiad.influence import METRICS, num_profile_evaluations, profile_batch

SIZES = {"num_layers": 12, "num_iterations": 3, "vocab_size": 32000, "batch_size": 4, "num_tokens": 256}


def main() -> int:
    """Measure, print, and return 1 where a bound is missed."""
    options = make_parser(__doc__, rounds=3, **SIZES, dtype="float32").parse_args()
    model = make_iiet(options)
    tokens = torch.randint(
        options.vocab_size, (options.batch_size, options.num_tokens), device=options.device
    )

    @torch.no_grad()
    def forward() -> Any:
        return model(input_ids=tokens, use_cache=False).logits

    works: dict[str, Callable[[], Any]] = {
        "forward pass": forward,
        "exact kl": partial(profile_batch, model, tokens, ["kl"]),
        "taylor": partial(profile_batch, model, tokens, ["taylor"]),
        "cosine, relative_l2": partial(profile_batch, model, tokens, ["cosine", "relative_l2"]),
        "all metrics": partial(profile_batch, model, tokens),
    }
    seconds = time_in_turns(works, options.rounds, options.device)
    passes = {name: median_ratio(seconds, name, "forward pass") for name in works}
    peaks = {name: peak_bytes(work, options.device) for name, work in works.items()}
    memory = {name: peak / peaks["forward pass"] for name, peak in peaks.items()}
    print(f"{'':24}{'seconds':>10}{'in forward passes':>20}{'memory likewise':>18}")
    for name in works:
        print(f"{name:24}{median(seconds[name]):10.2f}{passes[name]:20.2f}{memory[name]:18.2f}")
    identity = identify_model(model, "random weights")
    num_passes = sum(model.config.iterations) + 1
    evaluations = num_profile_evaluations(identity, ["kl"]) / (num_passes * identity.num_evaluations)
    rows = [
        Row(f"exact kl, evaluations as a share of {num_passes} passes'", evaluations, 0.5),
        Row(f"exact kl, seconds as a share of {num_passes} passes'", passes["exact kl"] / num_passes, 0.5),
        Row("taylor, seconds in forward passes", passes["taylor"], 4.0),
        Row(f"all {len(METRICS)} metrics, memory in forward passes", memory["all metrics"], 2.0),
    ]
    print()
    return int(not print_rows(rows))


if __name__ == "__main__":
    sys.exit(main())
