"""What a training step of an iterated model costs, against a Llama with as many layers as it has evaluations.

    python benchmarks/training_cost.py                              # 4 layers of the paper's 55M model, r = 3
    python benchmarks/training_cost.py --section activations --num-layers 12

Counts are the same every time. What is timed is timed in pairs, in turns, in one run: the figure is the median over
the pairs. Without the head, which is the same for both. Exit code 1 where a bound is missed:

    activations     saved for backward, as a multiple of that Llama's: at most 1.05; with recomputation at most 0.1
    step            forward and backward, seconds as a multiple of that Llama's: at most 1.05
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import Row, make_parser, print_rows, ratio_in_turns
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from iiad.evaluation.activation_memory import saved_bytes
from iiad.models import IIETConfig, IIETModel


def measure_activations(options: Any) -> list[Row]:
    """Bytes saved for backward by one forward pass, by recomputation and type."""
    ours, llama = make_models(options)
    rows = []
    for autocast in (False, True):
        base = saved_bytes(partial(forward, llama, options, autocast), llama)
        for recompute, bound in (("none", 1.05), ("layer", 0.1), ("evaluation", 0.1)):
            ours.set_recompute(recompute)
            saved = saved_bytes(partial(forward, ours, options, autocast), ours)
            rows.append(Row(f"recompute {recompute}, {type_name(autocast)}", saved / base, bound))
    return rows


def measure_step(options: Any) -> list[Row]:
    """Seconds of forward and backward."""
    ours, llama = make_models(options)
    rows = []
    for autocast in (False, True):
        work, other = (partial(step, model, options, autocast) for model in (ours, llama))
        seconds = ratio_in_turns(work, other, options.rounds, options.device)
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
        print(name)
        missed |= not print_rows(rows)
    return int(missed)


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


def type_name(autocast: bool) -> str:
    """What it is computed in."""
    return "bfloat16 autocast" if autocast else "float32"


def read_options() -> Any:
    """The command line."""
    parser = make_parser(__doc__, rounds=10)
    parser.add_argument("--section", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--num-iterations", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
