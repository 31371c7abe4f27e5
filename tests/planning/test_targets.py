"""Plans by target: the solver finds what trying every budget finds, and says what can be reached where none can."""

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
from iiad.planning.exact import minimise
from tests.helpers import make_profile, make_table

SCORE = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 0.1, 0.2, 0.3, -0.1, 1e-9]))  # some make ties
SECONDS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.2, 0.3]))
SHARE = st.one_of(st.floats(0, 1), st.sampled_from([0.1, 0.25, 0.5, 0.75]))


@st.composite
def problems(draw):
    """A profile, a latency table or none, bounds and one to four targets."""
    scores = draw(st.lists(st.lists(SCORE, max_size=3), min_size=1, max_size=4).filter(any))
    profile = profile_of(scores)
    rows = [draw(st.lists(SECONDS, min_size=len(layer) + 1, max_size=len(layer) + 1)) for layer in scores]
    table = make_table(profile.model, rows, draw(SECONDS)) if draw(st.booleans()) else None
    largest = max(map(len, scores))
    least, most = sorted(draw(st.lists(st.integers(0, largest), min_size=2, max_size=2)))
    pins = {
        t: draw(st.integers(0, len(layer)))
        for t, layer in enumerate(scores, 1)
        if draw(st.integers(0, 3)) == 0
    }
    bounds = draw(
        st.sampled_from(
            [Bounds(), Bounds(least), Bounds(None, most), Bounds(least, most, pins), Bounds(pins=pins)]
        )
    )
    values = {
        "overhead_cut": SHARE,
        "compute_cut": SHARE,
        "max_evaluations": st.integers(1, 20),
        "max_cache_bytes": st.integers(1, 2000),
        "max_score": st.one_of(st.floats(-1, 3), st.sampled_from([0.0, 0.3, 0.6])),
    }
    if table is not None:
        values |= {"max_latency_ms": st.floats(1, 5000), "speedup": st.floats(0.3, 3)}
    names = draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=4, unique=True))
    targets = Targets(**{name: draw(values[name]) for name in names})
    return profile, table, bounds, targets


def profile_of(scores):
    return make_profile({"kl": scores}, tuple(len(layer) for layer in scores))


def lost(profile, budget):
    """The dropped scores of a budget, summed without rounding."""
    return sum(
        (Fraction(s) for layer, r in zip(profile.scores["kl"], budget, strict=True) for s in layer[r:]),
        Fraction(0),
    )


def spent(table, budget):
    return sum(
        (Fraction(layer[r]) for layer, r in zip(table.decode.layers, budget, strict=True)), Fraction(0)
    )


def reaches(profile, table, targets, budget):
    """Whether a budget reaches targets, by the numbers that a user sees."""
    plan = Plan.explicit(budget, profile.model)
    seconds = table.decode.seconds(budget) if table else None
    whole = table.decode.seconds(profile.model.num_iterations) if table else None
    checks = {
        "overhead_cut": lambda share: plan.overhead_cut >= share,
        "compute_cut": lambda share: plan.compute_cut >= share,
        "max_evaluations": lambda n: plan.num_evaluations <= n,
        "max_cache_bytes": lambda n: plan.cache_bytes_per_token <= n,
        "max_latency_ms": lambda ms: 1000 * seconds <= ms,
        "speedup": lambda factor: seconds == 0 or whole / seconds >= factor,
        "max_score": lambda loss: float(lost(profile, budget)) <= loss,
    }
    return all(checks[name](value) for name, value in targets.given.items())


def by_trying_all(profile, table, bounds, targets):
    """The best budget, or None, with no cleverness at all."""
    choices = [range(least, most + 1) for least, most in bounds.limits(profile.model)]
    possible = [budget for budget in itertools.product(*choices) if reaches(profile, table, targets, budget)]

    def rank(budget):
        if targets.max_score is None:
            return (
                lost(profile, budget),
                sum(budget),
                spent(table, budget) if targets.limits_latency else 0,
                budget,
            )
        return spent(table, budget) if table else 0, sum(budget), lost(profile, budget), budget

    return min(possible, key=rank, default=None)


@settings(max_examples=300)
@given(problems())
def test_the_plan_is_the_one_that_trying_every_budget_finds(problem):
    profile, table, bounds, targets = problem
    wanted = by_trying_all(profile, table, bounds, targets)
    if wanted is None:
        with pytest.raises(InputError, match=r"^\w+: found .*; accepted: at (least|most) ") as caught:
            plan_by_target(profile, targets, bounds=bounds, latency=table)
        assert "\n" not in str(caught.value)
        assert str(caught.value).split(":")[0] in targets.given
    else:
        plan = plan_by_target(profile, targets, bounds=bounds, latency=table)
        assert tuple(plan.num_iterations) == wanted
        assert plan.predicted_loss == float(lost(profile, wanted))


IMPOSSIBLE = {
    "overhead_cut": 1.0,
    "compute_cut": 1.0,
    "max_evaluations": 1,
    "max_latency_ms": 1e-9,
    "speedup": 1e9,
    "max_score": -100.0,
}


@given(problems(), st.sampled_from(sorted(IMPOSSIBLE)))
def test_what_a_refusal_says_can_be_reached_is_reached(problem, name):
    profile, table, bounds, targets = problem
    assume(table is not None)
    asked = {**targets.given, name: IMPOSSIBLE[name]}
    refused = []
    for _ in range(len(asked) + 1):  # each refusal may be followed by another target's
        try:
            plan = plan_by_target(profile, Targets(**asked), bounds=bounds, latency=table)
        except InputError as error:
            found, value = re.match(r"(\w+): found .*; accepted: at \w+ (-?\d[\d.e+-]*)", str(error)).groups()
            assume(float(value) > 0 or found == "max_score")  # a table of zeros has no latency to ask for
            asked[found] = type(asked[found])(value)
            refused.append(found)
        else:
            assert reaches(profile, table, plan.targets, plan.num_iterations)
            break
    assert len(set(refused)) == len(refused)


@settings(max_examples=200)
@given(st.data())
def test_the_solver_agrees_with_trying_all_on_whole_numbers_full_of_ties(data):
    pair = st.tuples(st.integers(-3, 3), st.integers(0, 3))
    layers = data.draw(st.lists(st.lists(pair, min_size=1, max_size=4), min_size=1, max_size=5))
    most, heaviest = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 12))
    possible = []
    for steps in itertools.product(*(range(len(layer)) for layer in layers)):
        cost, weight = (
            sum(layer[j][part] for layer, j in zip(layers, steps, strict=True)) for part in (0, 1)
        )
        if sum(steps) <= most and weight <= heaviest:
            possible.append((cost, sum(steps), weight, steps))
    found = minimise(layers, most, heaviest)
    if not possible:
        assert found is None
    else:
        cost, _, weight, steps = min(possible)
        assert (found.cost, found.weight, found.steps) == (cost, weight, steps)


@pytest.mark.parametrize("name", ["overhead_cut", "compute_cut"])
@pytest.mark.parametrize(("num_layers", "cut"), [(10, 0.1), (10, 0.3), (12, 0.55), (3, 0.7), (20, 0.15)])
def test_a_share_that_a_float_cannot_hold_still_means_itself(name, num_layers, cut):
    profile = make_profile(num_iterations=(3,) * num_layers)
    plan = plan_by_target(profile, Targets(**{name: cut}))
    whole = 3 * num_layers if name == "overhead_cut" else 4 * num_layers
    dropped = 3 * num_layers - sum(plan.num_iterations)
    assert dropped == math.ceil(Fraction(str(cut)) * whole)
    assert getattr(plan, name) >= cut


def test_the_best_plan_need_not_be_one_that_a_threshold_gives():
    # A threshold keeps the 0.5 behind the 0.01; dropping both gives room for nothing better than the two 0.3.
    profile = profile_of([[0.01, 0.5], [0.3, 0.3]])
    assert plan_by_target(profile, Targets(max_evaluations=4)).num_iterations == [0, 2]
    assert plan_by_target(profile, Targets(overhead_cut=0.75)).num_iterations == [0, 1]


def test_an_iteration_that_harms_is_dropped_where_no_target_asks_for_it():
    profile = profile_of([[0.5, -0.1], [-0.2, 0.1]])
    plan = plan_by_target(profile, Targets(overhead_cut=0))
    assert plan.num_iterations == [1, 0]
    assert plan.predicted_loss == pytest.approx(-0.2)


def test_a_limit_on_the_loss_asks_for_the_cheapest_plan():
    profile = profile_of([[0.4, 0.2], [0.3, 0.1]])
    assert plan_by_target(profile, Targets(max_score=0.0)).num_iterations == [2, 2]
    assert plan_by_target(profile, Targets(max_score=0.31)).num_iterations == [1, 1]
    assert plan_by_target(profile, Targets(max_score=0.45)).num_iterations == [1, 1]
    assert plan_by_target(profile, Targets(max_score=0.61)).num_iterations == [1, 0]
    # Where the clock counts and layer 2 is the slow one, another plan of as many evaluations.
    profile = profile_of([[0.2, 0.2], [0.2, 0.2]])
    table = make_table(profile.model, [[0.001, 0.002, 0.003], [0.001, 0.004, 0.007]])
    plan = plan_by_target(profile, Targets(max_score=0.4), latency=table)
    assert plan.num_iterations == [2, 0]
    assert plan.latency_fingerprint == table.fingerprint
    assert plan_by_target(profile, Targets(max_score=0.4)).latency_fingerprint is None


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


REFUSED = [
    ({"overhead_cut": 1.5}, "overhead_cut: found 1.5; accepted: a share from 0 to 1"),
    ({"overhead_cut": -0.1}, "overhead_cut: found -0.1; accepted"),
    ({"compute_cut": float("nan")}, "compute_cut: found nan; accepted"),
    ({"max_evaluations": 0}, "max_evaluations: found 0; accepted: a whole number from 1"),
    ({"max_evaluations": 2.5}, "max_evaluations: found 2.5; accepted: a whole number"),
    ({"max_cache_bytes": -1}, "max_cache_bytes: found -1; accepted"),
    ({"max_latency_ms": 0.0}, "max_latency_ms: found 0.0; accepted: a number above 0"),
    ({"max_latency_ms": float("inf")}, "max_latency_ms: found inf; accepted"),
    ({"speedup": -1.0}, "speedup: found -1.0; accepted: a number above 0"),
    ({"max_score": float("nan")}, "max_score: found nan; accepted: a number"),
    ({"phase": "both"}, "phase: found 'both'; accepted: decode, prefill"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_a_target_out_of_range_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Targets(**fields)


@pytest.mark.parametrize(
    ("fields", "bounds", "message"),
    [
        ({"max_evaluations": 1}, Bounds(), "max_evaluations: found 1; accepted: at least 2$"),
        (
            {"max_evaluations": 2},
            Bounds(1),
            "max_evaluations: found 2; accepted: at least 4 within the bounds$",
        ),
        (
            {"overhead_cut": 0.9},
            Bounds(pins={1: 2}),
            "overhead_cut: found 0.9; accepted: at most 0.5 within the bo",
        ),
        ({"compute_cut": 0.9}, Bounds(), "compute_cut: found 0.9; accepted: at most 0.6666$"),
        ({"max_cache_bytes": 150}, Bounds(), "max_cache_bytes: found 150; accepted: at least 200$"),
        (
            {"max_latency_ms": 2.5},
            Bounds(),
            "max_latency_ms: found 2.5; accepted: at least 3.0, by the table's sec",
        ),
        (
            {"speedup": 4.0},
            Bounds(),
            "speedup: found 4.0; accepted: at most 2.333, by the table's seconds of decode$",
        ),
        ({"max_score": -0.5}, Bounds(), "max_score: found -0.5; accepted: at least 0.0 nats per token$"),
        (
            {"max_score": 0.1, "overhead_cut": 0.5},
            Bounds(),
            "max_score: found 0.1; accepted: at least 0.4 nats per token within the other targets$",
        ),
        (
            {"max_score": 0.1, "speedup": 1.5},
            Bounds(max_iterations=1),
            "max_score: .* at least 0.9 nats per token within the bounds and the other targets$",
        ),
    ],
)
def test_targets_that_cannot_be_reached_are_refused_with_what_can(fields, bounds, message):
    profile = profile_of([[0.5, 0.1], [0.9, 0.3]])
    with pytest.raises(InputError, match=message) as caught:
        plan_by_target(profile, Targets(**fields), bounds=bounds, latency=make_table(profile.model))
    assert "\n" not in str(caught.value)


def test_a_latency_target_needs_a_table_of_the_same_teacher():
    profile = profile_of([[0.5, 0.1]])
    for fields in ({"speedup": 1.5}, {"max_latency_ms": 3.0}):
        with pytest.raises(
            InputError, match=f"{next(iter(fields))}: found no latency table; accepted with one"
        ):
            plan_by_target(profile, Targets(**fields))
    other = make_table(profile.model.model_copy(update={"fingerprint": "c" * 64}))
    with pytest.raises(InputError, match="latency: was measured for model"):
        plan_by_target(profile, Targets(speedup=1.1), latency=other)


def test_exactly_one_of_threshold_and_targets_is_wanted():
    profile = make_profile()
    with pytest.raises(InputError, match=r"neither .*--threshold, --overhead-cut.*--max-score; --curve"):
        make_plan(profile)
    with pytest.raises(InputError, match="neither"):
        make_plan(profile, targets=Targets())
    with pytest.raises(InputError, match="threshold: found beside overhead_cut, speedup; accepted"):
        make_plan(profile, 0.1, Targets(overhead_cut=0.5, speedup=2.0))
    with pytest.raises(InputError, match="normalize: found beside targets"):
        make_plan(profile, targets=Targets(overhead_cut=0.5), normalize="layer")
    with pytest.raises(InputError, match="targets: found none"):
        plan_by_target(profile, Targets())
    with pytest.raises(InputError, match="metric: expected .*, got 'loss'"):
        make_plan(profile, targets=Targets(overhead_cut=0.5), metric="loss")
    assert make_plan(profile, 0.1).origin == "threshold"
    assert make_plan(profile, targets=Targets(overhead_cut=0.5)).origin == "target"


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
    started = time.perf_counter()
    plan = plan_by_target(
        profile, Targets(speedup=1.8, overhead_cut=0.5), latency=make_table(profile.model, rows)
    )
    assert plan.overhead_cut >= 0.5
    assert time.perf_counter() - started < 2
