"""Held-out loss after each choice of stages and losses of distillation: one teacher, same steps, several seeds.

Runs `iiad distill` once for every arm and seed, --jobs at a time, one thread each, and prints a table in Markdown.
Finished runs in the output folder are kept.

    python benchmarks/distillation_effects.py teacher plan.json --data docs-train.jsonl \
        --validation docs-valid.jsonl --output-dir effects
    python benchmarks/distillation_effects.py pcformer --predictor-stages 1 --data ... --output-dir effects-pcformer
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import distil_once

Arm = tuple[tuple[float, float, float], list[str]]
STAGES = ("layerwise", "distill", "recover")

# Shares of the steps for each stage, and other settings.
ARMS: dict[str, Arm] = {
    "stage 2 only (recover)": ((0, 0, 1), []),
    "stage 1 only (distill)": ((0, 1, 0), []),
    "both": ((0, 1 / 2, 1 / 2), []),
    "layerwise, then both": ((1 / 3, 1 / 3, 1 / 3), []),
}
LOSSES: dict[str, Arm] = {
    "stage 1, reverse KL": ((0, 1, 0), ["distillation.divergence=reverse"]),
    "stage 1, Jensen-Shannon": ((0, 1, 0), ["distillation.divergence=jsd"]),
    "stage 1, KL without CE": ((0, 1, 0), ["distillation.ce_weight=0"]),
    "stage 1, hidden states too (cosine)": (
        (0, 1, 0),
        ["distillation.hidden_weight=1", "distillation.hidden_loss=cosine"],
    ),
}
STORED = "stage 1, stored signals"


def main() -> None:
    """Run all arms that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("plan", nargs="?", help="none with --predictor-stages")
    parser.add_argument("--predictor-stages", type=int, help="of a PCformer, to keep")
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--losses", action="store_true", help="other losses of stage 1, too")
    parser.add_argument(
        "--signals",
        nargs="+",
        default=[],
        help="folders of `iiad capture`, for an arm each that learns from it",
    )
    parser.add_argument("--recipe", default="documentation-distill")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which arms without signals"
    )
    args = parser.parse_args()
    arms = {name: ARMS[name] for name in args.arms} | (LOSSES if args.losses else {})
    for signals in args.signals:
        arms[f"{STORED} ({Path(signals).name})"] = ((0, 1, 0), [f"distillation.signals={signals}"])
    runs = [(arm, seed) for seed in range(args.seeds) for arm in arms]
    # One step at a learning rate of 1e-30: the truncated teacher as it is.
    runs.append(("no distillation", 0))
    arms["no distillation"] = ((0, 0, 0), [])
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda run: distil(args, run[0], arms[run[0]], run[1]), runs))
    report(args, runs, results)


def distil(args: argparse.Namespace, arm: str, plan: Arm, seed: int) -> dict[str, float]:
    """Return the results of one run, after running it if its record is not finished."""
    shares, settings = plan
    name = arm.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
    fields = dict(setting.split("=", 1) for setting in settings) | {
        "data.train": f"[{args.data}]",
        "data.validation": f"[{args.validation}]",
        "training.seed": str(1000 * seed),
        "training.per_device_train_batch_size": str(args.batch_size),
        "training.save_steps": "1000",
        "training.save_total_limit": "1",
    }
    if args.predictor_stages:
        fields["student.predictor_stages"] = str(args.predictor_stages)
    rate = args.learning_rate if any(shares) else 1e-30
    for stage, share in zip(STAGES, steps_of(shares, args.steps), strict=True):
        length = f"max_steps: {share}, learning_rate: {rate!r}, warmup_steps: {share // 10}"
        fields[f"distillation.{stage}"] = f"{{{length}}}"
    words = [args.teacher, *([args.plan] if args.plan else []), "--recipe", args.recipe]
    return distil_once(args.output_dir / f"{name}-{seed}", words, fields)


def steps_of(shares: tuple[float, float, float], steps: int) -> list[int]:
    """Return whole steps for each stage; one step of no consequence where there is no share."""
    if not any(shares):
        return [0, 0, 1]
    return [round(share * steps) for share in shares]


def report(args: argparse.Namespace, runs: list[tuple[str, int]], results: list[dict[str, float]]) -> None:
    """Print a row an arm: mean and spread over seeds of the student's held-out loss, and its teacher's."""
    teacher = results[0]["teacher_validation_nll"]
    print(f"teacher: {teacher:.4f} nats a token; compute cut {100 * results[0]['compute_cut']:.1f} %")
    print(
        f"{args.steps} steps of {args.batch_size} blocks, learning rate {args.learning_rate:g}, {args.seeds} seeds\n"
    )
    print("| arm | validation loss, nats | smallest to largest | above the teacher | accuracy retained |")
    print("| --- | --- | --- | --- | --- |")
    arms = dict.fromkeys(arm for arm, _ in reversed(runs))
    rows = []
    for arm in arms:
        found = [result for (name, _), result in zip(runs, results, strict=True) if name == arm]
        losses = [result["validation_nll"] for result in found]
        retained = statistics.mean(result["retained"] for result in found)
        mean, spread = statistics.mean(losses), statistics.stdev(losses) if len(losses) > 1 else 0.0
        rows.append((arm, mean, spread, min(losses), max(losses), retained))
    for arm, mean, spread, least, most, retained in sorted(rows, key=lambda row: -row[1]):
        print(
            f"| {arm} | {mean:.4f} ± {spread:.4f} | {least:.4f} to {most:.4f} | {mean - teacher:+.4f} | "
            f"{100 * retained:.2f} % |"
        )


if __name__ == "__main__":
    main()
