"""Speed is measured, not asserted: what is asserted are counts, cache bytes, ratios and errors."""

import pytest
import torch
import typer
from transformers import DynamicCache
from typer.testing import CliRunner

from cli.bench import bench
from iiad import InputError
from iiad.evaluation import bench_rows as rows
from iiad.evaluation import speed as room
from iiad.evaluation.bench_artefact import Bench, Spread
from iiad.evaluation.speed import bench_models
from iiad.evaluation.timing import Timing, random_prompts, time_model
from tests.helpers import BUDGET, make_llama

QUICK = {"prompt_tokens": 9, "new_tokens": 5, "repeats": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def benched(folders):
    return bench_models(
        [folders.teacher, folders.student, folders.llama], plan=folders.plan, batch_size=2, **QUICK
    )


def test_rows_are_the_models_with_the_truncated_first_second(benched):
    assert [result.label for result in benched.results] == [
        "teacher",
        "teacher, truncated",
        "student",
        "llama",
    ]
    assert [result.evaluations_per_token for result in benched.results] == [12, 6, 6, 3]
    assert [result.model.num_iterations for result in benched.results[:2]] == [[3, 3, 3], BUDGET]
    assert [result.predicted_speedup for result in benched.results] == [1, 2, 2, 4]


def test_measured_cache_bytes_are_the_predicted_ones(benched):
    tokens = 2 * (9 + 5)
    for result in benched.results:
        assert result.cache_bytes == result.cache_bytes_per_token * tokens
    assert [result.cache_ratio for result in benched.results] == [1, 0.5, 0.5, 0.25]


def test_measured_cache_bytes_are_the_predicted_ones_in_bfloat16(folders, benched):
    result = bench_models([folders.teacher], dtype="bfloat16", **QUICK).results[0]
    assert result.cache_bytes == result.cache_bytes_per_token * (9 + 5)
    assert 2 * result.cache_bytes_per_token == benched.results[0].cache_bytes_per_token


def test_speeds_are_positive_and_the_first_is_its_own_measure(benched):
    for result in benched.results:
        for spread in (
            result.prefill.tokens_per_second,
            result.decode.tokens_per_second,
            result.decode.speedup,
        ):
            assert 0 < spread.low <= spread.median <= spread.high
    first = benched.results[0]
    assert first.prefill.speedup == first.decode.speedup == Spread(median=1, low=1, high=1)


def test_settings_say_what_was_run(benched):
    settings = benched.settings
    assert (settings.batch_size, settings.prompt_tokens) == ([2], [9])
    assert (settings.new_tokens, settings.repeats) == (5, 2)
    assert (settings.dtype, settings.device, settings.torch_version) == ("float32", "cpu", torch.__version__)


def test_rounds_take_the_models_in_turn_and_the_first_round_does_not_count(folders, monkeypatch):
    order = []

    def fake(model, prompts, num_steps, decoder):
        order.append(model.config.num_hidden_layers)
        return Timing(1.0 / len(order), 2.0 / len(order), 64, prompts[:, : num_steps + 1])

    monkeypatch.setattr(room, "time_model", fake)
    results = bench_models([folders.teacher, folders.llama], plan=folders.plan, **QUICK).results
    assert order == [12, 6, 3] * 3
    # The llama's runs 6 and 9 (of 9) took 1/6 and 1/9 s, the teacher's 4 and 7 in the same rounds 1/4 and 1/7 s.
    assert results[2].prefill.speedup.low == pytest.approx(9 / 7)
    assert results[2].prefill.speedup.high == pytest.approx(6 / 4)
    assert results[2].prefill.speedup.median == pytest.approx((9 / 7 + 6 / 4) / 2)
    assert results[0].prefill.tokens_per_second.high == pytest.approx(9 * 7)
    assert results[0].decode.tokens_per_second.low == pytest.approx(5 * 4 / 2)


@torch.no_grad()
def test_the_timed_loop_decodes_what_the_uncached_model_would(variant, tokens):
    wanted = tokens
    for _ in range(5):
        wanted = torch.cat([wanted, variant(wanted, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    timing = time_model(variant, tokens, 4)
    assert torch.equal(timing.tokens, wanted[:, tokens.shape[1] :])
    cache = DynamicCache(config=variant.config)
    variant(wanted[:, :-1], past_key_values=cache, use_cache=True)
    assert timing.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_a_model_whose_forward_keeps_all_logits_is_timed_too(tokens):
    model = make_llama()
    wanted, forward = time_model(model, tokens, 3), model.forward
    model.forward = lambda input_ids, past_key_values, use_cache: forward(
        input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache
    )
    assert torch.equal(time_model(model, tokens, 3).tokens, wanted.tokens)


def test_prompts_follow_the_seed():
    assert torch.equal(random_prompts(2, 5, 97, 3), random_prompts(2, 5, 97, 3))
    assert not torch.equal(random_prompts(2, 5, 97, 3), random_prompts(2, 5, 97, 4))
    assert random_prompts(2, 5, 97, 3).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size: found 0; accepted: at least 1"),
        ({"batch_size": []}, "batch_size: found none; accepted: at least one number"),
        ({"batch_size": [4, -1]}, "batch_size: found -1"),
        ({"prompt_tokens": 0}, "prompt_tokens: found 0"),
        ({"prompt_tokens": [9, 124]}, "found 124 + 5; accepted: at most 128 together"),
        ({"device": "abacus"}, "device: expected cpu, or cuda where there is one, got 'abacus'"),
        ({"quantize": ["int2"]}, "quantize: found 'int2'; accepted: int8, int4"),
        ({"quantize": ["int8", "int8"]}, "quantize: found int8 twice"),
        ({"new_tokens": 0}, "new_tokens: found 0"),
        ({"repeats": 0}, "repeats: found 0"),
        ({"seed": -1}, "seed: found -1"),
        ({"dtype": "int8"}, "dtype: expected float32 or bfloat16, got 'int8'"),
        ({"prompt_tokens": 100, "new_tokens": 29}, "found 100 + 29; accepted: at most 128 together"),
        ({"plan": "nowhere.json"}, "nowhere.json: no such file"),
    ],
)
def test_bad_values_are_refused_before_a_model_is_loaded(folders, monkeypatch, options, words):
    monkeypatch.setattr(rows, "load_identified", None)
    with pytest.raises(InputError) as caught:
        bench_models([folders.llama], **{**QUICK, **options})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_for_another_teacher_is_refused(folders):
    with pytest.raises(InputError, match="plan: expected one for teacher"):
        bench_models([folders.student], plan=folders.plan, **QUICK)


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(bench)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_and_writes_the_artefact(folders, tmp_path, command):
    output = tmp_path / "bench.json"
    arguments = (folders.teacher, folders.llama, "--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 1)
    done = command(*arguments, "--device", "cpu", "--output", output)
    assert done.exit_code == 0, done.output
    for word in ("predicted", "4.00x", "0.25x", "smallest-largest"):
        assert word in done.stdout
    assert Bench.load(output).results[1].predicted_speedup == 4
    again = command(*arguments, "--output", output)
    assert "exists already" in str(again.exception)
    assert "iiad bench teacher student" in " ".join(command("--help").output.split())
