"""Elastic students beside students of one plan each, at the same evaluations in all.

An elastic student learns by the sandwich rule, --steps steps, or by a single plan a step; this one and the students
alone take as many evaluations in all. "more" is the same again with --steps steps for each plan alone. Runs `iiad
profile`, `iiad plan --family` and `iiad distill` for every teacher, arm and plan, --jobs at a time, one thread each.
Prints tables in Markdown: losses above the teacher's and accuracy retained, means over the teachers; and elastic
students minus those alone, with 95 % intervals. Finished runs in the output folder are kept; unfinished ones go on.

    python benchmarks/elastic.py text-0 text-1 text-2 --recipe documentation-distill --data docs-train.jsonl \
        --validation docs-valid.jsonl --output-dir elastic
    python benchmarks/elastic.py states-0 states-1 states-2 --recipe task-distill --data states:length=16 \
        --validation states:length=16,rows=2048 --output-dir elastic-states --learning-rate 2e-3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from iiad.planning import Family
from iiad.planning.costs import count_evaluations
from iiad.studies.estimation import estimate

UNTRAINED, SANDWICH, SINGLE, ALONE = "untrained", "sandwich", "single", "alone"
MORE = {arm: f"{arm}, more" for arm in (SANDWICH, SINGLE, ALONE)}
PAIRS = (
    (SANDWICH, ALONE),
    (SINGLE, ALONE),
    (MORE[SANDWICH], MORE[ALONE]),
    (MORE[SINGLE], MORE[ALONE]),
    (SANDWICH, MORE[ALONE]),
)
"""Elastic students and those that they are compared with: at the same evaluations; the last, at the same steps."""

SINGLE_RULE = ("distillation.elastic.rule=single",)


class Job(NamedTuple):
    """One run. seed: number of the teacher. plan: of a student of one plan; None: all of them."""

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
    """Run what is not finished, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teachers", nargs="+", help="model folders of one recipe, a seed each")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--cuts", default="0,0.3,0.55,0.75,1")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, for all runs")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        help="NAME:FIELD=VALUE[;FIELD=VALUE...]: one more elastic student, of --steps steps, as in "
        "self:distillation.elastic.teacher=self",
    )
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    families = [make_family(args, seed) for seed in range(len(args.teachers))]
    variants = {name: fields.split(";") for name, _, fields in (each.partition(":") for each in args.variant)}
    seeds = range(len(families))
    jobs = [Job(UNTRAINED, seed, None, 0) for seed in seeds]
    jobs += [Job(SANDWICH, seed, None, args.steps) for seed in seeds]
    jobs += [
        Job(name, seed, None, args.steps, tuple(fields))
        for name, fields in variants.items()
        for seed in seeds
    ]
    results = run_all(args, families, jobs)
    elastic = next(result for job, result in results.items() if job.arm == SANDWICH)
    cost, of_all = elastic["trained_evaluations_per_token"], elastic["single_students_evaluations_per_token"]
    plans = len(families[0].plans)
    steps = {ALONE: max(1, round(args.steps * cost / of_all)), MORE[ALONE]: args.steps}
    steps[MORE[SANDWICH]] = round(args.steps * of_all / cost)
    steps |= {SINGLE: plans * steps[ALONE], MORE[SINGLE]: plans * args.steps}
    rest = [Job(MORE[SANDWICH], seed, None, steps[MORE[SANDWICH]]) for seed in seeds]
    rest += [
        Job(arm, seed, None, steps[arm], SINGLE_RULE) for arm in (SINGLE, MORE[SINGLE]) for seed in seeds
    ]
    rest += [
        Job(arm, seed, plan.name, steps[arm])
        for arm in (ALONE, MORE[ALONE])
        for seed, family in enumerate(families)
        for plan in family.plans
    ]
    results |= run_all(args, families, rest)
    losses = " ".join(f"{results[job]['teacher_validation_nll']:.4f}" for job in jobs if job.arm == SANDWICH)
    print(f"teachers: {losses} nats a token")
    counts = ", ".join(f"{arm} {number}" for arm, number in {SANDWICH: args.steps, **steps}.items())
    print(
        f"evaluations a token: {cost:.1f} in a step of the sandwich, {of_all} in one of each plan; steps: {counts}\n"
    )
    print_tables("nats above the teacher", "above", ".4f", families, results)
    print_tables("accuracy retained, %", "retained", ".2f", families, results)


def make_family(args: argparse.Namespace, seed: int) -> Family:
    """Profile a teacher and plan its family, unless that is done."""
    profile, plans = (args.output_dir / f"{name}-{seed}.json" for name in ("profile", "plans"))
    if not plans.exists():
        teacher = args.teachers[seed]
        measure = ["--data", args.data, "--max-tokens", "8192", "--metric", "kl", "--overwrite"]
        run("profile", teacher, *measure, "--output", str(profile))
        run("plan", str(profile), "--family", "--cuts", args.cuts, "--output", str(plans))
    return Family.load(plans)


def run_all(args: argparse.Namespace, families: list[Family], jobs: list[Job]) -> dict[Job, dict[str, Any]]:
    """Return the results of each run."""
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda job: distil(args, families[job.seed], job), jobs)
        return dict(zip(jobs, results, strict=True))


def distil(args: argparse.Namespace, family: Family, job: Job) -> dict[str, Any]:
    """Return the results of a run, after running it if its record is not finished."""
    folder, plans = args.output_dir / job.name, args.output_dir / f"plans-{job.seed}.json"
    record = folder / "run.json"
    if not (record.exists() and json.loads(record.read_text())["finished"]):
        if job.plan is not None:
            plans = args.output_dir / f"{job.plan}-{job.seed}.json"
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
        options = ["--elastic", "--plans", str(plans), "--recipe", args.recipe, "--output-dir", str(folder)]
        options += [word for field in fields for word in ("--set", field)]
        options += ["--resume"] if record.exists() else []
        run("distill", args.teachers[job.seed], *options)
    return json.loads(record.read_text())["results"]


def run(*words: str) -> None:
    """Run a command of iiad in one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(["iiad", *words], check=True, env=environment, stdout=sys.stderr)


def print_tables(
    heading: str, figure: str, form: str, families: list[Family], results: dict[Job, dict[str, Any]]
) -> None:
    """Print each arm's mean over the teachers, a row a plan, and the paired differences."""
    found = {}
    for job, result in results.items():
        for each in result["plans"]:
            above = each["validation_nll"] - result["teacher_validation_nll"]
            found[job.arm, each["name"], job.seed] = above if figure == "above" else 100 * each["retained"]
    arms, seeds = list(dict.fromkeys(job.arm for job in results)), range(len(families))
    names = [plan.name for plan in families[0].plans]
    print_table(
        f"{heading} | evaluations",
        arms,
        {
            f"{name} | {count_alone(families, name)}": [
                f"{estimate([found[arm, name, seed] for seed in seeds]).mean:{form}}" for arm in arms
            ]
            for name in names
        },
    )
    differences = {}
    for name in names:
        cells = []
        for one, other in PAIRS:
            gap = estimate([found[one, name, seed] - found[other, name, seed] for seed in seeds])
            interval = "" if gap.low is None else f" [{gap.low:{form}}, {gap.high:{form}}]"
            cells.append(f"{gap.mean:+{form}}{interval}")
        differences[name] = cells
    print_table(f"{heading}: difference", [f"{one} - {other}" for one, other in PAIRS], differences)


def count_alone(families: list[Family], name: str) -> str:
    """Return the evaluations a token of a plan in all families."""
    plans = [(family.teacher, plan) for family in families for plan in family.plans if plan.name == name]
    counts = {count_evaluations(teacher, plan.num_iterations) for teacher, plan in plans}
    return "-".join(map(str, sorted(counts)))


def print_table(corner: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    """Print a table in Markdown."""
    header = f"| {corner} | {' | '.join(columns)} |"
    print(header)
    print("| --- " * (header.count("|") - 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print()


if __name__ == "__main__":
    main()
