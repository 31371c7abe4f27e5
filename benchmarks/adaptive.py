"""Tokens that stop by themselves beside plans that stop all alike, at the same mean evaluations, untrained.

    python benchmarks/adaptive.py shared-0 shared-1 shared-2 --data train.jsonl --held-out valid.jsonl

Teachers of one recipe and several seeds, under the shared cache. Each is profiled on --data and planned by `kl`; its
stops and tolerances for six cuts, the best plans and as many iterations everywhere are run on --held-out. Printed for
each cut: mean evaluations of a token there, growth of the loss in nats, that of the static plans at as many (of two
plans with the tokens shared out between them, where none has that number), and the same of accuracy; means over the
teachers with a 95 % interval, the paired differences from the best plans and those of each teacher.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from iiad.checkpoints import load_config, load_model
from iiad.data import LabelledCorpus, evaluation_windows, load_tokenizer, pack_for, resolve_inputs
from iiad.evaluation.evaluation_tally import EvaluationTally, token_classes
from iiad.influence import Profile, measure_influence
from iiad.models import count_evaluations
from iiad.planning import Targets, plan_by_target
from iiad.studies.estimation import estimate
from iiad.training.scoring import evaluate_model

CUTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Of the tolerances."""
PLANNED = tuple(cut / 20 for cut in range(1, 21))
"""Of the static plans, finer."""


class Point(NamedTuple):
    """A model at one setting: mean evaluations of a token, loss in nats and accuracy."""

    evaluations: float
    nll: float
    accuracy: float


def run(model: Any, windows: Any, tally: EvaluationTally, name: str) -> tuple[Point, dict[str, Any]]:
    """Score a model as it is configured; return the point, and where its evaluations went."""
    with count_evaluations(model) as counts:
        score = evaluate_model(model, tally.watch(windows, counts), name=name)
    found = tally.result()
    return Point(found["mean_evaluations"], score.nll, score.accuracy), found


def at(points: Sequence[Point], evaluations: float, field: str) -> float:
    """The best that plans reach with these mean evaluations, sharing out tokens between two of them."""
    sign = 1 if field == "nll" else -1
    best = [
        (a.evaluations, sign * getattr(a, field), b.evaluations, sign * getattr(b, field))
        for a in points
        for b in points
        if a.evaluations <= evaluations <= b.evaluations
    ]
    mixed = (
        y if u == x else y + (v - y) * (evaluations - x) / (u - x) for x, y, u, v in best
    )  # from (x, y) to (u, v)
    return sign * min(mixed)


def measure(folder: str, options: Any) -> dict[str, Any]:
    """Measure one teacher: points of tolerances, of influence plans and of uniform ones."""
    given = {"block_size": options.block_size, "batch_size": options.batch_size}
    profile: Profile = measure_influence(
        folder, [options.data], metrics=["kl"], max_tokens=options.tokens, device="cpu", **given
    )
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    sources = resolve_inputs([options.held_out], "validation")
    corpus = pack_for(load_config(folder), sources, tokenizer, where="held-out")
    labelled = isinstance(corpus, LabelledCorpus)
    classes = None if labelled else token_classes(tokenizer, model.config.vocab_size)
    full = profile.model.num_iterations

    def score(plan: Sequence[int], tolerance: Any = None) -> tuple[Point, dict[str, Any]]:
        model.reconfigure(**model.config.split_plan(plan), tolerance=tolerance)
        windows = evaluation_windows(corpus, options.block_size, options.tokens, options.batch_size)
        tally = EvaluationTally(model, classes, corpus.grouped_by if labelled else None)
        return run(model, windows, tally, folder)

    whole, _ = score(full)
    adaptive = []
    for cut in CUTS:
        plan = plan_by_target(profile, Targets(tolerance_for=cut), "kl")
        point, found = score(plan.num_iterations, plan.tolerance)
        adaptive.append({"cut": cut, "plan": plan, "point": point, **found})
    planned = (plan_by_target(profile, Targets(overhead_cut=cut), "kl") for cut in PLANNED)
    plans = {tuple(plan.num_iterations) for plan in planned}
    static = [whole, *(score(plan)[0] for plan in sorted(plans))]
    uniform = [score([min(r, most) for most in full])[0] for r in range(max(full) + 1)]
    return {"whole": whole, "adaptive": adaptive, "influence": static, "uniform": uniform}


def show(values: Sequence[float]) -> str:
    """Mean and 95 % interval."""
    found = estimate(values)
    ends = "" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean:+.4f}{ends}"


def report(results: Sequence[dict[str, Any]]) -> None:
    """Print a row a tolerance: figures of the adaptive model and of static plans, and where the evaluations went."""
    whole = [each["whole"] for each in results]
    print(
        f"all iterations: {whole[0].evaluations:.0f} evaluations, nats {[round(w.nll, 4) for w in whole]}\n"
    )
    for field in ("nll", "accuracy"):
        print(
            f"| cut | evaluations | {field}, adaptive | best plans | uniform | adaptive - best plans | by teacher |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for k, row in enumerate(results[0]["adaptive"]):
            points = [each["adaptive"][k]["point"] for each in results]
            base = [getattr(each, field) for each in whole]
            own = [getattr(point, field) - b for point, b in zip(points, base, strict=True)]
            others = [
                [
                    at(each[name], point.evaluations, field) - b
                    for each, point, b in zip(results, points, base, strict=True)
                ]
                for name in ("influence", "uniform")
            ]
            gaps = [a - b for a, b in zip(own, others[0], strict=True)]
            mean = sum(point.evaluations for point in points) / len(points)
            cells = [f"{row['cut']:.0%}", f"{mean:.2f}", *map(show, (own, *others, gaps))]
            print(f"| {' | '.join(cells)} | {' '.join(f'{gap:+.4f}' for gap in gaps)} |")
        print()
    for row in results[0]["adaptive"]:
        classes = {name: round(value, 2) for name, value in row["evaluations_by_class"].items()}
        layers = [round(value, 2) for value in row["evaluations_by_layer"]]
        stops = list(
            zip(row["plan"].num_iterations, row["plan"].tolerance or [None] * len(layers), strict=True)
        )
        expected = sum(row["plan"].expected_evaluations or [])
        print(
            f"first teacher, {row['cut']:.0%}: {stops}, {expected:.2f} expected, layers {layers}, {classes}"
        )


def main() -> int:
    """Measure all teachers and print means and intervals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teachers", nargs="+", help="model folders")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--tokens", type=int, default=16384, help="of each; default: 16384")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    report([measure(folder, parser.parse_args()) for folder in parser.parse_args().teachers])
    return 0


if __name__ == "__main__":
    sys.exit(main())
