"""Live teacher, top-k and final hidden states side by side: bytes, what is lost, what a student learns, and time.

Captures the signals that are not in the output folder yet. Then students of one plan, one for each kind, learn in
turns on the same blocks in one process, KL alone, AdamW; seeds are other blocks. Prints a table in Markdown:

    bytes a token   on disk, beside the head, which is stored once
    KL lost         KL(teacher || what is stored), exact, of final hidden states: their rounding. Below the table
                    also of int8 without scales of channels
    KL seen         by the student in the first step: a lower bound of the live teacher's for top-k
    KL after        exact KL(teacher || student) on held-out blocks
    seconds         of a step, median, reading included, and as a multiple of the live teacher's in the same turn

    python benchmarks/stored_signals.py teacher plan.json --data docs-train.jsonl --validation docs-valid.jsonl \
        --output-dir signals
    python benchmarks/stored_signals.py teacher --data docs-train.jsonl --output-dir signals   # the first two alone
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import spread

from iiad.checkpoints import load_model
from iiad.data import TokenBlocks, load_tokenizer, pack, resolve_inputs
from iiad.distillation import LearnFromTeacher, LiveTeacher, StoredTeacher, Teacher
from iiad.distillation.capture import capture_signals
from iiad.distillation.divergences import FullTarget, forward_kl
from iiad.distillation.stored_signals import StoredSignals
from iiad.planning import Plan
from iiad.training.distillation_sections import DistillationSection
from iiad.training.learner import Learner

LIVE = "live"
KINDS: dict[str, dict[str, Any]] = {
    "top-64": {"top_k": 64},
    "top-16": {"top_k": 16},
    "final-hidden, bf16": {"top_k": None, "compression": "bfloat16"},
    "final-hidden, int8": {"top_k": None, "compression": "int8"},
}
SECTION = DistillationSection(ce_weight=0.0)


def main() -> None:
    """Capture, learn and print."""
    args = parse_options()
    torch.set_num_threads(1)
    stored = {name: capture(args, name) for name in args.kinds}
    tokenizer = load_tokenizer(args.teacher)
    blocks = TokenBlocks(
        pack(resolve_inputs([args.data], "train"), tokenizer, progress=False), args.block_size
    )
    lost = {name: rounding(args, blocks, signals) for name, signals in stored.items() if signals.record.head}
    figures: dict[str, dict[str, list[float]]] = {
        name: defaultdict(list, bytes=[signals.record.layout.bytes_per_token])
        for name, signals in stored.items()
    }
    figures[LIVE] = defaultdict(list)
    if args.plan is not None:
        for seed in range(args.seeds):
            learn(args, blocks, stored, seed, figures)
    print(
        f"\n{args.steps} steps of {args.batch_size} blocks of {args.block_size} tokens, learning rate "
        f"{args.learning_rate:g}, {args.seeds} seeds; head {head_bytes(stored):.2f} MiB\n"
    )
    print("| teacher | bytes a token | KL lost | KL seen first | KL after | seconds a step | of live |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in (LIVE, *stored):
        found = figures[name]
        size = f"{found['bytes'][0]:,.0f}" if found["bytes"] else ""
        loss = f"{lost[name]:.2e}" if name in lost else ""
        kls = " | ".join(spread(found[each], 5) if found[each] else "" for each in ("seen", "after"))
        times = " | ".join(
            f"{median(found[each]):.2f}" if found[each] else "" for each in ("seconds", "ratio")
        )
        print(f"| {name} | {size} | {loss} | {kls} | {times} |")
    if lost:
        plain = rounding(args, blocks, stored[next(iter(lost))], plain_int8=True)
        print(f"\nKL lost in int8 without scales of channels: {plain:.2e}")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("plan", nargs="?", help="none: only what is stored, and what is lost")
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--score-blocks", type=int, default=32)
    args = parser.parse_args()
    if args.plan is not None and args.validation is None:
        parser.error("--validation: expected text to score students on, got none")
    return args


def capture(args: argparse.Namespace, name: str) -> StoredSignals:
    """Capture the signals of all seeds' blocks, or open those that are there."""
    folder = args.output_dir / name.replace(", ", "-")
    if not (folder / "signals.json").exists():
        num_blocks = args.seeds * args.steps * args.batch_size
        options = {"block_size": args.block_size, "max_tokens": num_blocks * args.block_size, "device": "cpu"}
        capture_signals(args.teacher, [args.data], folder, resume=True, **options, **KINDS[name])
    return StoredSignals.open(folder)


def head_bytes(stored: dict[str, StoredSignals]) -> float:
    """Return the size of a head's file in MiB, 0 where there is none."""
    folders = (each.folder for each in stored.values() if each.record.head)
    return max(((folder / "head.safetensors").stat().st_size / 2**20 for folder in folders), default=0.0)


@torch.no_grad()
def rounding(
    args: argparse.Namespace, blocks: TokenBlocks, stored: StoredSignals, plain_int8: bool = False
) -> float:
    """Return the mean KL from the live teacher to what is stored, over some blocks.

    plain_int8: to its own states in 127 steps up to a token's largest number instead.
    """
    count = min(args.score_blocks, stored.record.num_blocks)
    live, kept = LiveTeacher(load_model(args.teacher)), StoredTeacher(stored)
    total, num_tokens = 0.0, 0
    for index in range(count):
        batch = kept.blocks(blocks).batch([index])
        targets = [teacher.signal(batch).target for teacher in (live, kept)]
        if plain_int8:
            assert isinstance(targets[0], FullTarget)
            step = targets[0].states.abs().amax(-1, keepdim=True) / 127
            targets[1] = targets[0]._replace(states=(targets[0].states / step).round() * step)
        log_p, log_q = map(distribution, targets)
        total += float(forward_kl(log_p, log_q).sum())
        num_tokens += len(log_p)
    return total / num_tokens


def distribution(target: Any) -> torch.Tensor:
    """Return the log-probabilities of a whole distribution (N, V), in float64."""
    assert isinstance(target, FullTarget)
    return (target.states.to(target.weight.dtype) @ target.weight.t()).double().log_softmax(-1)


def learn(
    args: argparse.Namespace,
    blocks: TokenBlocks,
    stored: dict[str, StoredSignals],
    seed: int,
    figures: dict[str, dict[str, list[float]]],
) -> None:
    """Let a student of each kind learn, all in turns, and note its figures."""
    plan = Plan.load(args.plan)
    teachers: dict[str, Teacher] = {LIVE: LiveTeacher(load_model(args.teacher))}
    teachers |= {name: StoredTeacher(signals) for name, signals in stored.items()}
    learners, optimizers = {}, {}
    for name, teacher in teachers.items():
        student = load_model(args.teacher, num_iterations=plan.num_iterations).train()
        learners[name] = Learner(student, LearnFromTeacher(teacher, SECTION, student.config.num_layers))
        optimizers[name] = torch.optim.AdamW(student.parameters(), args.learning_rate, (0.9, 0.95))
    for number in range(args.steps):
        first = (seed * args.steps + number) * args.batch_size
        order = list(teachers) if number % 2 else list(reversed(teachers))
        seconds = {}
        for name in order:
            started = time.perf_counter()
            batch = teachers[name].blocks(blocks).batch(range(first, first + args.batch_size))
            learner = learners[name]
            assert learner.objective is not None
            loss, parts = learner(batch, learner.objective.signal(batch))
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            seconds[name] = time.perf_counter() - started
            if number == 0:
                figures[name]["seen"].append(float(parts["kl"]))
        for name in seconds if number else ():
            figures[name]["seconds"].append(seconds[name])
            figures[name]["ratio"].append(seconds[name] / seconds[LIVE])
    for name, learner in learners.items():
        figures[name]["after"].append(score(args, learner))


@torch.no_grad()
def score(args: argparse.Namespace, learner: Learner) -> float:
    """Return the mean KL from the live teacher to a student on held-out blocks."""
    tokenizer = load_tokenizer(args.teacher)
    corpus = pack(resolve_inputs([args.validation], "validation"), tokenizer, progress=False)
    blocks, teacher = TokenBlocks(corpus, args.block_size), load_model(args.teacher).eval()
    student, kls = learner.model.eval(), []
    for index in range(min(args.score_blocks, len(blocks))):
        ids = blocks[index]["input_ids"][None]
        log_p, log_q = (
            model(input_ids=ids).logits[0].double().log_softmax(-1) for model in (teacher, student)
        )
        kls.append(forward_kl(log_p, log_q))
    return float(torch.cat(kls).mean())


if __name__ == "__main__":
    main()
