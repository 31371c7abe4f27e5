"""Plans by target: what trying every budget finds, and what can be reached where none can."""

import itertools
import math
import re
import time
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from iiad.errors import InputError
from iiad.planning import Bounds, Plan, Targets, make_plan, plan_by_target
from iiad.planning.choices import minimise
from tests.helpers import make_profile, make_table, profile_of, refused

SLACK = 1e-5
"""Of comparisons with trying all: ten times the search's own tolerance."""


def tenths(low, high):
    return st.integers(low, high).map(lambda n: n / 10)


@st.composite
def problems(draw, coarse):
    """A profile, a latency table or none, bounds and one to four targets.

    coarse: scores and seconds are tenths, full of ties, and the limits of both lie between tenths.
    """
    score, seconds = (tenths(-3, 3), tenths(0, 3)) if coarse else (st.floats(-1, 1), st.floats(0, 1))
    scores = draw(st.lists(st.lists(score, max_size=3), min_size=1, max_size=4).filter(any))
    profile = profile_of(scores)
    rows = [draw(st.lists(seconds, min_size=len(layer) + 1, max_size=len(layer) + 1)) for layer in scores]
    table = make_table(profile.model, rows, draw(seconds)) if draw(st.booleans()) else None
    largest = max(map(len, scores))
    least, most = sorted(draw(st.lists(st.integers(0, largest), min_size=2, max_size=2)))
    pins = {t: draw(st.integers(0, len(layer))) for t, layer in enumerate(scores, 1) if draw(st.booleans())}
    bounds = draw(st.sampled_from([Bounds(), Bounds(least), Bounds(None, most), Bounds(least, most, pins)]))
    share = st.one_of(st.floats(0, 1), st.sampled_from([0.1, 0.25, 0.5, 0.75]))
    values = {
        "overhead_cut": share,
        "compute_cut": share,
        "max_evaluations": st.integers(1, 20),
        "max_cache_bytes": st.integers(1, 2000),
        "max_score": tenths(-3, 12).map(lambda loss: loss + 0.05) if coarse else st.floats(-1, 3),
    }
    if table is not None:
        values["max_latency_ms"] = st.integers(0, 20).map(lambda n: 100.0 * n + 50)
        values |= {} if coarse else {"speedup": st.floats(0.3, 3)}
    names = draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=4, unique=True))
    return profile, table, bounds, Targets(**{name: draw(values[name]) for name in names})


def lost(profile, budget):
    return math.fsum(s for layer, r in zip(profile.scores["kl"], budget, strict=True) for s in layer[r:])


def reaches(profile, table, targets, budget, slack):
    """Check a budget by the numbers that a user sees, with so much slack on loss and seconds."""
    plan = Plan.explicit(budget, profile.model)
    _, cost = plan.costs()
    seconds = table.decode.seconds(budget) if table else 0.0
    whole = table.decode.seconds(profile.model.num_iterations) if table else 0.0
    checks = {
        "overhead_cut": lambda share: plan.overhead_cut >= share,
        "compute_cut": lambda share: plan.compute_cut >= share,
        "max_evaluations": lambda n: cost.num_evaluations <= n,
        "max_cache_bytes": lambda n: cost.cache_bytes_per_token <= n,
        "max_latency_ms": lambda ms: seconds <= ms / 1000 + slack,
        "speedup": lambda factor: seconds <= whole / factor + slack,
        "max_score": lambda loss: lost(profile, budget) <= loss + slack,
    }
    return all(checks[name](value) for name, value in targets.given.items())


def rank(profile, table, targets, budget):
    """Numbers to be least, the first first."""
    loss, seconds = lost(profile, budget), table.decode.seconds(budget) if table else 0.0
    if targets.max_score is None:
        return loss, sum(budget), seconds if targets.limits_latency else 0.0
    return (seconds, sum(budget), loss) if table else (sum(budget), loss)


@pytest.mark.parametrize("coarse", [True, False])
def test_the_plan_is_as_good_as_the_best_of_all_budgets(coarse):
    @settings(max_examples=40)
    @given(problems(coarse))
    def check(problem):
        profile, table, bounds, targets = problem
        slack = 0 if coarse else SLACK
        choices = [range(least, most + 1) for least, most in bounds.limits(profile.model)]
        sure = [b for b in itertools.product(*choices) if reaches(profile, table, targets, b, -slack)]
        try:
            plan = plan_by_target(profile, targets, bounds=bounds, latency=table)
        except InputError as error:
            [name] = re.findall(r"^(\w+): expected at (?:least|most) .*, got \S+$", str(error))
            assert name in targets.given
            assert not sure
            return
        budget = plan.num_iterations
        assert reaches(profile, table, targets, budget, slack)
        assert all(r in choice for r, choice in zip(budget, choices, strict=True))
        assert plan.predicted_loss == lost(profile, budget)
        found = rank(profile, table, targets, budget)
        best = min((rank(profile, table, targets, other) for other in sure), default=found)
        if coarse:
            assert found == pytest.approx(best, abs=1e-9)
        else:
            assert found[0] <= best[0] + SLACK

    check()


IMPOSSIBLE = {
    "overhead_cut": 1.0,
    "compute_cut": 1.0,
    "max_evaluations": 1,
    "max_latency_ms": 1e-9,
    "speedup": 1e9,
    "max_score": -100.0,
}


@settings(max_examples=25)
@given(problems(coarse=False), st.sampled_from(sorted(IMPOSSIBLE)))
def test_what_a_refusal_says_can_be_reached_is_reached(problem, name):
    profile, table, bounds, targets = problem
    assume(table is not None)
    asked = {**targets.given, name: IMPOSSIBLE[name]}
    refused = []
    for _ in range(len(asked) + 1):  # each refusal may be followed by another target's
        try:
            plan = plan_by_target(profile, Targets(**asked), bounds=bounds, latency=table)
        except InputError as error:
            found, value = re.match(r"(\w+): expected at \w+ (-?\d[\d.e+-]*)", str(error)).groups()
            assume(float(value) > 0 or found == "max_score")  # a table of zeros has no latency to ask for
            asked[found] = type(asked[found])(value)
            refused.append(found)
        else:
            assert reaches(profile, table, plan.targets, plan.num_iterations, SLACK)
            break
    assert len(set(refused)) == len(refused)


@settings(max_examples=25)
@given(st.data())
def test_the_solver_takes_its_objectives_in_turn_and_keeps_the_limits(data):
    pair = st.tuples(st.integers(-3, 3), st.integers(0, 3))
    layers = data.draw(st.lists(st.lists(pair, min_size=1, max_size=4), min_size=1, max_size=5))
    costs, weights = ([[entry[part] for entry in layer] for layer in layers] for part in (0, 1))
    steps = [list(range(len(layer))) for layer in layers]
    most = data.draw(st.integers(sum(map(min, weights)), 15))

    def total(rows, chosen):
        return sum(layer[j] for layer, j in zip(rows, chosen, strict=True))

    possible = [c for c in itertools.product(*steps) if total(weights, c) <= most]
    chosen = minimise([costs, steps, weights], [(weights, most)])
    assert total(weights, chosen) <= most
    ranks = [(total(costs, c), sum(c), total(weights, c)) for c in possible]
    assert (total(costs, chosen), sum(chosen), total(weights, chosen)) == min(ranks)


@pytest.mark.parametrize("name", ["overhead_cut", "compute_cut"])
@pytest.mark.parametrize(("num_layers", "cut"), [(10, 0.1), (10, 0.3), (12, 0.55), (3, 0.7), (20, 0.15)])
def test_a_share_that_a_float_cannot_hold_still_means_itself(name, num_layers, cut):
    profile = make_profile(num_iterations=(3,) * num_layers)
    plan = plan_by_target(profile, Targets(**{name: cut}))
    whole = 3 * num_layers if name == "overhead_cut" else 4 * num_layers
    dropped = 3 * num_layers - sum(plan.num_iterations)
    assert dropped == math.ceil(Fraction(str(cut)) * whole)
    assert getattr(plan, name) >= cut


@pytest.mark.parametrize(
    ("scores", "targets", "wanted"),
    [
        # A threshold keeps the 0.5 behind the 0.01; dropping both gives room for nothing better than the two 0.3.
        ([[0.01, 0.5], [0.3, 0.3]], Targets(max_evaluations=4), [0, 2]),
        ([[0.01, 0.5], [0.3, 0.3]], Targets(overhead_cut=0.75), [0, 1]),
        # An iteration that harms is dropped where no target asks for it.
        ([[0.5, -0.1], [-0.2, 0.1]], Targets(overhead_cut=0), [1, 0]),
        # A limit on the loss asks for the cheapest plan.
        ([[0.4, 0.2], [0.3, 0.1]], Targets(max_score=0.0), [2, 2]),
        ([[0.4, 0.2], [0.3, 0.1]], Targets(max_score=0.31), [1, 1]),
        ([[0.4, 0.2], [0.3, 0.1]], Targets(max_score=0.45), [1, 1]),
        ([[0.4, 0.2], [0.3, 0.1]], Targets(max_score=0.61), [1, 0]),
    ],
)
def test_the_best_plan_may_be_one_that_no_threshold_gives(scores, targets, wanted):
    plan = plan_by_target(profile_of(scores), targets)
    assert plan.num_iterations == wanted
    assert plan.latency_fingerprint is None


def test_the_cheapest_plan_by_the_clock_may_be_another_of_as_many_evaluations():
    profile = profile_of([[0.2, 0.2], [0.2, 0.2]])
    table = make_table(profile.model, [[0.001, 0.002, 0.003], [0.001, 0.004, 0.007]])
    plan = plan_by_target(profile, Targets(max_score=0.4), latency=table)
    assert plan.num_iterations == [2, 0]
    assert plan.latency_fingerprint == table.fingerprint


def test_prefill_and_decode_are_limits_of_their_own():
    profile = profile_of([[0.5, 0.1], [0.9, 0.3]])
    table = make_table(profile.model)  # 6 evaluations: 7 ms of decoding, 61 ms of prefill
    plans = {
        phase: plan_by_target(profile, Targets(max_latency_ms=50, phase=phase), latency=table)
        for phase in ("decode", "prefill")
    }
    assert plans["decode"].num_iterations == [2, 2]
    assert plans["prefill"].num_iterations == [1, 1]
    assert "ms of prefill" in plans["prefill"].explanation
    assert plan_by_target(profile, Targets(speedup=1.15), latency=table).num_iterations == [1, 2]


TABLE = ", by the table's seconds of decode"


@pytest.mark.parametrize(
    ("fields", "bounds", "message"),
    [
        ({"max_evaluations": 1}, Bounds(), "max_evaluations: expected at least 2, got 1"),
        ({"max_evaluations": 2}, Bounds(1), "max_evaluations: expected at least 4 within the bounds, got 2"),
        (
            {"overhead_cut": 0.9},
            Bounds(pins={1: 2}),
            "overhead_cut: expected at most 0.5 within the bounds, got",
        ),
        ({"compute_cut": 0.9}, Bounds(), "compute_cut: expected at most 0.6666, got 0.9"),
        ({"max_cache_bytes": 150}, Bounds(), "max_cache_bytes: expected at least 200, got 150"),
        ({"max_latency_ms": 2.5}, Bounds(), f"max_latency_ms: expected at least 3.0{TABLE}, got 2.5"),
        ({"speedup": 4.0}, Bounds(), f"speedup: expected at most 2.333{TABLE}, got 4.0"),
        ({"max_score": -0.5}, Bounds(), "max_score: expected at least 0.0 nats per token, got -0.5"),
        (
            {"max_score": 0.1, "overhead_cut": 0.5},
            Bounds(),
            "least 0.4 nats per token within the other targets, got",
        ),
        (
            {"max_score": 0.1, "speedup": 1.5},
            Bounds(max_iterations=1),
            "max_score: expected at least 0.9 nats per token within the bounds and the other targets, got 0.1",
        ),
    ],
)
@pytest.mark.parametrize("timed", [True, False])
def test_targets_that_cannot_be_reached_are_refused_with_what_can(fields, bounds, message, timed):
    profile = profile_of([[0.5, 0.1], [0.9, 0.3]])
    table = make_table(profile.model) if timed or "ms" in message or "speedup" in fields else None
    with refused(message):
        plan_by_target(profile, Targets(**fields), bounds=bounds, latency=table)


def test_a_latency_target_needs_a_table_of_the_same_teacher():
    profile = profile_of([[0.5, 0.1]])
    for fields in ({"speedup": 1.5}, {"max_latency_ms": 3.0}):
        with refused(*fields, ": expected a latency table with it"):
            plan_by_target(profile, Targets(**fields))
    other = make_table(profile.model.model_copy(update={"fingerprint": "c" * 64}))
    with refused("latency: expected a table of teacher"):
        plan_by_target(profile, Targets(speedup=1.1), latency=other)


def test_exactly_one_of_threshold_and_targets_is_wanted():
    profile = make_profile()
    cut = Targets(overhead_cut=0.5)
    for arguments, words in (
        ({}, "targets: expected one of --threshold, --overhead-cut, --compute-cut"),
        ({"targets": Targets()}, "--tolerance-for, got none; --curve"),
        (
            {"threshold": 0.1, "targets": Targets(0.5, speedup=2.0)},
            "targets, got it and overhead_cut, speedup",
        ),
        ({"targets": cut, "normalize": "layer"}, "normalize: expected a threshold to go with it, got layer"),
        ({"targets": cut, "metric": "loss"}, "got 'loss'"),
    ):
        with refused(words):
            make_plan(profile, **arguments)
    with refused("targets: expected at least one, got none"):
        plan_by_target(profile, Targets())
    assert make_plan(profile, 0.1).origin == "threshold"
    assert make_plan(profile, targets=cut).origin == "target"


def test_a_target_plan_says_how_it_came_about():
    profile = make_profile()
    plan = plan_by_target(profile, Targets(overhead_cut=0.55, max_evaluations=5), bounds=Bounds(pins={3: 1}))
    assert plan.explanation == (
        "of all plans with an overhead cut of at least 55% and at most 5 evaluations, within bounds: layer 3 at 1, "
        "the one of least predicted loss by kl"
    )
    plan = plan_by_target(profile, Targets(max_score=0.01), latency=make_table(profile.model))
    assert plan.explanation == (
        "of all plans with a predicted loss of at most 0.01 by kl, the one of the least predicted seconds of decode"
    )
    assert "the fewest evaluations" in plan_by_target(profile, Targets(max_score=0.01)).explanation


def test_forty_eight_layers_under_a_limit_of_time_take_no_time():
    rows = [[0.001 * (1 + r) * (1 + 0.02 * math.sin(7 * t + 3 * r)) for r in range(4)] for t in range(48)]
    scores = [
        [0.01 / (1 + t % 7) / 3**i * (1 + 0.3 * math.cos(5 * t + i)) for i in range(3)] for t in range(48)
    ]
    profile = profile_of(scores)
    started = time.process_time()
    targets, table = Targets(speedup=1.8, overhead_cut=0.5), make_table(profile.model, rows)
    plan = plan_by_target(profile, targets, latency=table)
    assert plan.overhead_cut >= 0.5
    assert time.process_time() - started < 2
