"""Scores against a naive version that truncates the whole model for every stop."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iiad.artefacts import DataIdentity
from iiad.checkpoints import identify_model
from iiad.errors import InputError
from iiad.influence import (
    BatchScores,
    ProfileSettings,
    calibration_batches,
    make_profile,
    num_profile_evaluations,
    profile_model,
    sample_blocks,
)
from tests.conftest import SHAPE, VARIANTS, make_iiet, make_pcformer
from tests.influence_room.test_metrics import naive_cosine

DATA = DataIdentity(names=["made.txt"], fingerprint="d" * 64, num_tokens=34)
SETTINGS = ProfileSettings(block_size=17, batch_size=2, max_tokens=None, seed=0, dtype="float64")

ITERATED = {
    "history": lambda: make_iiet(num_iterations=3),
    "history-plan": lambda: make_iiet(num_iterations=[2, 0, 3]),
    "plain": lambda: make_iiet(num_iterations=[2, 1, 3], history=False),
    "relaxed": lambda: make_iiet(num_iterations=2, history=False, relaxation=True),
    "pcformer-rk2": lambda: make_pcformer(),
    "pcformer-rk4": lambda: make_pcformer(predictor_order=4, num_iterations=[1, 2, 0]),
}


def naive_scores(model, input_ids):
    """KL and cosine of every iteration, the whole model run again for each stop under a plan of its own."""
    plan = list(model.config.num_iterations)

    def run(budget):
        outputs = []
        model.set_num_iterations(budget)
        hooks = [
            layer.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
            for layer in model.model.layers
        ]
        logits = model(input_ids).logits
        for hook in hooks:
            hook.remove()
        model.set_num_iterations(plan)
        return logits.log_softmax(-1), outputs

    full, _ = run(plan)
    kl, cosine = [], []
    for t, r in enumerate(plan):
        stops = [run([*plan[:t], i, *plan[t + 1 :]]) for i in range(r + 1)]
        harms = [(full.exp() * (full - log_q)).sum(-1).mean().item() for log_q, _ in stops]
        kl.append([harms[i - 1] - harms[i] for i in range(1, r + 1)])
        cosine.append([naive_cosine(stops[i - 1][1][t], stops[i][1][t]) for i in range(1, r + 1)])
    return {"kl": kl, "cosine": cosine}


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", ITERATED)
def test_scores_equal_those_of_the_whole_model_run_again_for_every_stop(kind, tokens):
    model = ITERATED[kind]().double()
    with torch.no_grad():
        wanted = naive_scores(model, tokens)
    [found] = profile_model(model, [tokens])
    assert found.num_tokens == tokens.numel()
    for metric, layers in wanted.items():
        assert [len(layer) for layer in found.scores[metric]] == model.config.num_iterations
        for layer, naive in zip(found.scores[metric], layers, strict=True):
            assert layer == pytest.approx(naive, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", ITERATED)
@pytest.mark.parametrize("metrics", [("kl", "cosine"), ("cosine",)], ids=["exact", "cheap"])
def test_the_cost_is_one_full_pass_and_the_layers_above_each_stop(kind, metrics, tokens):
    model = ITERATED[kind]()
    count = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: count.append(1))
    profile_model(model, [tokens], metrics)
    plan, start = model.config.num_iterations, model.config.num_start_evaluations
    wanted = sum(start + r for r in plan)
    if "kl" in metrics:
        for t, r in enumerate(plan):
            wanted += r * sum(start + above for above in plan[t + 1 :])
    assert len(count) == wanted == num_profile_evaluations(identify_model(model, "m"), metrics)


def test_profiling_is_deterministic_and_leaves_the_model_as_it_was(tokens):
    model = make_iiet(num_iterations=[3, 1, 2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(tokens).logits
    first = profile_model(model, [tokens, tokens[:1]])
    assert first == profile_model(model, [tokens, tokens[:1]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(tokens).logits, logits)
    assert model.config.num_iterations == [3, 1, 2]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_models_are_profiled_and_agree_roughly(tokens):
    model = make_iiet(num_iterations=2)
    [wide] = profile_model(model, [tokens])
    [narrow] = profile_model(model.to(torch.bfloat16), [tokens])
    largest = max(abs(score) for layer in wide.scores["kl"] for score in layer)
    for a, b in zip(wide.scores["kl"], narrow.scores["kl"], strict=True):
        assert b == pytest.approx(a, abs=0.2 * largest)


def test_progress_is_told_in_tokens(tokens):
    told = []
    profile_model(make_iiet(num_iterations=1), [tokens, tokens[:1]], ["cosine"], told.append)
    assert told == [34, 17]


@pytest.mark.usefixtures("norms_in_float64")
def test_a_profile_averages_batches_by_their_tokens(tokens):
    model = make_iiet(num_iterations=[0, 2, 1]).double()
    batches = profile_model(model, [tokens, tokens[:1]])
    [alone] = profile_model(model, [torch.cat([tokens, tokens[:1]])])
    profile = make_profile(batches, identify_model(model, "teacher"), DATA, SETTINGS)
    for metric, layers in alone.scores.items():
        for layer, mean in zip(layers, profile.scores[metric], strict=True):
            assert mean == pytest.approx(layer, rel=1e-9)
    assert profile.num_batches == 2
    assert profile.model.name == "teacher"


def made_batches(values, tokens):
    return [BatchScores(n, {"kl": [[value]]}) for value, n in zip(values, tokens, strict=True)]


def one_iteration_identity():
    return identify_model(make_iiet(num_layers=1, num_iterations=1), "m")


def test_the_standard_error_of_equal_batches_is_their_deviation_by_root_n():
    values = [0.1, 0.4, 0.2, 0.7]
    profile = make_profile(made_batches(values, [8] * 4), one_iteration_identity(), DATA, SETTINGS)
    deviation = torch.tensor(values, dtype=torch.float64).std().item()
    assert profile.scores["kl"] == [[pytest.approx(0.35)]]
    assert profile.standard_errors["kl"] == [[pytest.approx(deviation / math.sqrt(4))]]


def test_a_small_last_batch_counts_by_its_tokens():
    profile = make_profile(made_batches([0.2, 0.2, 0.8], [8, 8, 4]), one_iteration_identity(), DATA, SETTINGS)
    assert profile.scores["kl"] == [[pytest.approx(0.32)]]
    spread = 2 * (0.4 * 0.12) ** 2 + (0.2 * 0.48) ** 2
    assert profile.standard_errors["kl"] == [[pytest.approx(math.sqrt(1.5 * spread))]]


def test_one_batch_has_no_standard_error():
    profile = make_profile(made_batches([0.2], [8]), one_iteration_identity(), DATA, SETTINGS)
    assert profile.standard_errors is None


def test_a_model_without_iterations_is_refused(tokens):
    shape = {k: v for k, v in SHAPE.items() if k != "num_layers"}
    llama = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2)).eval()
    with pytest.raises(InputError, match="found type 'llama' and no iterations"):
        profile_model(llama, [tokens])
    with pytest.raises(InputError, match="found type 'iiet' and no iterations"):
        profile_model(make_iiet(num_iterations=0), [tokens])


def test_nan_logits_name_the_batch(tokens):
    model = make_iiet(num_iterations=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    model.lm_head.weight = torch.nn.Parameter(torch.ones(97, 32))
    clean = torch.where(tokens == 50, 51, tokens)
    with pytest.raises(InputError, match="batch 2: the model's logits hold NaN or infinity"):
        profile_model(model, [clean, torch.full((1, 4), 50)])


def test_nan_of_one_stop_names_batch_layer_and_stop(tokens, monkeypatch):
    model = make_iiet(num_iterations=1)
    run_layers = model.model.run_layers

    def spoilt(hidden_states, history, start, **context):
        return run_layers(hidden_states, history, start, **context) * (float("inf") if start == 2 else 1)

    monkeypatch.setattr(model.model, "run_layers", spoilt)
    with pytest.raises(InputError, match="batch 1: layer 2 stopped after 0 iterations: the model's logits"):
        profile_model(model, [tokens])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches: found none"),
        (
            [torch.zeros(4, dtype=torch.int64)],
            r"batch 1: found torch.int64 of shape \(4,\); accepted: token ids",
        ),
        ([torch.zeros(1, 4)], "batch 1: found torch.float32"),
        ([torch.zeros(0, 4, dtype=torch.int64)], r"batch 1: found torch.int64 of shape \(0, 4\)"),
        ([torch.full((1, 4), 97)], "batch 1: found token id 97; accepted: 0 to 96"),
        ([torch.full((1, 4), -100)], "batch 1: found token id -100"),
    ],
)
def test_batches_that_the_model_cannot_read_are_refused(batches, message):
    with pytest.raises(InputError, match=message):
        profile_model(make_iiet(num_iterations=1), batches)


def test_a_model_in_training_mode_is_refused(tokens):
    with pytest.raises(InputError, match="model: found in training mode"):
        profile_model(make_iiet(num_iterations=1).train(), [tokens])


@pytest.mark.parametrize(
    ("metrics", "message"), [(["loss"], "metric: found 'loss'; accepted: kl, cosine"), ([], "found 'none'")]
)
def test_unknown_metrics_and_none_are_refused(metrics, message, tokens):
    with pytest.raises(InputError, match=message):
        profile_model(make_iiet(num_iterations=1), [tokens], metrics)


def test_blocks_are_drawn_from_the_whole_corpus_and_sorted():
    drawn = sample_blocks(1000, 16, 16 * 50 + 3, seed=1)
    assert len(drawn) == len(set(drawn)) == 50
    assert drawn == sorted(drawn)
    assert drawn[0] < 200
    assert drawn[-1] >= 800
    assert drawn == sample_blocks(1000, 16, 16 * 50 + 3, seed=1)
    assert drawn != sample_blocks(1000, 16, 16 * 50 + 3, seed=2)
    assert sample_blocks(3, 16, 1 << 20, seed=1) == sample_blocks(3, 16, None, seed=1) == [0, 1, 2]


def test_too_few_tokens_for_one_block_are_refused():
    with pytest.raises(InputError, match="max_tokens: found 15; accepted: at least one block of 16"):
        sample_blocks(10, 16, 15, seed=0)


def test_batches_hold_the_blocks_drawn_and_the_last_may_be_smaller():
    blocks = [{"input_ids": torch.full((4,), n)} for n in range(10)]
    batches = list(calibration_batches(blocks, [1, 4, 9], 2))
    assert [batch.tolist() for batch in batches] == [[[1] * 4, [4] * 4], [[9] * 4]]
    with pytest.raises(InputError, match="batch_size: found 0"):
        list(calibration_batches(blocks, [1], 0))


def test_every_variant_of_the_models_can_be_profiled(tokens):
    for make in VARIANTS.values():
        [found] = profile_model(make(), [tokens])
        assert all(
            math.isfinite(score) for layers in found.scores.values() for row in layers for score in row
        )
