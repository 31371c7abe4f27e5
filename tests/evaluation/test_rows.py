"""Rows beside the plain ones: compiled, with an evaluation's quality, under a cache policy."""

import pytest
import torch

from iiad import InputError
from iiad.checkpoints import identify_model, load_model, require_cache_policy
from iiad.evaluation import evaluate_models
from iiad.evaluation import speed as comparison
from iiad.evaluation.compiled import CompiledDecoder
from iiad.evaluation.speed import bench_models
from iiad.evaluation.timing import random_prompts, time_model
from iiad.planning import Plan
from iiad.reporting.bench_tables import bench_table
from tests.helpers import make_iiet, printed

QUICK = {"new_tokens": 3, "repeats": 1, "device": "cpu", "prompt_tokens": 8}


@pytest.fixture
def with_aot_eager(monkeypatch):
    """torch.compile traces one whole graph and runs it as it is: what inductor makes of it is torch's business."""
    whole = torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(
        torch, "compile", lambda *given, **options: whole(*given, **options, backend="aot_eager")
    )
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("with_aot_eager")
@pytest.mark.parametrize("policy", ["exact", pytest.param("shared", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_compiled_decoding_chooses_the_tokens_of_the_eager_model(policy):
    model = make_iiet(num_iterations=[0, 2, 1], cache_policy=policy)
    prompts = random_prompts(2, 9, 97, seed=1)
    eager = time_model(model, prompts, 6)
    compiled = time_model(model, prompts, 6, CompiledDecoder(model, 15))
    assert torch.equal(compiled.tokens, eager.tokens)
    assert compiled.cache_bytes == eager.cache_bytes  # the length asked for is the length used


@pytest.mark.usefixtures("with_aot_eager")
def test_each_row_is_compiled_once_whatever_plans_run_in_between(folders, monkeypatch):
    teacher = load_model(folders.teacher)
    plan = Plan.explicit([0] * teacher.config.num_layers, identify_model(teacher, folders.teacher))
    monkeypatch.setattr(comparison, "require_compiler", lambda device: None)
    counted = torch._dynamo.utils.counters
    counted.clear()
    bench = bench_models([folders.teacher], plan=plan, compiled=True, **QUICK | {"repeats": 3})
    labels = [result.label for result in bench.results]
    assert labels == ["teacher", "teacher, compiled", "teacher, truncated", "teacher, truncated, compiled"]
    assert counted["stats"]["unique_graphs"] == 2
    assert [result.compiled for result in bench.results] == [False, True, False, True]
    for result in bench.results:
        assert (result.predicted_speedup is None) == result.compiled
        assert (result.decode.breakdown is None) == result.compiled


def test_an_evaluation_lends_its_quality_to_the_rows_that_it_knows(folders, text_file, tmp_path):
    evaluation = evaluate_models(
        [folders.teacher], [str(text_file)], quantize=["int8"], max_tokens=100, device="cpu"
    )
    evaluation.save(tmp_path / "evaluation.json")
    bench = bench_models(
        [folders.teacher, folders.llama],
        quantize=["int8"],
        evaluation=tmp_path / "evaluation.json",
        **QUICK,
    )
    teacher, quantized, llama = bench.results
    assert (teacher.perplexity, quantized.perplexity) == tuple(r.perplexity for r in evaluation.results)
    assert teacher.perplexity != quantized.perplexity
    assert llama.perplexity is llama.accuracy is None
    assert f"{teacher.perplexity:.2f}" in printed(bench_table(bench, 200), 200)
    with pytest.raises(InputError, match="evaluation: holds none of these models under their plans"):
        bench_models([folders.llama], evaluation=evaluation, **QUICK)


def test_a_cache_policy_that_the_weights_were_not_trained_for_is_refused(folders):
    require_cache_policy([folders.teacher, folders.llama], "exact")
    require_cache_policy([folders.teacher], None)
    with pytest.raises(InputError) as caught:
        require_cache_policy([folders.llama, folders.teacher], "shared")
    assert str(caught.value).startswith(
        f"cache_policy: expected 'exact', for which the weights of {folders.llama} were trained"
    )
    with pytest.raises(InputError, match="cache_policy: expected exact or shared, got 'last'"):
        require_cache_policy([folders.teacher], "last")
