"""What lossless mode gains: tokens a second with a draft against the teacher alone, at batch 1, greedy.

    python benchmarks/speculation.py demo-output/teacher                     # its own weights, r = 0
    python benchmarks/speculation.py demo-output/teacher --plan demo-output/plan.json
    python benchmarks/speculation.py demo-output/teacher --draft demo-output/iiet-r0

Prompts are cut from a text's validation split, at equal distances. The teacher alone is timed in `time_model`'s tight
loop, in transformers' generate(), and in generate(assistant_model=...) with the same draft; all in turns in one run,
prompt by prompt, and compared by the medians over the rounds of the seconds for all prompts, reading them included.
Exit code 1 where a bound is missed:

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
from timing import Row, make_parser, print_rows, time_of
from torch import Tensor

from iiad.data import pack, resolve_inputs
from iiad.evaluation.timing import now, time_model
from iiad.generation.speculation import Reader, Speculation, speculate
from iiad.generation.text import load_drafted_generator

LENGTHS = (1, 2, 4, 6, 8, 12)


def main() -> int:
    """Measure, print, and say whether every bound is kept."""
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
    said: dict[int, list[Speculation]] = {length: [] for length in LENGTHS}
    wanted = [time_model(teacher, prompt, options.new_tokens - 1).tokens[0].tolist() for prompt in prompts]
    works = make_works(teacher, draft.model, options.new_tokens, said)
    seconds = time_in_turns(works, prompts, options)
    wrong = sum(
        run.tokens != tokens
        for runs in said.values()
        for run, tokens in zip(runs, wanted * (options.rounds + 1), strict=True)
    )
    num_tokens = len(prompts) * options.new_tokens
    print(
        f"{'':32}{'tokens/s':>10}{'ratio':>8}{'accepted':>10}{'a call':>8}{'ms draft':>10}{'check':>8}{'rest':>8}"
    )
    for name, found in seconds.items():
        runs = said.get(int(name.split()[-1]) if name.startswith("draft length") else 0, [])
        print(describe(name, found, seconds["teacher, tight loop"], num_tokens, runs))
    print_calls(teacher, draft.model, prompts[0])
    best = min((name for name in seconds if name.startswith("draft")), key=lambda name: seconds[name])
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
    teacher: Any, draft: Any, num_new: int, said: dict[int, list[Speculation]]
) -> dict[str, Callable[[Tensor], Any]]:
    """What is timed, by name; each takes a prompt (1, T). Texts do not end, so that all give as many tokens."""
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
        said[length].append(speculate(teacher, draft, prompt, num_new, length))

    for length in LENGTHS:
        works[f"draft length {length}"] = partial(draft_and_check, length)
    return works


def time_in_turns(
    works: dict[str, Callable[[Tensor], Any]], prompts: list[Tensor], options: Any
) -> dict[str, float]:
    """Median over the rounds, after one that warms up, of each one's seconds for all prompts."""
    rounds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds + 1):
        totals = dict.fromkeys(works, 0.0)
        for prompt in prompts:
            for name, work in works.items():
                totals[name] += time_of(partial(work, prompt), options.device)
        for name, total in totals.items():
            rounds[name].append(total)
    return {name: median(found[1:]) for name, found in rounds.items()}


def describe(name: str, seconds: float, base: float, num_tokens: int, runs: list[Speculation]) -> str:
    """One line; of runs with a draft also where a round's time goes, in ms."""
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
    """What limits the gain: a call of each model over some tokens after a prompt, ms, in turns."""
    readers = {"draft": (Reader(draft), (1,)), "teacher": (Reader(teacher), (1, 2, 3, 5, 7, 9, 13))}
    found: dict[tuple[str, int], list[float]] = {}
    for reader, _ in readers.values():
        reader.read(prompt)
    for _ in range(30):
        for name, (reader, sizes) in readers.items():
            for size in sizes:
                started = now(prompt.device)
                reader.read(prompt[:, :size], keep=size)
                found.setdefault((name, size), []).append(now(prompt.device) - started)
                reader.rollback(prompt.shape[1])
    base = median(found["teacher", 1])
    print(
        "\na call, in the teacher's over one token "
        f"({base * 1e3:.2f} ms): "
        + ", ".join(f"{name} over {size} {median(times) / base:.2f}" for (name, size), times in found.items())
    )


def cut_prompts(options: Any, tokenizer: Any) -> list[Tensor]:
    """Prompts (1, T) at equal distances in the text's validation split."""
    corpus = pack(resolve_inputs([options.data], "validation"), tokenizer)
    num, size = options.num_prompts, options.prompt_tokens
    starts = np.linspace(0, corpus.num_tokens - size, num).astype(int)
    return [
        torch.from_numpy(corpus.tokens[start : start + size].astype(np.int64))[None].to(options.device)
        for start in starts
    ]


def read_options() -> Any:
    """The command line."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("teacher", help="a model folder with iterations, or any with --draft")
    parser.add_argument("--draft", default="self", help="a model folder; default: the teacher's own weights")
    parser.add_argument("--plan", help="plan.json of the teacher's own draft; default: no iterations")
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--goal", type=float, default=1.8, help="of the speed at the best length")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
