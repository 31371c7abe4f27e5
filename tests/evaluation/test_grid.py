"""A bench over a grid of batch sizes and contexts: what is counted is exact, what is timed only has to be there."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from cli import main
from cli.bench import bench
from iiad import InputError
from iiad.evaluation.activation_memory import peaks_in_turn
from iiad.evaluation.bench_artefact import PARTS, Bench, Breakdown
from iiad.evaluation.speed import bench_models
from iiad.reporting.bench_pictures import draw_bench
from iiad.reporting.bench_tables import bench_table, explain_losses
from tests.helpers import printed

QUICK = {"new_tokens": 3, "repeats": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def grid(folders):
    models = [folders.teacher, folders.student, folders.llama]
    return bench_models(models, batch_size=[1, 3], prompt_tokens=(8, 16, 32), quantize=["int8"], **QUICK)


def test_every_point_of_the_grid_has_every_model_in_order(grid):
    assert grid.points == [(batch, context) for batch in (1, 3) for context in (8, 16, 32)]
    assert (grid.settings.batch_size, grid.settings.prompt_tokens) == ([1, 3], [8, 16, 32])
    for point in grid.points:
        assert [result.label for result in grid.at(*point)] == [
            "teacher",
            "teacher, int8",
            "student",
            "llama",
        ]


def test_cache_and_weights_are_exact_at_every_point(grid):
    for result in grid.results:
        tokens = result.batch_size * (result.prompt_tokens + 3)
        assert result.cache_bytes == result.cache_bytes_per_token * tokens
        first = grid.at(result.batch_size, result.prompt_tokens)[0]
        assert result.cache_ratio == result.cache_bytes / first.cache_bytes
    full, quantized, *_ = grid.results
    assert quantized.quantization == "int8"
    assert full.quantization is None
    assert quantized.weight_bytes < full.weight_bytes / 2


def test_a_quantized_row_is_predicted_nothing(grid):
    for result in grid.results:
        if result.quantization:
            assert result.predicted_speedup is result.decode.kept is result.decode.expected_speedup is None
        else:
            assert result.decode.kept == result.decode.speedup.median / result.predicted_speedup


def test_every_phase_is_broken_down_and_holds_at_least_the_cache(grid):
    for result in grid.results:
        assert result.decode.breakdown.total > 0
        assert result.prefill.breakdown.total > 0
        # The peak is that of the first decoding step: two of the three tokens are not there yet.
        cache = result.cache_bytes_per_token * result.batch_size * (result.prompt_tokens + 1)
        assert result.decode.peak_bytes >= cache
        assert result.prefill.peak_bytes >= cache * result.prompt_tokens / (result.prompt_tokens + 1)


def test_a_bench_reads_itself_and_refuses_the_format_before_it(grid, tmp_path):
    grid.save(tmp_path / "bench.json")
    assert Bench.load(tmp_path / "bench.json") == grid
    fields = json.loads((tmp_path / "bench.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({**fields, "format_version": 1}))
    with pytest.raises(InputError, match="format_version: expected 2, got 1"):
        Bench.load(tmp_path / "old.json")


def slow_head(result, seconds, kept):
    """The result with a breakdown in which all but the head takes seconds, and that much kept of the prediction."""
    parts = Breakdown(seconds={**dict.fromkeys(PARTS, 0.0), "mlp": seconds, "head": 1.0})
    decode = result.decode.model_copy(update={"breakdown": parts, "kept": kept, "expected_speedup": 2.5})
    return result.model_copy(update={"decode": decode, "prefill": decode.model_copy(update={"kept": 1.0})})


def test_where_too_little_is_kept_the_bench_says_what_eats_it(grid):
    teacher, _, student, _ = grid.results[:4]
    results = [slow_head(teacher, 9.0, 1.0), slow_head(student, 4.5, 0.9)]
    (line,) = explain_losses(results)
    assert line.startswith("student, decode: ")
    assert "90.0 % of the predicted 2.00x; with embedding, head and rest unshrunk 2.50x" in line
    assert line.endswith("take more than the evaluations say: head 9.1 %.")  # (1 - 1/2) of 5.5
    assert explain_losses([results[0], slow_head(student, 4.5, 0.97)]) == []


def test_the_table_has_a_part_for_each_point(grid):
    shown = printed(bench_table(grid, 240), width=240)
    for words in (
        "batch 3, 32 prompt tokens",
        "teacher, int8",
        "decode step",
        "projections",
        "weights",
        "kept",
    ):
        assert words in shown
    assert shown.count("prompt tokens") == 6
    narrow = printed(bench_table(grid, 80), width=80)
    assert max(map(len, narrow.splitlines())) <= 80


def test_pictures_go_over_the_longer_side_of_the_grid(grid, tmp_path):
    names = [path.name for path in draw_bench(grid, tmp_path)]
    assert names == [f"bench-{what}.{kind}" for what in ("speedup", "memory") for kind in ("png", "svg")]
    drawn = (tmp_path / "bench-speedup.svg").read_text()
    for words in ("prompt tokens", "batch size 1", "batch size 3", "student", "teacher, int8"):
        assert f"<!-- {words} -->" in drawn
    again = tmp_path / "again"
    draw_bench(grid, again)
    assert (again / "bench-memory.svg").read_bytes() == (tmp_path / "bench-memory.svg").read_bytes()


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(bench)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_options_are_repeated_for_a_grid_and_pictures_drawn(folders, tmp_path, command):
    options = ("--batch-size", 1, "--batch-size", 2, "--prompt-tokens", 8, "--prompt-tokens", 12)
    done = command(
        folders.llama,
        *options,
        "--new-tokens",
        2,
        "--repeats",
        1,
        "--device",
        "cpu",
        "--plot",
        tmp_path / "plots",
    )
    assert done.exit_code == 0, done.output
    assert "batch 2, 12 prompt tokens" in done.stdout
    assert len(list((tmp_path / "plots").iterdir())) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-size", 1, "--batch-size", 2), "batch_size: found 2; accepted with --layers: one"),
        (("--quantize", "int8"), "quantize: found ['int8']; accepted with --layers: none"),
    ],
)
def test_a_latency_table_has_no_grid(folders, command, options, words):
    assert words in str(command(folders.teacher, "--layers", *options).exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompt-tokens", 8192), "accepted: at most 128 together, the max_position_embeddings of "),
        (("--device", "abacus"), "device: expected cpu, or cuda where there is one, got 'abacus'"),
        (("--quantize", "int3"), "quantize: found 'int3'; accepted: int8, int4"),
        (("--batch-size", 0), "batch_size: found 0; accepted: at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folders, monkeypatch, capsys, options, words):
    monkeypatch.setattr("sys.argv", ["iiad", "bench", str(folders.llama), *map(str, options)])
    with pytest.raises(SystemExit) as caught:
        main.run()
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert words in error


def test_peaks_in_turn_count_what_is_left_alive():
    held = []

    def grow():
        held.append(torch.zeros(100))
        (held[-1] + 1).sum()  # beside it 100 more, and a number

    assert peaks_in_turn([grow, grow, lambda: None]) == [804, 1204, 800]
