"""Loss growth of cuts that need no training: plain, extrapolated, and by variants of the extrapolation.

    python benchmarks/extrapolation.py teacher-0 teacher-1 teacher-2 --data train.jsonl --held-out valid.jsonl

Teachers of one recipe and several seeds. All is fitted on tokens of --data and measured on --held-out, both drawn as
`iiad profile` draws them. Plans: as many iterations everywhere; the best by `kl` at overhead cuts (30, 55, 75, 100 %)
by a plain profile and by one of extrapolated stops. Printed: growth of the loss in nats, and the share of the plain
growth that a variant takes away, each as a mean over the teachers with a 95 % interval. Variants:

    steps       up to three numbers for each layer and stop: what `iiad plan --extrapolate` does
    last        one number, z(r) + b (z(r) - z(r-1))
    two         two numbers, for the last step and the one before (from r = 2)
    input       as last, and at r = 0 with the layer's input in place of z(-1)
    norm        as last, and at r = 0 a z(0) + c, a and c by channel
    channel     as last, b by channel
    anderson    the mix of z(r) and z(r-1) whose residual is least, by token (Anderson 1965; from r = 1)
    weights     as last, and the layer's output weights refitted
    sequential  as last, fitted layer after layer with the layers before it cut and extrapolated; of some plans
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from common import make_parser
from torch import Tensor

from iiad.checkpoints import load_model
from iiad.evaluation.plan_trials import measure_truncations
from iiad.influence import ProfileSettings, measure_influence
from iiad.influence.batches import counted_positions, prepare_batch
from iiad.influence.calibration import draw_calibration, numbered_batches
from iiad.influence.passes import FullPass
from iiad.planning import Targets, plan_by_target
from iiad.studies.estimation import estimate

VARIANTS = "steps last two input norm channel anderson weights sequential".split()
CUTS = (0.3, 0.55, 0.75, 1.0)
Solved = list[tuple[Tensor, list[Tensor], list[Tensor]]]
"""For each layer its input, its iterates z(0), ..., z(R) and H_0, ..., H_{t-1}, all (tokens, D)."""
Correct = Callable[[int, Tensor, list[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor | None]]
"""Layer, input, iterates z(0), ..., z(r) and history -> H_t and x_{t+1} (None: as the layer makes it of H_t)."""


@torch.no_grad()
def solve_all(model: Any, batches: Sequence[Any]) -> Solved:
    """Run the full model and keep what counts of every layer."""
    parts: list[Solved] = []
    for batch in batches:
        given = prepare_batch(model, batch, "batch")
        masks, run = counted_positions(model, given), FullPass(model, given)
        layers = []
        for layer, solved in run.run():
            stack = run.stacks[0]
            states = [stack._input(layer), *solved.iterates, *stack._history(layer)]
            mask = masks[layer]
            flat = [state.flatten(0, 1) if mask is None else state[mask] for state in states]
            split = 1 + len(solved.iterates)
            layers.append((flat[0], flat[1:split], flat[split:]))
        parts.append(layers)
    return [
        (
            torch.cat([part[t][0] for part in parts]),
            [torch.cat(states) for states in zip(*(part[t][1] for part in parts), strict=True)],
            [torch.cat(states) for states in zip(*(part[t][2] for part in parts), strict=True)],
        )
        for t in range(len(parts[0]))
    ]


@contextmanager
def corrected(model: Any, correct: Correct) -> Iterator[None]:
    """Let layers that stop early hand on what `correct` makes of their iterates."""
    layers, most = model.base_model.layers, list(model.config.iterations)

    def wrap(layer: int, corrector: Any) -> None:
        original = corrector.forward

        def forward(
            z: Tensor, x: Tensor, history: Any, num_iterations: int = 0, step: Any = None, *_: Any
        ) -> Any:
            output, iterates = original(z, x, history, num_iterations, step)
            if step is None or num_iterations == most[layer]:
                return output, iterates
            state, other = correct(layer, x, iterates, history)
            output = original(state, state, history)[0] if other is None else other
            return output, [*iterates[:-1], state]

        corrector.forward = forward

    for number, layer in enumerate(layers):
        wrap(number, layer.corrector)
    try:
        yield
    finally:
        for layer in layers:
            del layer.corrector.forward


def least_squares(columns: Sequence[Tensor], target: Tensor) -> list[float]:
    """Numbers whose combination of the columns, each (tokens, D), is nearest to the target."""
    stacked = torch.stack([column.flatten() for column in columns], 1).double()
    return torch.linalg.lstsq(stacked, target.flatten().double()[:, None]).solution[:, 0].tolist()


def fit(solved: Solved) -> dict[str, Correct]:
    """Fit the variants that need one full pass, by name."""
    table: dict[str, dict[tuple[int, int], Any]] = {name: {} for name in ("last", "channel", "two", "norm")}
    for t, (x, z, _) in enumerate(solved):
        for r in range(len(z) - 1):
            before, gap = z[r - 1] if r else x, z[-1] - z[r]
            step = z[r] - before
            table["last"][t, r] = least_squares([step], gap)[0]
            table["channel"][t, r] = (gap * step).sum(0) / (step * step).sum(0) if r else None
            if r > 1:
                table["two"][t, r] = least_squares([step, z[r - 1] - z[r - 2]], gap)
            centred = z[r] - z[r].mean(0)
            a = (centred * (z[-1] - z[-1].mean(0))).sum(0) / (centred * centred).sum(0)
            table["norm"][t, r] = (a, z[-1].mean(0) - a * z[r].mean(0))
    b = table["last"]

    def last_step(t: int, x: Tensor, z: list[Tensor], history: Any, at_zero: bool = False) -> Any:
        r = len(z) - 1
        if r == 0:
            return (z[0] + b[t, 0] * (z[0] - x), None) if at_zero else (z[0], None)
        return z[r] + b[t, r] * (z[r] - z[r - 1]), None

    def norm(t: int, x: Tensor, z: list[Tensor], history: Any) -> Any:
        a, c = table["norm"][t, 0]
        return (a * z[0] + c, None) if len(z) == 1 else last_step(t, x, z, history)

    def channel(t: int, x: Tensor, z: list[Tensor], history: Any) -> Any:
        r = len(z) - 1
        return (z[r] + table["channel"][t, r] * (z[r] - z[r - 1]), None) if r else (z[0], None)

    def two(t: int, x: Tensor, z: list[Tensor], history: Any) -> Any:
        if len(z) < 3:
            return last_step(t, x, z, history)
        b1, b2 = table["two"][t, len(z) - 1]
        return z[-1] + b1 * (z[-1] - z[-2]) + b2 * (z[-2] - z[-3]), None

    def anderson(t: int, x: Tensor, z: list[Tensor], history: Any) -> Any:
        if len(z) == 1:
            return z[0], None
        residuals = [z[-1] - z[-2], z[-2] - (z[-3] if len(z) > 2 else x)]
        change = residuals[0] - residuals[1]
        share = (residuals[0] * change).sum(-1, keepdim=True) / change.square().sum(-1, keepdim=True)
        return z[-1] - share.clamp(-2, 2) * (z[-1] - z[-2]), None

    return {
        "last": last_step,
        "input": lambda *given: last_step(*given, at_zero=True),
        "norm": norm,
        "channel": channel,
        "two": two,
        "anderson": anderson,
    }


def fit_weights(model: Any, solved: Solved, last_step: Correct) -> Correct:
    """Refit x_{t+1} as a combination of H_0, ..., H_{t-1}, z(r) and z(r-1); H_t is that of the last step."""
    weights: dict[tuple[int, int], list[float]] = {}
    for t, (_, z, history) in enumerate(solved):
        target = model.base_model.layers[t].output(z[-1], *history)
        for r in range(1, len(z) - 1):
            weights[t, r] = least_squares([*history, z[r], z[r - 1]], target)

    def correct(t: int, x: Tensor, z: list[Tensor], history: Any) -> Any:
        state, _ = last_step(t, x, z, history)
        if len(z) == 1:
            return state, None
        terms = zip(weights[t, len(z) - 1], [*history, z[-1], z[-2]], strict=True)
        return state, sum(c * each for c, each in terms)

    return correct


def fit_sequentially(
    model: Any, batches: Sequence[Any], solved: Solved, plan: Sequence[int]
) -> list[list[float]]:
    """Fit b layer after layer, each on iterates that the cut and extrapolated layers before it lead to."""
    found: list[list[float]] = []
    full = list(model.config.iterations)
    for t, r in enumerate(plan):
        b: list[float] = []
        if 0 < r < full[t]:
            model.set_num_iterations([*plan[: t + 1], *full[t + 1 :]], [*found, *[[]] * (len(plan) - t)])
            _, z, _ = solve_all(model, batches)[t]
            b = least_squares([z[r] - z[r - 1]], solved[t][1][-1] - z[r])
        found.append(b)
    model.reconfigure(**model.config.split_plan(full), extrapolation=None)
    return found


def measure(folder: str, options: Any) -> dict[tuple[str, str], float]:
    """Return the loss growth of each (plan, variant) of one teacher."""
    model = load_model(folder, device="cpu").eval()
    fit_on, held_out = (
        _batches(folder, options, *each)
        for each in (
            (options.data, "train", options.fit_tokens),
            (options.held_out, "validation", options.tokens),
        )
    )
    full = list(model.config.iterations)
    plans = {f"r = {r}": [min(r, most) for most in full] for r in range(max(full) - 1, -1, -1)}
    for extrapolate in (False, True):
        profile = measure_influence(
            folder,
            [options.data],
            metrics=["kl"],
            block_size=options.block_size,
            batch_size=options.batch_size,
            max_tokens=options.fit_tokens,
            extrapolate=extrapolate,
            device="cpu",
        )
        for cut in CUTS[:3]:
            name = f"{100 * cut:.0f} %" + (", by extrapolated stops" if extrapolate else "")
            plans[name] = plan_by_target(profile, Targets(overhead_cut=cut)).num_iterations
    print(folder, plans, flush=True)
    budgets, wanted = list(plans.values()), options.variant or VARIANTS
    loss, found = measure_truncations(model, held_out, budgets)
    results = {(name, "plain"): each["loss"] for name, each in zip(plans, found, strict=True)}
    results["teacher", "loss"] = loss
    if "steps" in wanted:
        coefficients = [profile.coefficients(plan) for plan in budgets]
        _, found = measure_truncations(model, held_out, budgets, extrapolations=coefficients)
        results |= {(name, "steps"): each["loss"] for name, each in zip(plans, found, strict=True)}
    if set(wanted) == {"steps"}:
        return results
    solved = solve_all(model, fit_on)
    variants = fit(solved)
    if model.config.history:
        variants["weights"] = fit_weights(model, solved, variants["last"])
    for variant in [name for name in variants if name in wanted]:
        with corrected(model, variants[variant]):
            _, found = measure_truncations(model, held_out, budgets)
        results |= {(name, variant): each["loss"] for name, each in zip(plans, found, strict=True)}
    if "sequential" not in wanted:
        return results
    chosen = {name: plan for name, plan in plans.items() if name == "r = 1" or name.startswith("55 %")}
    sequential = [fit_sequentially(model, fit_on, solved, plan) for plan in chosen.values()]
    _, found = measure_truncations(model, held_out, list(chosen.values()), extrapolations=sequential)
    return results | {(name, "sequential"): each["loss"] for name, each in zip(chosen, found, strict=True)}


@torch.no_grad()
def print_agreement(folder: str, options: Any) -> None:
    """Print how often plans, as drafts, have the teacher's most likely token, as they are and extrapolated."""
    model = load_model(folder, device="cpu").eval()
    given = {
        "block_size": options.block_size,
        "batch_size": options.batch_size,
        "max_tokens": options.fit_tokens,
    }
    profile = measure_influence(folder, [options.data], metrics=["cosine"], device="cpu", **given)
    batches = _batches(folder, options, options.held_out, "validation", options.tokens)
    wanted = [model(batch["input_ids"]).logits.argmax(-1) for batch in batches]
    for text in options.agreement:
        plan = list(map(int, text.split(",")))
        shares = []
        for coefficients in ([[] for _ in plan], profile.coefficients(plan)):
            model.set_num_iterations(plan, coefficients)
            found = [model(batch["input_ids"]).logits.argmax(-1) for batch in batches]
            same = [(a == b).float().flatten() for a, b in zip(found, wanted, strict=True)]
            shares.append(torch.cat(same).mean().item())
        print(f"{folder} {plan}: {shares[0]:.1%} as it is, {shares[1]:.1%} extrapolated", flush=True)


def _batches(folder: str, options: Any, data: str, split: str, num_tokens: int) -> list[Any]:
    settings = ProfileSettings(
        block_size=options.block_size,
        batch_size=options.batch_size,
        max_tokens=num_tokens,
        seed=1,
        dtype="float32",
    )
    sets = draw_calibration(folder, [data], settings, split=split)
    return [batch for _, batch in numbered_batches(sets, options.batch_size)]


def main() -> int:
    """Measure all teachers and print means and intervals."""
    parser = make_parser(__doc__, rounds=1, fit_tokens=8192, tokens=16384, block_size=128, batch_size=8)
    parser.add_argument("teachers", nargs="+", help="model folders")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: all")
    parser.add_argument(
        "--agreement", action="append", help="a plan, as 2,1,1: how often it drafts the teacher's token"
    )
    options = parser.parse_args()
    if options.agreement:
        for folder in options.teachers:
            print_agreement(folder, options)
        return 0
    found = [measure(folder, options) for folder in options.teachers]
    losses = [each.pop(("teacher", "loss")) for each in found]
    print("teachers", " ".join(f"{loss:.4f}" for loss in losses))
    for name, variant in found[0]:
        growth = estimate([each[name, variant] for each in found])
        line = f"{name:32}{variant:12}{growth.mean:+9.4f}{_interval(growth):20}"
        if variant != "plain":
            share = estimate([1 - each[name, variant] / each[name, "plain"] for each in found])
            line += f"{share.mean:8.1%}{_interval(share, '.0%'):20}"
        print(line, flush=True)
    return 0


def _interval(value: Any, form: str = ".4f") -> str:
    return "" if value.low is None else f" [{value.low:{form}}, {value.high:{form}}]"


if __name__ == "__main__":
    sys.exit(main())
