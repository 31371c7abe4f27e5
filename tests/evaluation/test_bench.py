"""Speed is measured, not asserted: counts, cache bytes, ratios, rows, errors and reports are."""

import pytest
import torch
from transformers import DynamicCache

from iiad.checkpoints import identify_model, load_model, require_cache_policy
from iiad.evaluation import speed
from iiad.evaluation.activation_memory import peaks_in_turn
from iiad.evaluation.bench_artefact import PARTS, Bench, Breakdown, Spread
from iiad.evaluation.quality_artefact import EvaluationResult
from iiad.evaluation.speed import bench_models
from iiad.evaluation.timing import Timing, compile_step, random_prompts, time_model
from iiad.planning import Plan
from iiad.reporting.bench_tables import bench_table, explain_losses
from iiad.reporting.pictures import draw_bench
from tests.helpers import BUDGET, load_spoilt, make_iiet, make_seq2seq, printed, refused

QUICK = {"prompt_tokens": 8, "new_tokens": 3, "repeats": 1, "device": "cpu"}
LABELS = ["teacher", "teacher, truncated", "teacher, int8", "llama"]


@pytest.fixture(scope="module")
def grid(folders):
    """Two batch sizes and two contexts, four rows at each of the four points."""
    options = {**QUICK, "batch_size": [1, 3], "prompt_tokens": (8, 16)}
    return bench_models([folders.teacher, folders.llama], plan=folders.plan, quantize=["int8"], **options)


def test_every_point_of_the_grid_has_every_row_in_order(grid):
    assert grid.points == [(1, 8), (1, 16), (3, 8), (3, 16)]
    for point in grid.points:
        rows = grid.at(*point)
        assert [row.label for row in rows] == LABELS
        assert [row.decode.evaluations_per_token for row in rows] == [12, 6, 12, 3]
        assert [row.decode.predicted_speedup for row in rows] == [1, 2, None, 4]
        assert [row.model.num_iterations for row in rows[:2]] == [[3, 3, 3], BUDGET]
    settings = grid.settings
    assert (settings.batch_size, settings.prompt_tokens) == ([1, 3], [8, 16])
    assert (settings.new_tokens, settings.repeats) == (3, 1)
    assert (settings.dtype, settings.device, settings.torch_version) == ("float32", "cpu", torch.__version__)


def test_cache_and_weights_are_exact_at_every_point(grid, folders):
    for row in grid.results:
        assert row.cache_bytes == row.cache_bytes_per_token * row.batch_size * (row.prompt_tokens + 3)
        first = grid.at(row.batch_size, row.prompt_tokens)[0]
        assert row.cache_ratio == row.cache_bytes / first.cache_bytes
    full, truncated, quantized, llama = grid.results[:4]
    assert (truncated.cache_ratio, llama.cache_ratio) == (0.5, 0.25)
    assert (full.quantization, quantized.quantization) == (None, "int8")
    assert quantized.weight_bytes < full.weight_bytes / 2
    narrow = bench_models([folders.student], dtype="bfloat16", **QUICK).results[0]
    assert narrow.cache_bytes == narrow.cache_bytes_per_token * (8 + 3)
    assert 4 * narrow.cache_bytes_per_token == full.cache_bytes_per_token


def test_speeds_are_positive_and_every_phase_is_broken_down_and_holds_the_cache(grid):
    for row in grid.results:
        # The peak is that of the first decoding step: two of the three tokens are not there yet.
        cache = row.cache_bytes_per_token * row.batch_size
        for phase, num_tokens in ((row.prefill, row.prompt_tokens), (row.decode, row.prompt_tokens + 1)):
            for spread in (phase.tokens_per_second, phase.speedup):
                assert 0 < spread.low <= spread.median <= spread.high
            if phase.predicted_speedup:
                assert phase.kept == phase.speedup.median / phase.predicted_speedup
            else:
                assert phase.kept is phase.expected_speedup is None
            assert phase.breakdown.total > 0
            assert phase.peak_bytes >= cache * num_tokens
    first = grid.results[0]
    assert first.prefill.speedup == first.decode.speedup == Spread(median=1, low=1, high=1)


def test_rounds_take_the_models_in_turn_and_the_first_round_does_not_count(folders, monkeypatch):
    order = []

    def fake(model, prompts, num_steps, step):
        order.append(model.config.num_hidden_layers)
        return Timing(1.0 / len(order), 2.0 / len(order), 64, prompts[:, : num_steps + 1])

    monkeypatch.setattr(speed, "time_model", fake)
    options = {**QUICK, "prompt_tokens": 9, "new_tokens": 5, "repeats": 2}
    results = bench_models([folders.teacher, folders.llama], plan=folders.plan, **options).results
    assert order == [12, 6, 3] * 3
    # The llama's runs 6 and 9 (of 9) took 1/6 and 1/9 s, the teacher's 4 and 7 in the same rounds 1/4 and 1/7 s.
    speedup = results[2].prefill.speedup
    assert (speedup.low, speedup.high) == (pytest.approx(9 / 7), pytest.approx(6 / 4))
    assert speedup.median == pytest.approx((9 / 7 + 6 / 4) / 2)
    assert results[0].prefill.tokens_per_second.high == pytest.approx(9 * 7)
    assert results[0].decode.tokens_per_second.low == pytest.approx(5 * 4 / 2)


@torch.no_grad()
def test_the_timed_loop_decodes_what_the_uncached_model_would(variant, tokens):
    wanted = tokens
    for _ in range(3):
        wanted = torch.cat([wanted, variant(wanted, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    timing = time_model(variant, tokens, 2)
    assert torch.equal(timing.tokens, wanted[:, tokens.shape[1] :])
    cache = DynamicCache(config=variant.config)
    variant(wanted[:, :-1], past_key_values=cache, use_cache=True)
    assert timing.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_a_model_whose_forward_keeps_all_logits_is_timed_too(tokens):
    model = make_iiet(num_iterations=1)
    wanted, forward = time_model(model, tokens, 3), model.forward
    model.forward = lambda input_ids, past_key_values, use_cache: forward(
        input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache
    )
    assert torch.equal(time_model(model, tokens, 3).tokens, wanted.tokens)


def test_prompts_follow_the_seed():
    assert torch.equal(random_prompts(2, 5, 97, 3), random_prompts(2, 5, 97, 3))
    assert not torch.equal(random_prompts(2, 5, 97, 3), random_prompts(2, 5, 97, 4))
    assert random_prompts(2, 5, 97, 3).shape == (2, 5)


def test_peaks_in_turn_count_what_is_left_alive():
    held = []

    def grow():
        held.append(torch.zeros(100))
        (-held[-1]).sum()  # beside it 100 more, and the sum

    assert peaks_in_turn([grow, grow, lambda: None]) == [804, 1204, 800]


@pytest.fixture
def with_aot_eager(monkeypatch):
    """torch.compile traces one whole graph and runs it as it is: what inductor makes of it is torch's business."""
    compile_ = torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(
        torch, "compile", lambda *given, **options: compile_(*given, **options, backend="aot_eager")
    )
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("with_aot_eager")
@pytest.mark.parametrize("policy", ["exact", pytest.param("shared", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_compiled_decoding_chooses_the_tokens_of_the_eager_model(policy):
    model = make_iiet(num_layers=1, num_iterations=1, cache_policy=policy)
    prompts = random_prompts(2, 9, 97, seed=1)
    eager = time_model(model, prompts, 4)
    compiled = time_model(model, prompts, 4, compile_step(model))
    assert torch.equal(compiled.tokens, eager.tokens)
    assert compiled.cache_bytes == eager.cache_bytes  # the length asked for is the length used


@pytest.mark.slow
@pytest.mark.usefixtures("with_aot_eager")
@torch.inference_mode()
def test_compiled_decoding_of_an_encoder_decoder_chooses_the_tokens_of_the_eager_model():
    model = make_seq2seq(num_layers=1, num_iterations=1, num_encoder_layers=1, num_encoder_iterations=0)
    prompts, counted = random_prompts(2, 9, 97, seed=1), torch._dynamo.utils.counters
    counted.clear()
    eager, step = time_model(model, prompts, 4), compile_step(model)
    for _ in range(2):
        compiled = time_model(model, prompts, 4, step)
        assert torch.equal(compiled.tokens, eager.tokens)
        assert compiled.cache_bytes == eager.cache_bytes
    assert counted["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("with_aot_eager")
def test_each_row_is_compiled_once_whatever_plans_run_in_between(folders, monkeypatch):
    teacher = load_model(folders.teacher)
    plan = Plan.explicit([0] * teacher.config.num_layers, identify_model(teacher, folders.teacher))
    monkeypatch.setattr(speed, "require_compiler", lambda device: None)
    counted = torch._dynamo.utils.counters
    counted.clear()
    bench = bench_models([folders.teacher], plan=plan, compiled=True, **QUICK | {"repeats": 3})
    labels = [result.label for result in bench.results]
    assert labels == ["teacher", "teacher, compiled", "teacher, truncated", "teacher, truncated, compiled"]
    assert counted["stats"]["unique_graphs"] == 2
    assert [result.compiled for result in bench.results] == [False, True, False, True]
    for result in bench.results:
        assert (result.decode.predicted_speedup is None) == result.compiled
        assert (result.decode.breakdown is None) == result.compiled


def test_an_evaluation_lends_its_quality_to_the_rows_that_it_knows(grid, folders):
    full, _, quantized = grid.results[:3]

    def known(row, perplexity):
        fields = {"label": row.label, "model": row.model, "quantization": row.quantization}
        return EvaluationResult.model_construct(**fields, perplexity=perplexity, accuracy=0.5)

    evaluation = speed.Evaluation.model_construct(results=[known(quantized, 7.25), known(full, 6.5)])
    bench = bench_models([folders.teacher, folders.llama], quantize=["int8"], evaluation=evaluation, **QUICK)
    teacher, quantized, llama = bench.results
    assert (teacher.perplexity, quantized.perplexity, teacher.accuracy) == (6.5, 7.25, 0.5)
    assert llama.perplexity is llama.accuracy is None
    shown = printed(bench_table(bench, 200), 200)
    assert "6.50" in shown
    assert "7.25" in shown
    with refused("evaluation: expected one that has one of these models under its plan"):
        bench_models([folders.llama], evaluation=evaluation, **QUICK)


def test_a_cache_policy_that_the_weights_were_not_trained_for_is_refused(folders):
    require_cache_policy([folders.teacher, folders.llama], "exact")
    require_cache_policy([folders.teacher], None)
    for models, policy in (([folders.llama, folders.teacher], "shared"), ([folders.teacher], "last")):
        with refused("cache_policy: ", repr(policy)):
            require_cache_policy(models, policy)


def test_a_bench_reads_itself_and_refuses_the_format_before_it(grid, tmp_path):
    grid.save(tmp_path / "bench.json")
    assert Bench.load(tmp_path / "bench.json") == grid
    with refused("format_version: expected 3, got 1"):
        load_spoilt(grid, tmp_path, "format_version", 1)


def slow_head(result, seconds, kept, host=None):
    """The result with a breakdown in which all but the head takes seconds, and that much kept of the prediction."""
    seconds = {**dict.fromkeys(PARTS, 0.0), "mlp": seconds, "head": 1.0}
    parts = Breakdown(seconds=seconds, host_share=host)
    decode = result.decode.model_copy(update={"breakdown": parts, "kept": kept, "expected_speedup": 2.5})
    return result.model_copy(update={"decode": decode, "prefill": decode.model_copy(update={"kept": 1.0})})


def test_where_too_little_is_kept_the_bench_names_the_parts_that_grew(grid):
    teacher, student = grid.results[:2]
    results = [slow_head(teacher, 9.0, 1.0), slow_head(student, 4.5, 0.9)]
    (line,) = explain_losses(results)
    assert line.startswith("teacher, truncated, decode: ")
    assert "90.0 % of the predicted 2.00x; with embedding, head and rest unshrunk 2.50x" in line
    assert line.endswith("take more than the evaluations say: head 9.1 %.")  # (1 - 1/2) of 5.5
    assert explain_losses([results[0], slow_head(student, 4.5, 0.97)]) == []
    (line,) = explain_losses([results[0], slow_head(student, 4.5, 0.9, host=0.98)])
    assert line.endswith("head 9.1 %. The host took 98 % of it to launch: near 100 %, launches bound it.")


def test_the_table_has_a_part_for_each_point_and_fits_the_terminal(grid):
    shown, narrow = (printed(bench_table(grid, width), width=width) for width in (240, 80))
    words = "batch 3, 16 prompt tokens|teacher, int8|decode step|projections|weights|kept|4.00x|0.25x"
    assert [word for word in words.split("|") if word not in shown] == []
    assert shown.count("prompt tokens") == 4
    assert max(map(len, narrow.splitlines())) <= 80


def test_pictures_of_a_grid_have_a_panel_for_each_batch_and_a_line_for_each_model(grid, tmp_path):
    names = [path.name for path in draw_bench(grid, tmp_path)]
    assert names == [f"bench-{what}.{kind}" for what in ("speedup", "memory") for kind in ("png", "svg")]
    drawn = (tmp_path / "bench-speedup.svg").read_text()
    for words in ("prompt tokens", "batch size 1", "batch size 3", "llama", "teacher, int8"):
        assert f"<!-- {words} -->" in drawn


def test_the_command_prints_a_grid_writes_the_artefact_and_draws(folders, tmp_path, iiad):
    output, quick = tmp_path / "bench.json", ("--new-tokens", 2, "--repeats", 1, "--device", "cpu")
    sizes = ("--batch-size", 1, "--batch-size", 2, "--prompt-tokens", 8)
    arguments = ("bench", folders.llama, *sizes, *quick, "--output", output)
    code, shown, errors = iiad(*arguments, "--plot", tmp_path / "plots")
    assert code == 0, errors
    assert "batch 2, 8 prompt tokens" in shown
    assert "smallest-largest" in shown
    assert Bench.load(output).points == [(1, 8), (2, 8)]
    assert len(list((tmp_path / "plots").iterdir())) == 4
    code, _, errors = iiad(*arguments)
    assert (code, "exists already" in errors) == (2, True)
    assert "iiad bench teacher student" in " ".join(iiad("bench", "--help")[1].split())
