"""One elastic student beside students of one plan each: the same steps for each, and the same evaluations in all.

Runs `iiad distill` for every arm, plan and seed, --jobs at a time, one thread each, and prints a table in Markdown.
Finished runs in the output folder are kept; unfinished ones go on.

    python benchmarks/elastic.py teacher plans.json --recipe documentation-distill --data docs-train.jsonl \
        --validation docs-valid.jsonl --output-dir elastic
    python benchmarks/elastic.py teacher plans.json --recipe task-distill --data states:length=16 \
        --validation states:length=16,rows=2048 --output-dir elastic-states --learning-rate 2e-3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from iiad.planning import Family
from iiad.planning.costs import count_evaluations

UNTRAINED, ELASTIC, ALONE, EQUAL = "untrained", "elastic", "alone, as many steps", "alone, as much in all"


class Job(NamedTuple):
    """One run. plan: of a student of one plan; None: all of them."""

    arm: str
    seed: int
    plan: str | None
    steps: int
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of its folder."""
        words = [self.arm.replace(" ", "-").replace(",", ""), self.plan, str(self.seed)]
        return "-".join(word for word in words if word)


def main() -> None:
    """Run what is not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("plans", help="plans.json of `iiad plan --family`")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, for all runs")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        help="NAME:FIELD=VALUE[;FIELD=VALUE...]: one more elastic arm, as in "
        "self:distillation.elastic.teacher=self",
    )
    args = parser.parse_args()
    family = Family.load(args.plans)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    jobs = [Job(UNTRAINED, 0, None, 0)]
    variants = {ELASTIC: ()} | {
        f"{ELASTIC}, {name}": fields for name, fields in map(read_variant, args.variant)
    }
    jobs += [
        Job(arm, seed, None, args.steps, fields)
        for seed in range(args.seeds)
        for arm, fields in variants.items()
    ]
    names = [each.name for each in family.plans]
    jobs += [Job(ALONE, seed, name, args.steps) for seed in range(args.seeds) for name in names]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda job: distil(args, family, job), jobs))
    cost = results[1]["trained_evaluations_per_token"], results[1]["single_students_evaluations_per_token"]
    steps = max(1, round(args.steps * cost[0] / cost[1]))
    equal = [Job(EQUAL, seed, name, steps) for seed in range(args.seeds) for name in names]
    with ThreadPoolExecutor(args.jobs) as pool:
        results += list(pool.map(lambda job: distil(args, family, job), equal))
    report(args, family, [*jobs, *equal], results, steps, cost)


def read_variant(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the settings of a variant."""
    name, _, fields = text.partition(":")
    return name, tuple(fields.split(";"))


def distil(args: argparse.Namespace, family: Family, job: Job) -> dict[str, Any]:
    """Return the results of a run, after running it if its record is not finished."""
    folder, plans = args.output_dir / job.name, Path(args.plans)
    record = folder / "run.json"
    if not (record.exists() and json.loads(record.read_text())["finished"]):
        if job.plan is not None:
            plans = args.output_dir / f"{job.plan}.json"
            one = [each for each in family.plans if each.name == job.plan]
            family.model_copy(update={"plans": one}).save(plans)
        rate, steps = (args.learning_rate, job.steps) if job.steps else (1e-30, 1)
        fields = [
            f"data.train=['{args.data}']",
            f"data.validation=['{args.validation}']",
            f"distillation.distill={{max_steps: {steps}, learning_rate: {rate!r}, warmup_steps: {steps // 10}}}",
            "distillation.recover.max_steps=0",
            "training.eval_steps=null",
            f"training.seed={1000 * job.seed}",
            "training.save_total_limit=1",
            *args.set,
            *job.settings,
        ]
        command = [
            "iiad",
            "distill",
            args.teacher,
            "--elastic",
            "--plans",
            str(plans),
            "--recipe",
            args.recipe,
        ]
        command += ["--output-dir", str(folder), *(word for field in fields for word in ("--set", field))]
        command += ["--resume"] if record.exists() else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return json.loads(record.read_text())["results"]


def report(
    args: argparse.Namespace,
    family: Family,
    jobs: list[Job],
    results: list[dict[str, Any]],
    steps: int,
    cost: tuple[float, float],
) -> None:
    """Print a row a plan: loss and accuracy retained of each arm, means over seeds with standard deviations."""
    arms = list(dict.fromkeys(job.arm for job in jobs))
    print(f"teacher: {results[0]['teacher_validation_nll']:.4f} nats a token; {args.seeds} seeds")
    print(
        f"elastic: {args.steps} steps of {cost[0]:.1f} evaluations a token; students of one plan each: {cost[1]:.0f} "
        f"a step of all; as many steps are {args.steps} each, as much in all {steps} each\n"
    )
    for figure, form, scale in (("validation_nll", ".4f", 1), ("retained", ".2f", 100)):
        print(f"{figure.replace('_', ' ')}{', %' if scale == 100 else ', nats'}\n")
        print(f"| plan | evaluations | {' | '.join(arms)} |")
        print("| --- | --- |" + " --- |" * len(arms))
        for each in family.plans:
            cells = []
            for arm in arms:
                found = [
                    scale * plan[figure]
                    for job, result in zip(jobs, results, strict=True)
                    if job.arm == arm
                    for plan in result["plans"]
                    if plan["name"] == each.name and plan[figure] is not None
                ]
                spread = f" ± {statistics.stdev(found):{form}}" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):{form}}{spread}" if found else "")
            evaluations = count_evaluations(family.teacher, each.num_iterations)
            print(f"| {each.name} | {evaluations} | {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
