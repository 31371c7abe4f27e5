"""Cost of an evaluation at inference, against a layer of a Llama of the same width.

    python benchmarks/inference_cost.py                          # the paper's 55M model, r = 3; random weights
    python benchmarks/inference_cost.py --section forward --section decode
    python benchmarks/inference_cost.py --device cuda --dtype bfloat16 --hidden-size 1024 --num-layers 24   # 340M

Pairs are timed in turns; a figure is the median over the rounds of their ratio. One sequence, exact cache, under
three plans: in full, and with overhead cuts of 55 % and 75 %. Exit code 1 where a bound is missed:

    forward     seconds as a multiple of a Llama's with as many layers as the model has evaluations: at most 1.03
    decode      a decoding step likewise, eager: at most 1.05
    compiled    a decoding step with static cache and torch.compile, as a share of our own eager one: at most 1 / 1.5
    students    the speedup that a plan's evaluations predict, as a multiple of what `iiad bench` measures, for
                decoding and for the prompt: at most 1 / 0.97; where it is missed, the parts that cause it
    graphs      (on a GPU) a compiled decoding step, with CUDA graphs, as a multiple of that of a Transformer of as
                many layers as the model has: at most 2.5 in full, 1.5 at a cut of 55 %
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from common import Row, make_iiet, make_parser, model_shape, ratio_in_turns, run_sections
from transformers import LlamaConfig, LlamaForCausalLM

from iiad.checkpoints import identify_model, load_model
from iiad.evaluation.speed import bench_models
from iiad.evaluation.timing import compile_step, new_cache, random_prompts, run_calls
from iiad.models import IIETForCausalLM
from iiad.planning import Plan
from iiad.reporting.bench_tables import explain_losses

SIZES = {"num_layers": 12, "num_iterations": 3, "vocab_size": 32000, "num_tokens": 128, "steps": 8}
"""Of the model, of the forward pass and the prompt, and decoding steps at a time."""


def main() -> int:
    """Measure section by section."""
    torch.set_grad_enabled(False)
    return run_sections(make_parser(__doc__, rounds=10, **SIZES, dtype="float32"), SECTIONS, "graphs")


def measure_forward(options: Any) -> Iterator[Row]:
    """Time one forward pass without a cache, the head on the last token alone."""
    tokens = random_prompts(1, options.num_tokens, options.vocab_size, seed=0).to(options.device)

    def forward(model: Any) -> None:
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)

    for name, ours, llama in make_pairs(options):
        yield Row(name, compare(partial(forward, ours), partial(forward, llama), options), 1.03)


def measure_decoding(options: Any) -> Iterator[Row]:
    """Time decoding steps after a prompt."""
    for name, ours, llama in make_pairs(options):
        yield Row(name, compare(decoding(ours, options), decoding(llama, options), options), 1.05)


def measure_compiled(options: Any) -> Iterator[Row]:
    """Time decoding steps through torch.compile and a static cache, in those of our own eager model."""
    model = make_iiet(options)
    for name, plan in make_plans(options).items():
        model.set_num_iterations(plan)
        torch.compiler.reset()
        compiled = decoding(model, options, compiled=True)
        yield Row(name, compare(compiled, decoding(model, options), options), 1 / 1.5)


def measure_students(options: Any) -> Iterator[Row]:
    """Compare each plan with the whole model, as `iiad bench` does."""
    full, *cuts = make_plans(options).values()
    with tempfile.TemporaryDirectory() as folder:
        make_iiet(options).save_pretrained(folder)
        teacher = identify_model(load_model(folder), folder)
        assert teacher.num_iterations == full
        for plan in cuts:
            bench = bench_models(
                [folder],
                plan=Plan.explicit(plan, teacher),
                prompt_tokens=options.num_tokens,
                new_tokens=options.steps,
                repeats=options.rounds,
                device=options.device,
                dtype=options.dtype,
            )
            student = bench.results[1]
            for phase, found in (("decode", student.decode), ("prefill", student.prefill)):
                assert found.kept is not None
                name = f"{phase}, {student.evaluations_per_token} of {teacher.num_evaluations} evaluations"
                yield Row(name, 1 / found.kept, 1 / 0.97)
            for line in explain_losses(bench.results):
                print(f"    {line.partition(', ')[2]}")


def measure_graphs(options: Any) -> Iterator[Row]:
    """Compare compiled decoding with that of a Transformer."""
    model = make_iiet(options)
    llama = make_llama(options, options.num_layers)
    for (name, plan), bound in zip(make_plans(options).items(), (2.5, 1.5), strict=False):
        model.set_num_iterations(plan)
        torch.compiler.reset()
        ours, other = (decoding(each, options, compiled=True) for each in (model, llama))
        yield Row(name, compare(ours, other, options), bound)


SECTIONS = {
    "forward": measure_forward,
    "decode": measure_decoding,
    "compiled": measure_compiled,
    "students": measure_students,
    "graphs": measure_graphs,
}


def compare(first: Callable[[], Any], second: Callable[[], Any], options: Any) -> float:
    """Return seconds of the first in those of the second."""
    return ratio_in_turns(first, second, options.rounds, options.device)


def decoding(model: Any, options: Any, compiled: bool = False) -> Callable[[], None]:
    """Return a function that decodes some steps from where its last call ended; the prompt has been read.

    All caches grow alike, so that what is compared has the same context.
    """
    prompts = random_prompts(1, options.num_tokens, options.vocab_size, seed=0).to(options.device)
    num_tokens = options.num_tokens + 1 + options.steps * (options.rounds + 1)
    step, cache = (
        (compile_step(model), new_cache(model, num_tokens)) if compiled else (None, new_cache(model))
    )
    calls = run_calls(model, prompts, cache, step)
    next(calls)

    def run() -> None:
        for _ in islice(calls, options.steps):
            pass

    return run


def make_plans(options: Any) -> dict[str, list[int]]:
    """Return r_t of each layer in full and with overhead cuts of 55 % and 75 %, the first layers keeping more."""
    depth, most = options.num_layers, options.num_iterations
    named = {"in full": [most] * depth}
    for cut in (0.55, 0.75):
        least, more = divmod(round((1 - cut) * depth * most), depth)
        named[f"overhead cut {cut:.0%}"] = [least + (layer < more) for layer in range(depth)]
    return named


def make_pairs(options: Any) -> Iterator[tuple[str, IIETForCausalLM, LlamaForCausalLM]]:
    """Yield, under each plan, the model and a Llama of its evaluations."""
    ours = make_iiet(options)
    for name, plan in make_plans(options).items():
        ours.set_num_iterations(plan)
        depth = ours.config.num_evaluations
        yield f"{name}, {depth} evaluations", ours, make_llama(options, depth)


def make_llama(options: Any, num_layers: int) -> LlamaForCausalLM:
    """Return a Llama of the IIET's shape, in evaluation mode."""
    llama = LlamaForCausalLM(LlamaConfig(**model_shape(options), num_hidden_layers=num_layers))
    return llama.eval().to(options.device, getattr(torch, options.dtype))


if __name__ == "__main__":
    sys.exit(main())
