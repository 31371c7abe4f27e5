"""Layers are timed, but no speed is asserted: turns, counts and contexts are, and sums by a clock made for it."""

import copy

import pytest
import torch

from iiad.evaluation import timing
from iiad.evaluation.layer_latency import choose_check_plans, measure_latency, time_layers
from iiad.evaluation.timing import device_name
from iiad.planning import Plan
from iiad.planning.latency import LatencyTable, PhaseLatency
from iiad.reporting.latency_tables import latency_table
from tests.helpers import BUDGET, make_iiet, make_pcformer, printed

QUICK = {"prompt_tokens": 9, "new_tokens": 2, "repeats": 1, "device": "cpu"}
MODELS = {
    "iiet": lambda: make_iiet(num_iterations=[3, 0, 2]),
    "plain": lambda: make_iiet(num_iterations=[1, 2, 0], history=False),
    "pcformer": make_pcformer,
}


class Clock:
    """Stands still but for what a model does: an evaluation of layer t takes t seconds a token, the rest of a call 5.

    calls: (plan, tokens, layers are timed) of each. length(): factor of the next call's seconds.
    """

    def __init__(self, model, length=lambda calls: 1):
        self.seconds, self.calls, self.factor = 0.0, [], 1.0

        def begin(model, args, kwargs):
            timed = bool(model.model.norm._forward_pre_hooks)
            self.calls.append((list(model.config.iterations), kwargs["input_ids"].shape[1], timed))
            self.factor = length(self.calls)
            self.tick(5 * self.factor)

        def evaluate(layer):
            def advance(module, args, output):
                self.tick(layer * output.shape[1] * self.factor)

            return advance

        model.register_forward_pre_hook(begin, with_kwargs=True)
        for number, layer in enumerate(model.model.layers, 1):
            layer.mlp.register_forward_hook(evaluate(number))

    def tick(self, seconds):
        self.seconds += seconds

    def __call__(self, device):
        return self.seconds


@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_exact_where_time_is_the_sum_of_evaluations(name, tokens):
    model = MODELS[name]()
    most, start = model.config.iterations, model.config.num_start_evaluations
    phases = time_layers(model, tokens, choose_check_plans(most), 5, 1, Clock(model))
    for phase, num_tokens in (("decode", 1), ("prefill", 17)):
        assert phases[phase].fixed_seconds == 5
        assert phases[phase].layers == [
            [num_tokens * t * (start + i) for i in range(r + 1)] for t, r in enumerate(most, 1)
        ]
        assert [check.num_iterations for check in phases[phase].checks] == choose_check_plans(most)
        assert phases[phase].largest_error == 0


def test_time_that_is_no_sum_over_layers_shows_as_an_error(tokens):
    model = make_iiet(num_iterations=1)
    clock = Clock(model, lambda calls: 1.5 if calls[-1][0] == [0, 1, 0] else 1)
    decode = time_layers(model, tokens, [[1, 1, 1], [0, 1, 0]], 1, 1, clock)["decode"]
    assert [check.error for check in decode.checks] == [0, pytest.approx(1 / 1.5 - 1)]


def test_plans_take_turns_in_every_round_and_phase_in_ever_another_order(tokens):
    model = make_iiet(num_iterations=[2, 0, 1])
    clock = Clock(model)
    time_layers(model, tokens, [[1, 0, 0], [2, 0, 1]], 6, 2, clock)
    levels = [([0, 0, 0], True), ([1, 0, 1], True), ([2, 0, 1], True)]
    everyone = sorted([*levels, ([1, 0, 0], False), ([2, 0, 1], False)])
    calls, orders = iter(clock.calls[1:]), set()  # the first fills the cache
    for _ in range(3):  # two rounds and one that warms up
        for num_tokens, num_calls in [(17, 1), (1, 4), (1, 2)]:
            turns = [[next(calls) for _ in range(num_calls)] for _ in everyone]
            assert all(turn == [turn[0]] * num_calls and turn[0][1] == num_tokens for turn in turns)
            assert sorted((plan, timed) for ((plan, _, timed), *_) in turns) == everyone
            orders.add(str(turns))
    assert next(calls, None) is None
    assert len(orders) > 4


def test_rounds_count_alike_however_fast_the_machine_is_and_the_first_does_not(tokens):
    model = make_iiet(num_iterations=1)
    # A round has six calls: of two timed plans and a check, each with a prefill and a step.
    clock = Clock(model, lambda calls: [100, 1, 8, 2][max(0, len(calls) - 2) // 6])
    decode = time_layers(model, tokens, [[1, 0, 0]], 1, 3, clock)["decode"]
    assert (decode.fixed_seconds, decode.layers) == (10, [[2, 4], [4, 8], [6, 12]])  # of the median round, 2
    assert decode.checks[0].measured_seconds == 24
    assert decode.checks[0].error == pytest.approx(0)


def test_a_fixed_part_that_clocks_put_below_nothing_is_nothing(tokens):
    model = make_iiet(num_iterations=1)
    clock, running = Clock(model, lambda calls: 0), []
    model.register_forward_pre_hook(lambda *_: running.append(1))
    model.register_forward_hook(lambda *_: running.clear())
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: clock.tick(1))
    # Inside a call, as a GPU's own, the clock is a little faster than outside.
    decode = time_layers(model, tokens, [[0, 0, 0]], 1, 1, lambda _: clock.seconds * (1.01 if running else 1))
    assert decode["decode"].fixed_seconds == 0


def test_every_call_finds_the_context_and_no_more_and_fills_its_own_slots(variant, tokens):
    seen, before = [], []

    def begin(model, args, kwargs):
        before[:] = [id(slot.keys) for slot in kwargs["past_key_values"].layers]

    def end(model, args, kwargs, output):
        written = [slot.keys for slot in kwargs["past_key_values"].layers if id(slot.keys) not in before]
        assert len(written) == model.config.num_hidden_layers
        seen.append((kwargs["input_ids"].shape[1], {keys.shape[2] for keys in written}))

    handles = [
        variant.register_forward_pre_hook(begin, with_kwargs=True),
        variant.register_forward_hook(end, with_kwargs=True),
    ]
    state, plan = copy.deepcopy(variant.state_dict()), list(variant.config.iterations)
    phases = time_layers(variant, tokens, [[0] * len(plan)], 3, 1)
    for handle in handles:
        handle.remove()
    num_turns = 2 * (max(plan) + 2)
    assert seen.count((17, {17})) == 1 + num_turns
    assert seen.count((1, {18})) == 3 * num_turns
    assert len(seen) == 1 + 4 * num_turns
    # And the model is left as it was.
    assert [len(layer) for layer in phases["decode"].layers] == [r + 1 for r in plan]
    assert variant.config.iterations == plan
    assert all(torch.equal(tensor, state[name]) for name, tensor in variant.state_dict().items())
    assert not any(module._forward_pre_hooks for module in variant.modules())


def test_the_model_is_left_as_it_was_when_a_run_fails(tokens):
    model, calls = make_iiet(num_iterations=[1, 0, 2]), []

    def fail_later(*_):
        calls.append(1)
        if len(calls) > 2:
            raise TypeError

    model.model.norm.register_forward_hook(fail_later)
    with pytest.raises(TypeError):
        time_layers(model, tokens, [[0, 0, 0]], 2, 1)
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


def test_a_folder_makes_a_table_bound_to_it_and_checks_the_plan_that_is_given(folders, table):
    assert table.model == Plan.load(folders.plan).teacher
    assert [len(layer) for layer in table.prefill.layers] == [4, 4, 4]
    settings = table.settings
    assert (settings.batch_size, settings.context, settings.repeats) == (2, 9, 1)
    assert (settings.device, settings.dtype, settings.torch_version) == ("cpu", "float32", torch.__version__)
    assert settings.device_name == device_name("cpu") != ""
    usual = choose_check_plans([3, 3, 3])
    assert [check.num_iterations for check in table.decode.checks] == [*usual, BUDGET]


def test_a_student_is_measured_up_to_its_own_plan_and_a_usual_plan_is_checked_once(folders):
    student = Plan.load(folders.plan).teacher.model_copy(update={"num_iterations": BUDGET})
    usual = choose_check_plans(student.num_iterations)
    first = measure_latency(folders.student, dtype="bfloat16", **QUICK)
    assert [len(layer) for layer in first.decode.layers] == [r + 1 for r in BUDGET]
    assert first.settings.dtype == "bfloat16"
    again = measure_latency(folders.student, plan=Plan.explicit(usual[1], first.model), **QUICK)
    assert [check.num_iterations for check in again.decode.checks] == usual


def test_the_command_prints_the_table_and_writes_it(folders, tmp_path, iiad):
    output = tmp_path / "latency.json"
    quick = ("--prompt-tokens", 8, "--new-tokens", 1, "--repeats", 1, "--device", "cpu", "--output", output)
    code, shown, errors = iiad("bench", folders.teacher, "--layers", "--plan", folders.plan, *quick)
    assert code == 0, errors
    words = "r = 3|fixed|layer 3|3 everywhere|0 2 1|The largest error of the table, over 5 plans"
    assert all(word in shown for word in words.split("|"))
    assert LatencyTable.load(output).settings.context == 8
    assert "exists already" in iiad("bench", folders.teacher, "--layers", *quick)[2]


@pytest.mark.parametrize(("measured", "advice"), [(1.01, False), (0.9, True)])
def test_the_report_shows_every_time_and_every_error(table, measured, advice):
    model = table.model.model_copy(update={"num_iterations": [1, 0, 1]})
    decode = PhaseLatency.of(0.0005, [[0.001, 0.00275], [0.003], [0.004, 0.0051234]], [([1, 0, 0], 0.01025)])
    prefill = PhaseLatency.of(0.25, [[0.25, 0.5], [0.25], [0.125, 0.5]], [([1, 0, 0], 1.125 * measured)])
    fields = {"model": model, "settings": table.settings, "decode": decode, "prefill": prefill}
    lines = printed(latency_table(LatencyTable(**fields), 110)).splitlines()
    rows = [" ".join(line.split()) for line in lines]
    wanted = "fixed 0.500|layer 1 1.000 2.750|layer 2 3.000|layer 3 4.000 5.123|layer 2 250.0"
    assert set(wanted.split("|")) <= set(rows)
    error = "-1.0" if measured > 1 else "+11.1"
    assert f"1 0 0 10.25 10.25 +0.0 % 1,125.0 {1125 * measured:,.1f} {error} %" in rows
    text = " ".join(rows)
    assert f"over 1 plan: 0.0 % of a decoding step, {error.strip('+-')} % of a prefill." in text
    assert ("More rounds (--repeats)" in text) == advice


def test_a_cpu_goes_by_the_name_that_the_kernel_gives_it(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(timing, "CPU_INFO", info)
    monkeypatch.setattr(timing.platform, "processor", lambda: "")
    monkeypatch.setattr(timing.platform, "machine", lambda: "riscv64")
    assert device_name("cpu") == "riscv64"
    info.write_text(
        "processor\t: 0\nmodel\t\t: 2\nmodel name\t: Some: CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: B\n"
    )
    assert device_name("cpu") == "Some: CPU @ 2 GHz"


@pytest.mark.gpu
def test_on_a_gpu_the_layers_and_the_rest_make_up_the_whole():
    model = make_iiet(num_iterations=2).to("cuda")
    tokens = torch.randint(3, 97, (2, 17), device="cuda")
    phases = time_layers(model, tokens, choose_check_plans([2, 2, 2]), 8, 3)
    for phase in phases.values():
        assert phase.fixed_seconds > 0
        assert all(seconds > 0 for layer in phase.layers for seconds in layer)
