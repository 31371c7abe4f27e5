"""Stage onpolicy beside the offline stage: the same teachers, plans, data and steps, a run for each teacher and arm.

Runs `iiad distill`, --jobs at a time, one thread each; then scores every student on held-out text and on its own
continuations of that text, and times steps in turns. Prints a table in Markdown. Finished runs are kept.

    python benchmarks/onpolicy.py --pair teacher0 plan0.json --pair teacher1 plan1.json --data docs-train.jsonl \
        --validation docs-valid.jsonl --output-dir onpolicy

Loss: held-out nats a token. KL: mean of KL(teacher || student), or reversed, over tokens of held-out text, or over
tokens that the student samples after prompts of half a block of it. Seconds: a step of the first pair's student.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from common import distil_once, spread, time_in_turns
from torch import Tensor

from iiad.checkpoints import load_model
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs
from iiad.distillation import LearnFromTeacher, LiveTeacher
from iiad.distillation.continuations import Continuations
from iiad.distillation.divergences import forward_kl
from iiad.training.batches import Batch
from iiad.training.distillation_sections import DistillationSection, OnPolicySection
from iiad.training.head import asked_values
from iiad.training.learner import Learner

OWN = OnPolicySection(max_steps=1, fraction=1.0)
OFFLINE = "offline (fraction 0)"


class Job(NamedTuple):
    """A run. pair: number of teacher and plan. fraction: of the steps; steps: 0 leaves the student as it is."""

    arm: str
    pair: int
    fraction: float
    steps: int


def main() -> None:
    """Run what is not finished, score, time and print."""
    args = parse_options()
    arms = {"the plan's student as it is": (0.0, 0), OFFLINE: (0.0, args.steps)}
    arms |= {f"fraction {fraction:g}": (fraction, args.steps) for fraction in args.fractions}
    if args.long_steps:
        arms[f"offline, {args.long_steps} steps"] = (0.0, args.long_steps)
    jobs = [Job(arm, pair, *how) for pair in range(len(args.pair)) for arm, how in arms.items()]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda job: distil(args, job), jobs))
    torch.set_num_threads(1)
    found = [score(args, job) for job in jobs]
    offline, own = time_steps(args)
    print(
        f"\n{args.steps} steps of {args.batch_size} blocks of {args.block_size} tokens, learning rate "
        f"{args.learning_rate:g}, {args.divergence} divergence alone, {len(args.pair)} teachers\n"
    )
    print("| arm | held-out loss | KL, held-out | reverse | KL, own tokens | reverse | seconds a step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    columns = {
        arm: columns_of(
            [
                [result["validation_nll"], *kls]
                for job, result, kls in zip(jobs, results, found, strict=True)
                if job.arm == arm
            ]
        )
        for arm in arms
    }
    for arm, (fraction, steps) in arms.items():
        seconds = f"{offline + fraction * (own - offline):.2f}" if steps else ""
        print(f"| {arm} | {' | '.join(map(spread, columns[arm]))} | {seconds} |")
        if fraction:
            pairs = zip(columns[arm], columns[OFFLINE], strict=True)
            changes = [[one - other for one, other in zip(*pair, strict=True)] for pair in pairs]
            print(f"| change from offline | {' | '.join(map(spread, changes))} | |")
    teachers = [result["teacher_validation_nll"] for job, result in zip(jobs, results, strict=True)]
    print(f"| teacher | {spread(teachers[:: len(arms)])} | | | | | |")


def columns_of(rows: list[list[float]]) -> list[list[float]]:
    """Return each figure of all pairs, of the figures of each pair."""
    return [list(column) for column in zip(*rows, strict=True)]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", action="append", nargs=2, required=True, metavar=("TEACHER", "PLAN"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--recipe", default="documentation-distill")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--long-steps", type=int, help="an offline arm of so many steps, too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--divergence", default="forward", choices=["forward", "reverse", "jsd"])
    parser.add_argument("--score-blocks", type=int, default=128, help="held-out blocks to take KLs on")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=1)
    return parser.parse_args()


def folder_of(args: argparse.Namespace, job: Job) -> Path:
    """Return the folder of a run."""
    words = job.arm.replace(",", "").replace("'", "").replace("(", "").replace(")", "").split()
    return Path(args.output_dir / f"{'-'.join(words)}-{job.pair}")


def distil(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """Return the results of a run."""
    teacher, plan = args.pair[job.pair]
    # A step at a learning rate of 1e-30 leaves the student as it is.
    rate, steps = (args.learning_rate, job.steps) if job.steps else (1e-30, 1)
    stage = (
        f"max_steps: {steps}, learning_rate: {rate!r}, warmup_steps: {steps // 10}, fraction: {job.fraction}"
    )
    fields = {
        "data.train": f"['{args.data}']",
        "data.validation": f"['{args.validation}']",
        "data.block_size": args.block_size,
        "distillation.ce_weight": 0,
        "distillation.divergence": args.divergence,
        "distillation.distill.max_steps": 0,
        "distillation.recover.max_steps": 0,
        "distillation.onpolicy": f"{{{stage}}}",
        "training.per_device_train_batch_size": args.batch_size,
        "training.seed": 1000 * job.pair,
        "training.save_total_limit": 1,
    }
    return distil_once(folder_of(args, job), [teacher, plan, "--recipe", args.recipe], fields)


def held_out(args: argparse.Namespace, teacher: str) -> Iterator[Batch]:
    """Yield batches of held-out blocks."""
    corpus = pack(resolve_inputs([args.validation], "validation"), load_tokenizer(teacher), progress=False)
    blocks = TokenBlocks(corpus, args.block_size)
    for first in range(0, min(args.score_blocks, len(blocks)), args.batch_size):
        yield blocks.batch(range(first, first + args.batch_size))


def make_continuations(args: argparse.Namespace, teacher: str, student: Any) -> Continuations:
    """Return continuations of blocks of the student's own."""
    tokenizer = load_tokenizer(teacher)
    corpus = pack(resolve_inputs([args.validation], "validation"), tokenizer, progress=False)
    made = Continuations(OWN, TokenBlocks(corpus, args.block_size), student, tokenizer)
    made.draw(0, 0)
    return made


@torch.no_grad()
def score(args: argparse.Namespace, job: Job) -> list[float]:
    """Return both KLs on held-out text, then on the student's own tokens, in nats a token."""
    folder = args.pair[job.pair][0]
    teacher, student = (load_model(each).eval() for each in (folder, folder_of(args, job)))
    rewrite, sums = make_continuations(args, folder, student).rewrite, torch.zeros(2, 2, dtype=torch.float64)
    counts = [0, 0]
    for given in held_out(args, folder):
        for kind, batch in enumerate((given, rewrite(given))):
            log_p, log_q = (log_probs(model, batch) for model in (teacher, student))
            sums[kind] += torch.stack([forward_kl(log_p, log_q).sum(), forward_kl(log_q, log_p).sum()])
            counts[kind] += len(log_p)
    return [float(value) / count for row, count in zip(sums, counts, strict=True) for value in row]


def log_probs(model: Any, batch: Batch) -> Tensor:
    """Return the log-probabilities (n, V) at the positions that are asked for."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return asked_values(logits, batch).double().log_softmax(-1)


def time_steps(args: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of a step on text and of one on continuations, medians of turns."""
    folder = args.pair[0][0]
    student = load_model(folder_of(args, Job(OFFLINE, 0, 0.0, args.steps))).train()
    teacher = load_model(folder)
    section = DistillationSection(ce_weight=0.0, divergence=args.divergence)
    learner = Learner(student, LearnFromTeacher(LiveTeacher(teacher), section, student.config.num_layers))
    made, batch = make_continuations(args, folder, student), next(held_out(args, folder))
    works: dict[str, Callable[[], None]] = {
        "offline": lambda: step(learner, batch),
        "own": lambda: step(learner, made.rewrite(batch)),
    }
    seconds = time_in_turns(works, args.rounds, "cpu")
    return median(seconds["offline"]), median(seconds["own"])


def step(learner: Learner, batch: Batch) -> None:
    """Run signal, forward and backward; drop the gradients."""
    assert learner.objective is not None
    loss, _ = learner(batch, learner.objective.signal(batch))
    loss.backward()
    learner.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
