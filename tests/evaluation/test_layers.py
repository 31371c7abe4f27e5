"""Layers are timed, but no speed is asserted: turns, counts and contexts are, and sums by a clock made for it."""

import copy

import pytest
import torch
import typer
from typer.testing import CliRunner

from cli.bench import bench
from iiad import InputError
from iiad.evaluation import layer_latency as room
from iiad.evaluation import machine, timing
from iiad.evaluation.layer_latency import choose_check_plans, measure_latency, time_layers
from iiad.evaluation.machine import device_name
from iiad.evaluation.speed import bench_models
from iiad.models.layers import IterativeLayer
from iiad.planning import Plan
from iiad.planning.latency import LatencyTable, PhaseLatency
from iiad.reporting.latency_tables import latency_table
from tests.helpers import BUDGET, make_iiet, make_pcformer, printed

QUICK = {"prompt_tokens": 9, "new_tokens": 2, "repeats": 1, "device": "cpu"}


class Clock:
    """Stands still but for the seconds that it is told."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self, device):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock by which one evaluation of layer t takes t seconds a token, and a call 5 seconds beside them."""
    clock = Clock()
    evaluate, call = IterativeLayer.evaluate, room._call

    def slow_evaluate(layer, slot, point, base, **kwargs):
        # The corrector of layer t sees t states and its own; a plain one has no such weights, and counts as 1.
        depth = getattr(layer.corrector, "update_weights", torch.zeros(2)).numel() - 1
        clock.seconds += depth * point.shape[1]
        return evaluate(layer, slot, point, base, **kwargs)

    def slow_call(*arguments):
        clock.seconds += 5
        return call(*arguments)

    monkeypatch.setattr(room, "now", clock)
    monkeypatch.setattr(timing, "now", clock)
    monkeypatch.setattr(IterativeLayer, "evaluate", slow_evaluate)
    monkeypatch.setattr(room, "_call", slow_call)
    return clock


MODELS = {
    "iiet": lambda: make_iiet(num_iterations=[3, 0, 2]),
    "plain": lambda: make_iiet(num_iterations=[1, 2, 0], history=False),
    "pcformer": make_pcformer,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_exact_where_time_is_the_sum_of_evaluations(name, clock, tokens):
    model = MODELS[name]()
    most, start = model.config.iterations, model.config.num_start_evaluations
    phases = time_layers(model, tokens, choose_check_plans(most), 6, 2)
    for phase, num_tokens in (("decode", 1), ("prefill", 17)):
        assert phases[phase].fixed_seconds == 5
        assert phases[phase].layers == [
            [num_tokens * (1 if name == "plain" else t) * (start + i) for i in range(r + 1)]
            for t, r in enumerate(most, 1)
        ]
        assert [check.num_iterations for check in phases[phase].checks] == choose_check_plans(most)
        assert phases[phase].largest_error == 0


def test_time_that_is_no_sum_over_layers_shows_as_an_error(clock, tokens, monkeypatch):
    model, call = make_iiet(num_iterations=1), room._call

    def call_with_interest(model, *arguments):
        clock.seconds += 6 * (model.config.iterations == [0, 1, 0])
        return call(model, *arguments)

    monkeypatch.setattr(room, "_call", call_with_interest)
    decode = time_layers(model, tokens, [[1, 1, 1], [0, 1, 0]], 3, 1)["decode"]
    assert [check.error for check in decode.checks] == [0, 13 / 19 - 1]


@pytest.fixture
def turns(monkeypatch):
    """What is run in turn, of made-up length: (plan, tokens, watched, calls)."""
    turns = []

    def record(model, input_ids, cache, watch, num_calls):
        turns.append((list(model.config.iterations), input_ids.shape[1], watch, num_calls))
        layers = (num_calls / 4,) * 3 if watch else ()
        return room._CallTime(num_calls * 1.0, layers)

    monkeypatch.setattr(room, "_time_calls", record)
    return turns


def test_plans_take_turns_in_every_round_and_phase_in_ever_another_order(turns, tokens):
    model = make_iiet(num_iterations=[2, 0, 1])
    time_layers(model, tokens, [[1, 0, 0], [2, 0, 1]], 6, 2)
    watched = [([0, 0, 0], True), ([1, 0, 1], True), ([2, 0, 1], True)]
    everyone = [*watched, ([1, 0, 0], False), ([2, 0, 1], False)]
    passes = [turns[first : first + 5] for first in range(0, len(turns), 5)]
    for number_in_round, (num_tokens, num_calls) in enumerate([(17, 1), (1, 4), (1, 2)]):
        for one in passes[number_in_round::3]:
            assert sorted(one) == sorted((plan, num_tokens, watch, num_calls) for plan, watch in everyone)
    assert len(passes) == 3 * 3  # of two rounds and one that warms up
    assert len({tuple(str(plan) + str(watch) for plan, _, watch, _ in one) for one in passes}) > 4


def test_rounds_count_alike_however_fast_the_machine_is_and_the_first_does_not(tokens, monkeypatch):
    speeds, calls = iter([100, 1, 8, 2]), []

    def fake(model, input_ids, cache, watch, num_calls):
        if len(calls) % 6 == 0:  # two watched plans and a check, each with a prefill and a step
            fake.speed = next(speeds)
        calls.append(watch)
        r = sum(model.config.iterations)
        whole = fake.speed * (1 + 3 * (1 + r / 3))
        return room._CallTime(whole, (fake.speed * (1 + r / 3),) * 3 if watch else ())

    monkeypatch.setattr(room, "_time_calls", fake)
    phase = time_layers(make_iiet(num_iterations=1), tokens, [[1, 0, 0]], 1, 3)["prefill"]
    assert (phase.fixed_seconds, phase.layers) == (2, [[2, 4]] * 3)  # of the median round, speed 2
    assert phase.checks[0].measured_seconds == 10
    assert phase.checks[0].error == pytest.approx(0)


def test_what_a_clock_cannot_tell_from_nothing_is_nothing(tokens, monkeypatch):
    times = room._CallTime(1.0, (0.4, 0.4, 0.2 + 1e-12))
    monkeypatch.setattr(room, "_time_calls", lambda *_: times)
    assert time_layers(make_iiet(num_iterations=1), tokens, [[0, 0, 0]], 1, 1)["decode"].fixed_seconds == 0


def test_every_call_finds_the_context_and_no_more_and_fills_its_own_slots(variant, tokens, monkeypatch):
    seen, call = [], room._call

    def watch_call(model, input_ids, cache):
        before = [id(slot.keys) for slot in cache.layers]
        token = call(model, input_ids, cache)
        written = [slot.keys for slot in cache.layers if id(slot.keys) not in before]
        assert len(written) == model.config.num_hidden_layers
        seen.append((input_ids.shape[1], {keys.shape[2] for keys in written}))
        return token

    monkeypatch.setattr(room, "_call", watch_call)
    time_layers(variant, tokens, [variant.config.iterations], 5, 1)
    num_turns = 2 * (max(variant.config.iterations) + 2)
    assert seen.count((17, {17})) == 1 + num_turns
    assert seen.count((1, {18})) == 5 * num_turns
    assert len(seen) == 1 + 6 * num_turns


def test_the_model_is_left_as_it_was(variant, tokens):
    before, plan = copy.deepcopy(variant.state_dict()), list(variant.config.iterations)
    phases = time_layers(variant, tokens, [[0] * len(plan)], 2, 1)
    assert [len(layer) for layer in phases["decode"].layers] == [r + 1 for r in plan]
    assert variant.config.iterations == plan
    assert all(torch.equal(tensor, before[name]) for name, tensor in variant.state_dict().items())
    assert not any(module._forward_pre_hooks for module in variant.modules())


def test_the_model_is_left_as_it_was_when_a_run_fails(tokens, monkeypatch):
    model = make_iiet(num_iterations=[1, 0, 2])
    monkeypatch.setattr(model.lm_head, "forward", None)
    with pytest.raises(TypeError):
        time_layers(model, tokens, [[0, 0, 0]], 2, 1)
    with pytest.raises(TypeError):
        room._time_calls(model, tokens, room.DynamicCache(config=model.config), True, 1)
    assert model.config.iterations == [1, 0, 2]
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("most", "plans"),
    [
        ([3] * 5, [[3] * 5, [1] * 5, [0] * 5, [0, 1, 2, 3, 0]]),
        ([1, 1, 1], [[1, 1, 1], [0, 0, 0], [0, 1, 0]]),
        ([2, 0, 1], [[2, 0, 1], [1, 0, 0], [0, 0, 0]]),
        ([2], [[2], [1], [0]]),
    ],
)
def test_checks_are_the_whole_half_of_it_none_and_a_mixture_each_once(most, plans):
    assert choose_check_plans(most) == plans


@pytest.fixture(scope="module")
def table(folders):
    return measure_latency(folders.teacher, plan=folders.plan, batch_size=2, **QUICK)


def test_a_folder_makes_a_table_bound_to_it(folders, table):
    assert table.model == Plan.load(folders.plan).teacher
    assert [len(layer) for layer in table.prefill.layers] == [4, 4, 4]
    settings = table.settings
    assert (settings.batch_size, settings.context, settings.repeats) == (2, 9, 1)
    assert (settings.device, settings.dtype, settings.torch_version) == ("cpu", "float32", torch.__version__)
    assert settings.device_name == device_name("cpu") != ""


def test_a_plan_that_is_given_is_checked_too_and_once(folders, table):
    usual = choose_check_plans([3, 3, 3])
    assert [check.num_iterations for check in table.decode.checks] == [*usual, BUDGET]
    again = measure_latency(folders.teacher, plan=Plan.explicit(usual[1], table.model), **QUICK)
    assert [check.num_iterations for check in again.decode.checks] == usual


def test_a_student_is_measured_up_to_its_own_plan_and_pcformer_too(folders, tmp_path):
    table = measure_latency(folders.student, dtype="bfloat16", **QUICK)
    assert [len(layer) for layer in table.decode.layers] == [r + 1 for r in BUDGET]
    assert table.settings.dtype == "bfloat16"
    make_pcformer().save_pretrained(tmp_path)
    table = measure_latency(tmp_path, **QUICK)
    assert (table.model.model_type, [len(layer) for layer in table.decode.layers]) == ("pcformer", [2, 2, 2])


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            "llama",
            {},
            "found type 'llama' and no iterations; accepted for the time of each layer: an iiet or",
        ),
        ("teacher", {"batch_size": 0}, "batch_size: found 0; accepted: at least 1"),
        (
            "teacher",
            {"prompt_tokens": 128},
            "prompt_tokens: found 128; accepted: at most 127, which leaves one",
        ),
        ("teacher", {"new_tokens": 0}, "new_tokens: found 0"),
        ("teacher", {"repeats": 0}, "repeats: found 0"),
        ("teacher", {"seed": -1}, "seed: found -1"),
        ("teacher", {"dtype": "int8"}, "dtype: expected float32 or bfloat16, got 'int8'"),
        ("teacher", {"plan": "nowhere.json"}, "nowhere.json: no such file"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(
    folders, monkeypatch, model, options, words
):
    monkeypatch.setattr(room, "load_identified", None)
    with pytest.raises(InputError) as caught:
        measure_latency(getattr(folders, model), **{**QUICK, **options})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_for_another_teacher_is_refused(folders):
    with pytest.raises(InputError, match="plan: expected one for teacher"):
        measure_latency(folders.student, plan=folders.plan, **QUICK)


def test_a_batch_that_cannot_be_had_is_one_line_with_the_sizes_and_what_helps(folders):
    with pytest.raises(InputError) as caught:
        measure_latency(folders.teacher, **{**QUICK, "batch_size": 1 << 47})
    line = str(caught.value)
    assert line.startswith("teacher on cpu: out of memory, asked for ")
    assert f"; batch {1 << 47} x 10 tokens, 12 evaluations, " in line
    assert line.endswith("what helps: a smaller batch, a shorter context or bfloat16")


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(bench)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_the_table_and_writes_it(folders, tmp_path, command):
    output = tmp_path / "latency.json"
    quick = ("--prompt-tokens", 8, "--new-tokens", 2, "--repeats", 1, "--device", "cpu", "--output", output)
    done = command(folders.teacher, "--layers", "--plan", folders.plan, *quick)
    assert done.exit_code == 0, done.output
    for word in (
        "r = 3",
        "fixed",
        "layer 3",
        "3 everywhere",
        "0 2 1",
        "The largest error of the table, over 5 plans",
    ):
        assert word in done.stdout
    assert LatencyTable.load(output).settings.context == 8
    again = command(folders.teacher, "--layers", *quick)
    assert "exists already" in str(again.exception)
    two = command(folders.teacher, folders.student, "--layers")
    assert str(two.exception) == "models: found 2; accepted with --layers: one"


@pytest.mark.parametrize(("measured", "advice"), [(1.01, False), (0.9, True)])
def test_the_report_shows_every_time_and_every_error(table, measured, advice):
    model = table.model.model_copy(update={"num_iterations": [1, 0, 1]})
    decode = PhaseLatency.of(0.0005, [[0.001, 0.00275], [0.003], [0.004, 0.0051234]], [([1, 0, 0], 0.01025)])
    prefill = PhaseLatency.of(0.25, [[0.25, 0.5], [0.25], [0.125, 0.5]], [([1, 0, 0], 1.125 * measured)])
    fields = {"model": model, "settings": table.settings, "decode": decode, "prefill": prefill}
    lines = printed(latency_table(LatencyTable(**fields), 110)).splitlines()
    rows = [line.split() for line in lines]
    for row in (
        ["fixed", "0.500"],
        ["layer", "1", "1.000", "2.750"],
        ["layer", "2", "3.000"],
        ["layer", "3", "4.000", "5.123"],
        ["layer", "2", "250.0"],
    ):
        assert row in rows
    error = "-1.0" if measured > 1 else "+11.1"
    check = next(line for line in lines if line.startswith("1 0 0"))
    assert check.split()[3:] == f"10.25 10.25 +0.0 % 1,125.0 {1125 * measured:,.1f} {error} %".split()
    text = " ".join(" ".join(lines).split())
    assert f"over 1 plan: 0.0 % of a decoding step, {error.strip('+-')} % of a prefill." in text
    assert ("More rounds (--repeats)" in text) == advice


def test_a_cpu_goes_by_the_name_that_the_kernel_gives_it(tmp_path, monkeypatch, folders):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPU_INFO", info)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert device_name("cpu") == "riscv64"
    info.write_text(
        "processor\t: 0\nmodel\t\t: 2\nmodel name\t: Some: CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: B\n"
    )
    assert device_name("cpu") == "Some: CPU @ 2 GHz"
    benched = bench_models([folders.student], **QUICK)
    assert benched.settings.device_name == "Some: CPU @ 2 GHz"


@pytest.mark.gpu
def test_on_a_gpu_the_layers_and_the_rest_make_up_the_whole():
    model = make_iiet(num_iterations=2).to("cuda")
    tokens = torch.randint(3, 97, (2, 17), device="cuda")
    phases = time_layers(model, tokens, choose_check_plans([2, 2, 2]), 8, 3)
    for phase in phases.values():
        assert phase.fixed_seconds > 0
        assert all(seconds > 0 for layer in phase.layers for seconds in layer)
