"""What a profile costs: block evaluations, seconds and memory, against full forward passes.

    python benchmarks/influence_cost.py                     # 12 layers of the paper's 55M model, r = 3
    python benchmarks/influence_cost.py --vocab-size 8192 --num-tokens 2048

Everything is timed in turns in one run, each between two forward passes, of which it is taken as a multiple; medians
over the rounds. Exit code 1 where a bound is missed:

    exact kl over all (t, i)    at most half of L r + 1 full forward passes, in evaluations and in seconds
    taylor for all (t, i)       at most 4 full forward passes, in seconds
    memory, all metrics         at most twice that of the model's own forward pass
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from timing import Row, make_parser, print_rows, time_of

from iiad.checkpoints import identify_model
from iiad.evaluation.activation_memory import peak_bytes
from iiad.influence import METRICS, num_profile_evaluations, profile_batch
from iiad.models import IIETConfig, IIETForCausalLM


def main() -> int:
    """Measure, print, and say whether every bound is kept."""
    options = read_options()
    model = make_model(options)
    tokens = torch.randint(
        options.vocab_size, (options.batch_size, options.num_tokens), device=options.device
    )

    @torch.no_grad()
    def forward() -> Any:
        return model(input_ids=tokens, use_cache=False).logits

    works: dict[str, Callable[[], Any]] = {
        "exact kl": lambda: profile_batch(model, tokens, ["kl"]),
        "taylor": lambda: profile_batch(model, tokens, ["taylor"]),
        "cosine, relative_l2": lambda: profile_batch(model, tokens, ["cosine", "relative_l2"]),
        "all metrics": lambda: profile_batch(model, tokens),
    }
    seconds, passes = time_in_turns(works, forward, options)
    base = peak_bytes(forward, options.device)
    memory = {name: peak_bytes(work, options.device) / base for name, work in works.items()}
    print(f"{'':24}{'seconds':>10}{'in forward passes':>20}{'memory likewise':>18}")
    for name in works:
        print(f"{name:24}{seconds[name]:10.2f}{passes[name]:20.2f}{memory[name]:18.2f}")
    return judge(model, passes, memory["all metrics"])


def judge(model: IIETForCausalLM, passes: dict[str, float], memory: float) -> int:
    """Each bound beside what was found; 1 where one is missed."""
    identity = identify_model(model, "random weights")
    num_passes = sum(model.config.iterations) + 1
    evaluations = num_profile_evaluations(identity, ["kl"]) / (num_passes * identity.num_evaluations)
    rows = [
        Row(f"exact kl, evaluations as a share of {num_passes} passes'", evaluations, 0.5),
        Row(f"exact kl, seconds as a share of {num_passes} passes'", passes["exact kl"] / num_passes, 0.5),
        Row("taylor, seconds in forward passes", passes["taylor"], 4.0),
        Row(f"all {len(METRICS)} metrics, memory in forward passes", memory, 2.0),
    ]
    print()
    return int(not print_rows(rows))


def time_in_turns(
    works: dict[str, Callable[[], Any]], forward: Callable[[], Any], options: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each, and as a multiple of the forward passes right before and after it."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    passes: dict[str, list[float]] = {name: [] for name in works}
    before = [time_of(forward, options.device) for _ in range(3)][-1]
    for _ in range(options.rounds):
        for name, work in works.items():
            own, after = time_of(work, options.device), time_of(forward, options.device)
            seconds[name].append(own)
            passes[name].append(2 * own / (before + after))
            before = after
    return medians(seconds), medians(passes)


def medians(groups: dict[str, list[float]]) -> dict[str, float]:
    """The median of each group."""
    return {name: median(found) for name, found in groups.items()}


def make_model(options: Any) -> IIETForCausalLM:
    """An IIET with random weights: cost does not depend on what they are."""
    torch.manual_seed(0)
    config = IIETConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 11 // 4,
        num_layers=options.num_layers,
        num_attention_heads=max(1, options.hidden_size // 128),
        max_position_embeddings=max(2048, options.num_tokens),
        num_iterations=options.num_iterations,
    )
    return IIETForCausalLM(config).eval().to(options.device, getattr(torch, options.dtype))


def read_options() -> Any:
    """The command line."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--num-layers", type=int, default=12)
    parser.add_argument("--num-iterations", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
