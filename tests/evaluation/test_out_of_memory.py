"""Allocations that really fail, and what is said of them."""

import subprocess
import sys

import pytest
import torch

from iiad import InputError, checkpoints
from iiad.checkpoints import loading, save_checkpoint
from iiad.evaluation import (
    bench_models,
    bench_rows,
    check_model,
    evaluate_models,
    measure_latency,
    speed,
    text_scores,
    timing,
)
from iiad.evaluation.checks import CLAIMS
from iiad.memory import cache_bytes, is_out_of_memory, memory_explained, weight_bytes
from iiad.progress import format_size
from tests.helpers import make_iiet, make_llama, make_pcformer, refused

IMPOSSIBLE = 1 << 50  # bytes: more than any machine's address space lets a process have


def test_an_allocation_that_fails_is_one_line_with_the_sizes_and_what_helps():
    model = make_iiet(num_iterations=[0, 2, 1], max_num_iterations=3)
    # 6 slots x 64 x 8192 tokens x 2 x 2 heads x 8 numbers x 4 bytes
    line = (
        "teacher on cpu: out of memory, asked for 1048576 GiB more; batch 64 x 8192 tokens, 6 evaluations, a cache "
        f"of {format_size(6 * 64 * 8192 * 2 * 2 * 8 * 4)} in 6 slots, weights of 114 KiB, float32; what helps: a "
        "smaller batch, a shorter context, bfloat16 or fewer iterations (a plan)"
    )
    with refused(line), memory_explained("teacher on cpu", model, 64, 8192):
        fill()


def fill(*_, **__):
    return torch.empty(IMPOSSIBLE, dtype=torch.uint8)


def cudas_error():
    # There is no GPU to fill here; the words are torch's.
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of")


@pytest.mark.parametrize(
    ("fail", "asked"),
    [(lambda: bytearray(IMPOSSIBLE), ""), (cudas_error, ", asked for 2.5 GiB more")],
)
def test_pythons_and_cudas_errors_are_explained_too(fail, asked):
    line = f"run: out of memory{asked}; what helps: less text"
    with refused(line), memory_explained("run", remedies=["less text"]):
        fail()


def test_training_is_told_of_recomputation():
    sizes = (
        f"batch 8 x 512 tokens, weights of {format_size(weight_bytes(make_llama()))}, float32; what helps: "
    )
    helps = "training.gradient_checkpointing=evaluation"
    with refused(sizes, helps), memory_explained("training", make_llama(), 8, 512, training=True):
        fill()


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("out of memory"), OSError(12, "")]
)
def test_other_errors_stay_what_they_are(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, memory_explained("run"):
        raise error
    assert caught.value is error


def test_what_the_failed_call_held_is_let_go():
    held = []

    class Held:
        def __del__(self):
            held.append("gone")

    def fail():
        large = Held()
        fill()
        return large

    with pytest.raises(InputError) as caught, memory_explained("run"):
        fail()
    assert is_out_of_memory(caught.value.__cause__)  # for `iiad --debug`
    assert held == ["gone"]


@pytest.mark.parametrize("make", [make_iiet, make_pcformer, make_llama])
def test_cache_bytes_are_slots_by_sizes(make):
    model = make()
    slots = model.config.num_hidden_layers
    assert cache_bytes(model, 3, 10) == slots * 3 * 10 * 2 * 2 * 8 * 4
    assert cache_bytes(model.to(torch.bfloat16), 3, 10) == slots * 3 * 10 * 2 * 2 * 8 * 2


def test_a_cache_beyond_the_free_memory_is_refused_before_the_kernel_ends_the_process(folders, monkeypatch):
    monkeypatch.setattr(bench_rows, "free_bytes", lambda device: 100_000)
    monkeypatch.setattr(speed, "measure_peaks", None)  # not reached
    wanted = (
        "teacher: expected to fit into 97.7 KiB of free memory, got batch 16 x 66 tokens, 12 evaluations, "
    )
    with refused(wanted, "; what helps: a smaller batch, "):
        bench_models([folders.teacher], batch_size=16, prompt_tokens=64, new_tokens=2, device="cpu")


def fill_layers(folders, monkeypatch):
    quick = {"prompt_tokens": 9, "new_tokens": 2, "repeats": 1, "device": "cpu"}
    measure_latency(folders.teacher, **quick, batch_size=1 << 47)


def fill_evaluation(folders, monkeypatch):
    monkeypatch.setattr(text_scores, "evaluate_model", fill)
    evaluate_models([folders.teacher], [str(folders.text)], batch_size=4, block_size=32, device="cpu")


def fill_check(folders, monkeypatch):
    monkeypatch.setattr(timing, "read_limits", lambda model: (1 << 60, 97))
    check_model(folders.teacher, prompt_tokens=1 << 50, new_tokens=5, compile=False, claims=CLAIMS[:1])


@pytest.mark.parametrize(
    ("run", "sizes", "helps"),
    [
        (fill_layers, f"batch {1 << 47} x 10 tokens", "a smaller batch, a shorter context or bfloat16"),
        (
            fill_evaluation,
            "batch 4 x 32 tokens",
            "a smaller batch, a shorter context, bfloat16 or fewer iter",
        ),
        (fill_check, f"batch 4 x {(1 << 50) + 5} tokens", "fewer prompt or new tokens, bfloat16 or another"),
    ],
)
def test_an_evaluation_that_runs_out_of_memory_says_the_sizes_and_what_helps(
    run, sizes, helps, folders, monkeypatch
):
    start = "teacher on cpu: out of memory, asked for "
    with refused(start, f"; {sizes}, 12 evaluations, ", f"what helps: {helps}"):
        run(folders, monkeypatch)


@pytest.mark.parametrize(
    ("dtype", "helps"),
    [("float32", "fewer or smaller models or bfloat16"), ("bfloat16", "fewer or smaller models")],
)
def test_a_model_that_cannot_be_loaded_is_told_by_whatever_loads_it(folders, monkeypatch, dtype, helps):
    monkeypatch.setattr(loading, "load_model", fill)
    with refused(f"loading {folders.teacher} on cpu: out of memory, asked for ", f"what helps: {helps}"):
        checkpoints.load_identified(folders.teacher, "cpu", dtype, cast=True)


LIMITED = """
import resource, sys
from cli import main
import iiad.evaluation.speed, iiad.evaluation.layer_latency, iiad.reporting.bench_tables, iiad.reporting.pictures
import torch
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main.run()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is a promise of Linux only")
def test_a_bench_that_outgrows_its_address_space_ends_with_one_line_and_exit_code_2(tmp_path):
    model = make_iiet(num_iterations=2, max_position_embeddings=8192)
    save_checkpoint(model, tmp_path / "teacher")
    size = "--batch-size 64 --prompt-tokens 4096 --new-tokens 1 --repeats 1 --device cpu".split()
    command = [sys.executable, "-c", LIMITED, str(300 << 20), "bench", str(tmp_path / "teacher"), *size]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("iiad: ")]
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    wanted = 9 * 64 * 4097 * 2 * 2 * 8 * 4
    assert line.startswith("iiad: teacher on cpu: out of memory, asked for ")
    assert f"batch 64 x 4097 tokens, 9 evaluations, a cache of {format_size(wanted)} in 9 slots" in line
    assert "what helps: a smaller batch, a shorter context, bfloat16 or fewer iterations (a plan)" in line
