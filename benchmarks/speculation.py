"""Speed of lossless drafting: tokens a second with a draft against the teacher alone, at batch 1, greedy.

    python benchmarks/speculation.py teacher                     # its own weights, r = 0
    python benchmarks/speculation.py teacher --plan plan.json
    python benchmarks/speculation.py teacher --draft iiet-r0

Prompts are cut from a text's validation split, at equal distances. The teacher alone is timed in `time_model`'s tight
loop, in transformers' generate(), and in generate(assistant_model=...) with the same draft; all in turns, prompt by
prompt, and compared by the medians over the rounds of the seconds for all prompts, reading them included. Exit code 1
where a bound is missed:

    tokens                      the teacher's own in every run
    at the best draft length    at least 1.8 times the tokens a second of the teacher in its tight loop
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from common import Row, make_parser, print_rows, time_in_turns
from torch import Tensor

from iiad.data import pack, resolve_inputs
from iiad.evaluation.timing import time_model
from iiad.generation.speculation import Reader, Speculation, speculate
from iiad.generation.text import load_drafted_generator

LENGTHS = (1, 2, 4, 6, 8, 12)


def main() -> int:
    """Measure, print, and return 1 where a bound is missed."""
    options = read_options()
    teacher, tokenizer, draft = load_drafted_generator(
        options.teacher,
        options.draft,
        draft_plan=options.plan,
        draft_length=1,
        device=options.device,
        dtype=options.dtype,
    )
    prompts = cut_prompts(options, tokenizer)
    drafted: dict[str, list[Speculation]] = {f"draft length {length}": [] for length in LENGTHS}
    wanted = [time_model(teacher, prompt, options.new_tokens - 1).tokens[0].tolist() for prompt in prompts]
    works = make_works(teacher, draft.model, options.new_tokens, drafted)
    seconds = time_prompts(works, prompts, options)
    wanted = [tokens for tokens in wanted for _ in range(options.rounds + 1)]
    wrong = sum(
        run.tokens != tokens for runs in drafted.values() for run, tokens in zip(runs, wanted, strict=True)
    )
    num_tokens = len(prompts) * options.new_tokens
    print(
        f"{'':32}{'tokens/s':>10}{'ratio':>8}{'accepted':>10}{'a call':>8}{'ms draft':>10}{'check':>8}{'rest':>8}"
    )
    for name, found in seconds.items():
        print(describe(name, found, seconds["teacher, tight loop"], num_tokens, drafted.get(name, [])))
    print_calls(teacher, draft.model, prompts[0])
    best = min(drafted, key=lambda name: seconds[name])
    print(
        f"\n{len(prompts)} prompts of {options.prompt_tokens} tokens, {options.new_tokens} new tokens; best: {best}"
    )
    ratio = seconds["teacher, tight loop"] / seconds[best]
    rows = [
        Row("runs whose tokens are not the teacher's", wrong, 0),
        Row("seconds at the best length, of the teacher's", 1 / ratio, round(1 / options.goal, 3)),
    ]
    return int(not print_rows(rows))


def make_works(
    teacher: Any, draft: Any, num_new: int, drafted: dict[str, list[Speculation]]
) -> dict[str, Callable[[Tensor], Any]]:
    """Return the works by name; each takes a prompt (1, T). Texts do not end, so that all give as many tokens."""
    settings: dict[str, Any] = {
        "max_new_tokens": num_new,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    assistant = draft.generation_config
    assistant.num_assistant_tokens, assistant.num_assistant_tokens_schedule = 6, "constant"
    assistant.assistant_confidence_threshold = 0.0

    def generate(prompt: Tensor, **more: Any) -> Any:
        return teacher.generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **more)

    works: dict[str, Callable[[Tensor], Any]] = {
        "teacher, tight loop": lambda prompt: time_model(teacher, prompt, num_new - 1),
        "teacher, generate()": generate,
        "generate(assistant_model), 6": lambda prompt: generate(prompt, assistant_model=draft),
    }

    def draft_and_check(length: int, prompt: Tensor) -> None:
        drafted[f"draft length {length}"].append(speculate(teacher, draft, prompt, num_new, length))

    for length in LENGTHS:
        works[f"draft length {length}"] = partial(draft_and_check, length)
    return works


def time_prompts(
    works: dict[str, Callable[[Tensor], Any]], prompts: list[Tensor], options: Any
) -> dict[str, float]:
    """Return the median over the rounds of each work's seconds for all prompts."""
    found = [
        time_in_turns(
            {name: partial(work, prompt) for name, work in works.items()}, options.rounds, options.device
        )
        for prompt in prompts
    ]
    return {name: median(map(sum, zip(*(seconds[name] for seconds in found), strict=True))) for name in works}


def describe(name: str, seconds: float, base: float, num_tokens: int, runs: list[Speculation]) -> str:
    """Return one line; of runs with a draft also the parts of a round, in ms."""
    line = f"{name:32}{num_tokens / seconds:10.1f}{base / seconds:8.2f}"
    if not runs:
        return line
    rounds = sum(run.num_calls - 1 for run in runs)
    accepted = sum(run.num_accepted for run in runs) / max(1, sum(run.num_tested for run in runs))
    a_call = sum(len(run.tokens) for run in runs) / sum(run.num_calls for run in runs)
    drafting, checking = (
        sum(times) * 1e3 / rounds
        for times in ([run.draft_seconds for run in runs], [run.verify_seconds for run in runs])
    )
    rest = sum(run.seconds for run in runs) * 1e3 / rounds - drafting - checking  # the prompt's calls, mostly
    return f"{line}{accepted:10.1%}{a_call:8.2f}{drafting:10.2f}{checking:8.2f}{rest:8.2f}"


@torch.inference_mode()
def print_calls(teacher: Any, draft: Any, prompt: Tensor) -> None:
    """Print the cost of a call of each model over some tokens after a prompt, which limits the gain."""

    def call(reader: Reader, size: int) -> None:
        reader.read(prompt[:, :size], keep=size)
        reader.rollback(prompt.shape[1])

    works: dict[str, Callable[[], Any]] = {}
    for name, model, sizes in (("draft", draft, (1,)), ("teacher", teacher, (1, 2, 3, 5, 7, 9, 13))):
        reader = Reader(model)
        reader.read(prompt)
        works |= {f"{name} over {size}": partial(call, reader, size) for size in sizes}
    seconds = {name: median(found) for name, found in time_in_turns(works, 30, prompt.device.type).items()}
    base = seconds["teacher over 1"]
    costs = ", ".join(f"{name} {value / base:.2f}" for name, value in seconds.items())
    print(f"\na call, in the teacher's over one token ({base * 1e3:.2f} ms): {costs}")


def cut_prompts(options: Any, tokenizer: Any) -> list[Tensor]:
    """Return prompts (1, T) at equal distances in the text's validation split."""
    corpus = pack(resolve_inputs([options.data], "validation"), tokenizer)
    num, size = options.num_prompts, options.prompt_tokens
    starts = np.linspace(0, corpus.num_tokens - size, num).astype(int)
    return [
        torch.from_numpy(corpus.tokens[start : start + size].astype(np.int64))[None].to(options.device)
        for start in starts
    ]


def read_options() -> Any:
    """The command line."""
    sizes = {"num_prompts": 8, "prompt_tokens": 128, "new_tokens": 128}
    parser = make_parser(__doc__, rounds=3, data="stdlib", **sizes, dtype="float32", goal=1.8)
    parser.add_argument("teacher", help="a model folder with iterations, or any with --draft")
    parser.add_argument("--draft", default="self", help="a model folder; default: the teacher's own weights")
    parser.add_argument("--plan", help="plan.json of the teacher's own draft; default: no iterations")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
