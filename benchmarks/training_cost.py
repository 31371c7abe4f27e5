"""Cost of a training step of an iterated model, against a Llama with as many layers as it has evaluations.

    python benchmarks/training_cost.py                              # 4 layers of the paper's 55M model, r = 3
    python benchmarks/training_cost.py --section activations --num-layers 12

Bytes are counted and the same every time; steps are timed in turns, medians over the rounds. Both without the head,
which is the same for both. Exit code 1 where a bound is missed:

    activations     saved for backward, as a multiple of that Llama's: at most 1.05; with recomputation at most 0.1
    step            forward and backward, seconds as a multiple of that Llama's: at most 1.05
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Row, autocasts, make_iiet, make_parser, model_shape, ratio_in_turns, run_sections
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from iiad.evaluation.activation_memory import saved_bytes
from iiad.models import IIETModel

SIZES = {"num_layers": 4, "num_iterations": 3, "vocab_size": 1000, "batch_size": 2, "num_tokens": 256}


def measure_activations(options: Any) -> Iterator[Row]:
    """Yield bytes saved for backward by one forward pass, by recomputation and precision."""
    ours, llama = make_models(options)
    for name, autocast in autocasts():
        base = saved_bytes(partial(forward, llama, options, autocast), llama)
        for recompute, bound in (("none", 1.05), ("layer", 0.1), ("evaluation", 0.1)):
            ours.set_recompute(recompute)
            saved = saved_bytes(partial(forward, ours, options, autocast), ours)
            yield Row(f"recompute {recompute}, {name}", saved / base, bound)


def measure_step(options: Any) -> Iterator[Row]:
    """Yield seconds of forward and backward."""
    ours, llama = make_models(options)
    for name, autocast in autocasts():
        work, other = (partial(step, model, options, autocast) for model in (ours, llama))
        ratio = ratio_in_turns(work, other, options.rounds, options.device)
        yield Row(f"forward and backward, {name}", ratio, 1.05)


def main() -> int:
    """Measure section by section."""
    parser = make_parser(__doc__, rounds=10, **SIZES, attention="sdpa")
    return run_sections(parser, {"activations": measure_activations, "step": measure_step})


def make_models(options: Any) -> tuple[IIETModel, LlamaModel]:
    """Return an IIET and a Llama of its evaluations, without heads, in training mode."""
    ours = make_iiet(options).model
    config = LlamaConfig(**model_shape(options), num_hidden_layers=ours.config.num_hidden_layers)
    return ours.train(), LlamaModel(config).train().to(options.device)


def forward(model: nn.Module, options: Any, autocast: bool) -> Tensor:
    """Return the last hidden states of a batch of tokens, (B, T, D)."""
    tokens = torch.arange(options.batch_size * options.num_tokens, device=options.device) % options.vocab_size
    with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=autocast):
        return model(tokens.view(options.batch_size, -1), use_cache=False).last_hidden_state


def step(model: nn.Module, options: Any, autocast: bool) -> None:
    """Run forward and backward; drop the gradients."""
    forward(model, options, autocast).float().square().mean().backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    sys.exit(main())
