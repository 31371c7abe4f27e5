"""The latency table: what it adds up, what it refuses, whom it may serve."""

import hashlib

import pytest
from pydantic import ValidationError

from iiad.planning.latency import LatencyTable, PhaseLatency, check_latency
from tests.helpers import LATENCY_SETTINGS, load_spoilt, make_profile, refused

LAYERS = [[0.25, 0.5, 0.75], [0.5], [0.25, 1.0]]
MODEL = make_profile(num_iterations=(2, 0, 1)).model


def make_phase():
    return PhaseLatency.of(1.0, LAYERS, [([2, 0, 1], 3.0), ([0, 0, 0], 2.5)])


def make_table(**fields):
    phases = {"decode": make_phase(), "prefill": make_phase()}
    return LatencyTable(**{"model": MODEL, "settings": LATENCY_SETTINGS, **phases, **fields})


def test_a_plan_takes_the_fixed_part_and_each_layer_at_its_iterations():
    phase = make_phase()
    assert phase.seconds([2, 0, 1]) == 1 + 0.75 + 0.5 + 1
    assert phase.seconds((0, 0, 0)) == 1 + 0.25 + 0.5 + 0.25
    for plan, words in (
        ([0, 0], "expected 3 layers, as were measured, got 2"),
        ([0, 1, 0], "expected 0 to 0 for layer 2, got 1"),
        ([-1, 0, 0], "expected 0 to 2 for layer 1, got -1"),
    ):
        with refused(words):
            phase.seconds(plan)


def test_errors_are_shares_of_what_was_measured_and_the_largest_is_named():
    phase = make_phase()
    assert [check.predicted_seconds for check in phase.checks] == [3.25, 2.0]
    assert [check.error for check in phase.checks] == pytest.approx([0.25 / 3, -0.2])
    assert phase.largest_error == pytest.approx(0.2)


def test_a_table_survives_its_file_and_its_fingerprint_is_that_of_the_file(tmp_path):
    path, table = tmp_path / "latency.json", make_table()
    table.save(path)
    assert LatencyTable.load(path) == table
    assert table.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    other = make_table(settings=LATENCY_SETTINGS.model_copy(update={"context": 257}))
    assert other.fingerprint != table.fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("decode", "fixed_seconds", -0.5), "decode.fixed_seconds: expected greater than or equal to 0"),
        (("decode", "layers", 0, 1, -1), "decode.layers.0.1: expected greater than or equal to 0"),
        (("prefill", "layers", 2, 0, float("nan")), "prefill.layers.2.0: expected a finite number"),
        (("prefill", "layers", 2, 0, float("inf")), "prefill.layers.2.0: expected a finite number"),
        (("decode", "layers", 1, []), "decode.layers.1: expected at least 1 item"),
        (("decode", "layers", []), "decode.layers: expected at least 1 item"),
        (("decode", "checks", []), "decode.checks: expected at least 1 item"),
        (("decode", "checks", 0, "measured_seconds", 0), "measured_seconds: expected greater than 0"),
        (
            ("decode", "checks", 1, "num_iterations", [3, 0, 0]),
            "checks.1: num_iterations: expected 0 to 2 for",
        ),
        (("decode", "checks", 0, "predicted_seconds", 3), "expected 3.25, as the layers add up, got 3.0"),
        (("model", "num_iterations", [2, 0]), "expected 3 numbers from 0 on, not all of them 0, got [2, 0]"),
        (("model", "num_iterations", [0, 0, 0]), "expected 3 numbers from 0 on, not all of them 0"),
        (
            ("model", "num_iterations", [2, 0, 2]),
            "decode: expected [3, 1, 3] numbers in the layers, for 0 to R_t",
        ),
        (("settings", "context", 0), "settings.context: expected greater than or equal to 1"),
        (("settings", "dtype", "int8"), "settings.dtype: expected 'float32' or 'bfloat16'"),
        (("format_version", 2), "format_version: "),
        (("seconds", 2), "seconds: no such field"),
    ],
)
def test_a_spoilt_table_gives_one_line(change, words, tmp_path):
    with refused(words):
        load_spoilt(make_table(), tmp_path, *change)


def test_a_phase_with_too_few_layers_is_refused():
    short = PhaseLatency.of(1.0, LAYERS[:2], [([0, 0], 1.0)])
    with pytest.raises(ValidationError, match=r"prefill: expected \[3, 1, 2\] numbers in .*, got \[3, 1\]"):
        make_table(prefill=short)


def test_a_table_serves_its_own_model_as_it_was_measured():
    truncated = MODEL.model_copy(update={"num_iterations": [1, 0, 0], "name": "elsewhere"})
    for teacher in (MODEL, truncated):
        check_latency(make_table(), teacher)
        check_latency(make_table(), teacher, device="cpu", dtype="float32", batch_size=2, context=256)


@pytest.mark.parametrize(
    ("teacher", "asked", "words"),
    [
        (
            {"fingerprint": "b" * 64},
            {},
            f"table of teacher ({'b' * 12}), got one of teacher ({'a' * 12}), of",
        ),
        ({"num_iterations": [2, 1, 1]}, {}, "0 to 1 iterations of layer 2, as teacher runs, got 0 to 0"),
        ({}, {"device": "cuda"}, "latency: expected a table with device cuda, got cpu"),
        ({}, {"dtype": "bfloat16"}, "latency: expected a table with dtype bfloat16, got float32"),
        ({}, {"batch_size": 1}, "latency: expected a table with batch_size 1, got 2"),
        ({}, {"context": 2048}, "latency: expected a table with context 2048, got 256"),
    ],
)
def test_a_table_for_something_else_is_refused_in_one_line(teacher, asked, words):
    with refused("latency: expected a table", words):
        check_latency(make_table(), MODEL.model_copy(update=teacher), **asked)
