"""Requests and tokens a second of models served by vLLM, beside what their evaluations predict.

    python benchmarks/serving.py ../vllm/bin/python                  # random weights, which cost what trained ones do
    python benchmarks/serving.py ../vllm/bin/python teacher student  # folders; others are compared with the first

The first argument is the interpreter of an environment with vLLM (serving/requirements.txt; `make serve-demo` makes
one). Without folders: an IIET, the same folder under a plan of 55 % overhead cut and without iterations, by the
engine's own override of the configuration, and a Llama of as many layers as the cut one has evaluations. All are
served at once, each by a server of its own over the OpenAI-compatible API, and asked in turns, so many requests at a
time; idle servers take no time.

    kept      speedup over the first model, as a share of the one that evaluations predict
    fixed     of the first model's time a token: what does not grow with evaluations, by least squares over all models
    tokens    requests whose greedy tokens are generate()'s; exit code 1 if any is not
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from common import make_iiet, make_parser, model_shape
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from iiad.checkpoints import load_identified
from iiad.errors import InputError
from iiad.evaluation.engine import Engine, engine_version, serving
from iiad.evaluation.timing import random_prompts, require_positions
from iiad.identities import ModelIdentity
from iiad.planning.costs import predicted_speedups

SIZES = {"num_layers": 6, "num_iterations": 3, "vocab_size": 4096, "prompt_tokens": 32, "new_tokens": 32}
CONCURRENCY = (1, 8, 32)
NUM_COMPARED = 8
TEXT = "def main("


class Served(NamedTuple):
    """A folder to serve, under another plan than its own where one is given."""

    name: str
    folder: Path
    plan: list[int] | None = None


def main() -> int:
    """Measure, print, and return 1 where tokens differ, 2 for bad input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as ^C, so that servers end
    torch.set_grad_enabled(False)
    parser = make_parser(__doc__, rounds=3, **SIZES, dtype="float32")
    parser.add_argument("python", help="interpreter of an environment with vLLM")
    parser.add_argument("models", nargs="*", help="model folders")
    parser.add_argument("--eager", action="store_true", help="start sooner, without torch.compile")
    parser.add_argument("--port", type=int, help="of the first model's server; default: any")
    options = parser.parse_args()
    try:
        print(
            f"vLLM {engine_version(options.python)}, {options.dtype}, {torch.get_num_threads()} threads",
            flush=True,
        )
        with tempfile.TemporaryDirectory(prefix="iiad-serving-") as folder, ExitStack() as servers:
            return measure(options, Path(folder), servers)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def measure(options: Any, folder: Path, servers: ExitStack) -> int:
    """Serve all models, time them in turns and compare their tokens."""
    models = [Served(Path(name).name, Path(name)) for name in options.models]
    models = models or make_models(options, folder)
    for model in models:
        require_positions(model.folder, options.prompt_tokens, options.new_tokens)
    prompts = random_prompts(max(CONCURRENCY) * 2, options.prompt_tokens, options.vocab_size, seed=0).tolist()
    engines, identities, wrong = {}, [], 0
    for number, model in enumerate(models):
        loaded, identity = load_identified(
            model.folder, "cpu", options.dtype, cast=True, num_iterations=model.plan
        )
        vocab_size = loaded.get_input_embeddings().weight.shape[0]
        prompts = [[token % vocab_size for token in prompt] for prompt in prompts]
        print(f"starting {model.name}", flush=True)
        engine = start(options, model, folder, servers, port=None if number else options.port)
        wrong += compare(loaded, model.folder, engine, prompts[:NUM_COMPARED], options.new_tokens)
        identities.append(identity)
        engines[model.name] = engine
    for concurrency in CONCURRENCY:
        print_speeds(concurrency, engines, identities, prompts, options)
    return int(wrong > 0)


def make_models(options: Any, folder: Path) -> list[Served]:
    """Save models with random weights."""
    depth, most = options.num_layers, options.num_iterations
    least, more = divmod(round(0.45 * depth * most), depth)
    plan = [least + (layer < more) for layer in range(depth)]
    make_iiet(options, max_num_iterations=most, num_iterations=most).save_pretrained(folder / "teacher")
    config = LlamaConfig(**model_shape(options), num_hidden_layers=depth + sum(plan))
    LlamaForCausalLM(config).save_pretrained(folder / "transformer")
    return [
        Served("teacher", folder / "teacher"),
        Served("plan", folder / "teacher", plan),
        Served("r0", folder / "teacher", [0] * depth),
        Served("transformer", folder / "transformer"),
    ]


def start(options: Any, model: Served, folder: Path, servers: ExitStack, port: int | None) -> Engine:
    """Serve a model until the stack ends."""
    (folder / f"server-{model.name}").mkdir()
    given = ["--dtype", options.dtype, "--max-model-len", str(options.prompt_tokens + options.new_tokens)]
    given += ["--no-enable-prefix-caching"]  # prompts are asked again, and are to be read again
    given += ["--enforce-eager"] if options.eager else []
    given += [] if model.plan is None else ["--hf-overrides", json.dumps({"num_iterations": model.plan})]
    given += [] if (model.folder / "tokenizer.json").exists() else ["--skip-tokenizer-init"]
    return servers.enter_context(
        serving(options.python, model.folder, folder / f"server-{model.name}", *given, port=port)
    )


def compare(model: Any, folder: Path, engine: Engine, prompts: list[list[int]], new_tokens: int) -> int:
    """Print how many answers are generate()'s, and a text; return the number of those that are not."""
    answers = engine.complete_all(prompts, new_tokens, len(prompts))
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    wrong = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        given = torch.tensor([prompt])
        found = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, eos_token_id=None, **length
        )
        wrong += found[0, len(prompt) :].tolist() != answer.tokens
    print(
        f"  tokens of {len(prompts) - wrong} of {len(prompts)} requests are generate()'s; {engine.url}",
        flush=True,
    )
    if (folder / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        answer = engine.complete(tokenizer(TEXT, add_special_tokens=False).input_ids, new_tokens)
        print(f"  {TEXT + tokenizer.decode(answer.tokens)!r}", flush=True)
    return wrong


def print_speeds(
    concurrency: int,
    engines: dict[str, Engine],
    identities: list[ModelIdentity],
    prompts: list[list[int]],
    options: Any,
) -> None:
    """Time models in turns, so many requests at a time, and print a row for each."""
    asked = prompts[: max(4, 2 * concurrency)]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, engine in engines.items():
            # A server that was idle is slow at first, by up to four times.
            engine.complete_all(asked[:concurrency], options.new_tokens, concurrency)
            started = time.perf_counter()
            engine.complete_all(asked, options.new_tokens, concurrency)
            seconds[name].append(time.perf_counter() - started)
    first = identities[0]
    heads = ("evaluations", "requests/s", "tokens/s", "speedup", "predicted", "kept")
    print(f"\n{f'{concurrency} at a time':24}" + "".join(f"{head:>12}" for head in heads))
    each = []
    for (name, found), identity in zip(seconds.items(), identities, strict=True):
        each.append(median(found) / len(asked))
        speedup = median(one / own for one, own in zip(seconds[next(iter(seconds))], found, strict=True))
        predicted = predicted_speedups(identity, first)[1]
        figures = [1 / each[-1], options.new_tokens / each[-1], speedup]
        figures += [] if predicted is None else [predicted, speedup / predicted]
        row = "".join(f"{figure:12.2f}" for figure in figures)
        print(f"{name:24}{identity.num_evaluations:12}{row}", flush=True)
    evaluations = [identity.num_evaluations for identity in identities]
    if len(set(evaluations)) > 2:
        slope, fixed = np.polyfit(evaluations, each, 1)
        print(
            f"  an evaluation {1000 * slope / options.new_tokens:.2f} ms a token; fixed {fixed / each[0]:.0%}"
        )


if __name__ == "__main__":
    sys.exit(main())
