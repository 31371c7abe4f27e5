"""Scores against a naive version that truncates the whole model for every stop."""

import math

import numpy as np
import pytest
import torch

from iiad.checkpoints import identify_model
from iiad.data import TokenBlocks, TokenCorpus
from iiad.data.blocks import sample_blocks
from iiad.evaluation.activation_memory import peak_bytes
from iiad.identities import DataIdentity
from iiad.influence import (
    METRICS,
    BatchRecord,
    Profile,
    ProfileSettings,
    num_profile_evaluations,
    profile_batch,
)
from iiad.influence.calibration import CalibrationSet, numbered_batches
from iiad.influence.profiler import sequences_at_once
from tests.helpers import VARIANTS, make_iiet, make_llama, make_pcformer, refused
from tests.influence.naive import TruncatedRuns, naive_gradients, naive_nll, naive_scores

DATA = DataIdentity(names=["made.txt"], fingerprint="d" * 64, num_tokens=34)
SETTINGS = ProfileSettings(block_size=17, batch_size=2, max_tokens=None, seed=0, dtype="float64")
AMPLE = 10**9
"""Memory for all sequences at once; with 0 they are run one by one."""

ITERATED = {
    "history": lambda: make_iiet(num_iterations=[2, 0, 3]),
    "plain": lambda: make_iiet(num_iterations=[2, 1, 3], history=False),
    "relaxed": lambda: make_iiet(num_iterations=2, history=False, relaxation=True),
    "pcformer-rk2": lambda: make_pcformer(),
    "pcformer-rk4": lambda: make_pcformer(predictor_order=4, num_iterations=[1, 2, 0]),
}


def flat(record):
    layers = [layer for scores in (record.scores, record.stages) for of in scores.values() for layer in of]
    return [score for layer in layers for score in layer]


def require_close(found, wanted):
    for metric, layers in wanted.items():
        for layer, naive in zip(found[metric], layers, strict=True):
            assert layer == pytest.approx(naive, rel=1e-8, abs=1e-12), metric


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", ITERATED)
def test_every_metric_equals_that_of_the_whole_model_run_again_for_every_stop(kind, tokens):
    tokens = tokens[:, :9]
    model = ITERATED[kind]().double()
    gradients, num_stages = naive_gradients(model, tokens), model.config.num_start_evaluations
    with torch.no_grad():
        runs = TruncatedRuns(model, tokens)
        wanted = naive_scores(runs.stops(), gradients, tokens)
        stages = naive_scores(runs.stages(), gradients, tokens) if num_stages > 1 else {}
        loss = naive_nll(model(tokens).logits, tokens)
    found = profile_batch(model, tokens, memory=AMPLE)
    assert found.num_tokens == tokens.numel()
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert list(found.scores) == list(METRICS)
    assert [len(layer) for layer in found.scores["kl"]] == model.config.iterations
    require_close(found.scores, wanted)
    assert list(found.stages) == (list(METRICS) if num_stages > 1 else [])
    require_close(found.stages, stages)
    for memory in (0, None):  # one sequence after the other
        other = profile_batch(model, tokens, memory=memory)
        assert flat(other) == pytest.approx(flat(found), rel=1e-10, abs=1e-13)


def test_sequences_at_once_follow_the_memory_and_are_never_none():
    model = make_iiet(num_iterations=3)
    found = [sequences_at_once(model, 4, [17], memory) for memory in (0, 10**5, 6 * 10**5, 10**7)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1, 4)
    assert 1 < found[2] < 4
    assert 1 <= sequences_at_once(model, 4, [17]) <= 4


@pytest.mark.parametrize("metrics", [list(METRICS), ["cosine"], ["taylor"], ["kl"]])
@pytest.mark.parametrize("memory", [0, None])
def test_the_shares_of_a_batchs_work_come_with_each_layer_and_are_the_whole(variant, metrics, memory):
    shares = []
    tokens = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(2))
    profile_batch(variant, tokens, metrics, memory=memory, advance=shares.append)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    passes = 1 if metrics == ["cosine"] else 1 + (3 if memory == 0 else 1)
    assert len(shares) >= passes * variant.config.num_layers


SMALL = {"hidden_size": 64, "intermediate_size": 176, "num_layers": 2, "num_iterations": 3}


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 2048},
        pytest.param({"vocab_size": 8192}, marks=pytest.mark.slow),
        pytest.param({"vocab_size": 4096, "num_layers": 9}, marks=pytest.mark.slow),
        pytest.param({"vocab_size": 2048, "history": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_profile_takes_at_most_twice_the_memory_of_the_models_own_forward_pass(fields):
    model = make_iiet(**{**SMALL, **fields})
    batch = torch.randint(model.config.vocab_size, (4, 32))
    with torch.no_grad():
        forward = peak_bytes(lambda: model(batch, use_cache=False).logits)
    assert peak_bytes(lambda: profile_batch(model, batch)) <= 2 * forward


def test_a_profile_takes_the_memory_that_it_is_given_and_no_more():
    model = make_iiet(**SMALL, vocab_size=512)
    batch = torch.randint(512, (4, 32))
    peaks = []
    for memory in (2 * 10**6, AMPLE):
        peaks.append(peak_bytes(lambda memory=memory: profile_batch(model, batch, memory=memory)))
        assert peaks[-1] <= memory
    assert peaks[0] < peaks[-1]


def count_sequences(layer):
    """Sequences of each evaluation of a layer, as they run."""
    counts = []
    layer.mlp.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    return counts


def test_the_stops_of_a_layer_are_run_as_one_batch_of_as_many_sequences_as_memory_allows(tokens):
    model = make_iiet(num_iterations=3)
    counts = count_sequences(model.model.layers[2])
    profile_batch(model, tokens, ["kl"], memory=AMPLE)
    # The full pass, layer 3 again, and three stops of two sequences for each of the layers below.
    assert counts == [2] * 4 + [2] * 4 + [6] * 4 * 2
    counts.clear()
    profile_batch(model, tokens, ["kl"], memory=0)
    assert counts == [2] * 4 + ([1] * 4 + [3] * 4 * 2) * 2


def limit_sequences(model, most):
    """Let memory run out where more sequences than these are run."""

    def fail(_, inputs):
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")

    model.model.layers[2].mlp.register_forward_pre_hook(fail)


def test_where_memory_runs_out_half_as_many_sequences_are_run_down_to_one(tokens):
    batch = tokens.repeat(2, 1)
    model = make_iiet(num_iterations=3)
    wanted = profile_batch(model, batch, memory=AMPLE)
    limit_sequences(model, 6)  # stops of three iterations: two sequences
    found = profile_batch(model, batch, memory=AMPLE)
    assert flat(found) == pytest.approx(flat(wanted), rel=1e-4, abs=1e-7)
    model = make_iiet(num_iterations=3)
    limit_sequences(model, 2)
    with pytest.raises(torch.OutOfMemoryError):
        profile_batch(model, tokens, memory=AMPLE)


@pytest.mark.parametrize("kind", ITERATED)
def test_the_cost_is_what_is_counted_beforehand(kind, tokens):
    model = ITERATED[kind]()
    counts = [count_sequences(layer) for layer in model.model.layers]
    plan, start = model.config.iterations, model.config.num_start_evaluations
    one_pass = sum(start + r for r in plan) + sum(stage + r for r in plan for stage in range(1, start))
    stops = sum((r + start - 1) * sum(start + above for above in plan[t + 1 :]) for t, r in enumerate(plan))
    for metrics, wanted in (
        (["kl", "taylor", "cosine"], 2 * one_pass + stops),
        (["loss"], 2 * one_pass + stops),
        (["taylor"], 2 * one_pass),
        (["cosine"], one_pass),
    ):
        for count in counts:
            count.clear()
        profile_batch(model, tokens[:, :3], metrics, memory=0)
        assert sum(map(sum, counts)) / len(tokens) == wanted
        assert num_profile_evaluations(identify_model(model, "m"), metrics) == wanted


def test_exact_scores_of_twelve_layers_cost_less_than_half_of_a_pass_for_every_stop():
    identity = identify_model(make_iiet(num_layers=12, num_iterations=3), "m")
    full = identity.num_evaluations
    assert num_profile_evaluations(identity, ["kl", "loss"]) <= (12 * 3 + 1) * full / 2


def test_profiling_is_deterministic_and_leaves_the_model_as_it_was(tokens):
    model = make_iiet(num_iterations=[3, 1, 2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(tokens).logits
    assert profile_batch(model, tokens) == profile_batch(model, tokens)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(tokens).logits, logits)
    assert model.config.num_iterations == [3, 1, 2]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_models_are_profiled_and_agree_roughly(tokens):
    model = make_iiet(num_iterations=2)
    wide = profile_batch(model, tokens)
    narrow = profile_batch(model.to(torch.bfloat16), tokens)
    largest = max(abs(score) for layer in wide.scores["kl"] for score in layer)
    for a, b in zip(wide.scores["kl"], narrow.scores["kl"], strict=True):
        assert b == pytest.approx(a, abs=0.2 * largest)


@pytest.mark.usefixtures("norms_in_float64")
def test_a_profile_averages_batches_by_their_tokens(tokens):
    model = make_iiet(num_iterations=[0, 2, 1]).double()
    batches = [profile_batch(model, tokens), profile_batch(model, tokens[:1])]
    alone = profile_batch(model, torch.cat([tokens, tokens[:1]]))
    profile = Profile.of(batches, identify_model(model, "teacher"), [DATA], SETTINGS)
    require_close(profile.scores, alone.scores)
    assert profile.loss == pytest.approx(alone.loss, rel=1e-12)
    for part, whole in zip(profile.fixed_point, alone.fixed_point, strict=True):
        assert part.residuals == pytest.approx(whole.residuals, rel=1e-9)
    assert profile.num_tokens == 51
    assert profile.model.name == "teacher"


@pytest.mark.parametrize(
    ("values", "weights", "mean", "error"),
    [
        ([0.1, 0.4, 0.2, 0.7], [8] * 4, 0.35, math.sqrt(0.07 / 4)),  # their standard deviation / sqrt(4)
        ([0.2, 0.2, 0.8], [8, 8, 4], 0.32, math.sqrt(1.5 * (2 * (0.4 * 0.12) ** 2 + (0.2 * 0.48) ** 2))),
        ([0.2], [8], 0.2, None),
    ],
)
def test_batches_count_by_their_tokens_in_means_and_standard_errors(values, weights, mean, error):
    still = [{"residuals": [0.1], "contractions": [], "turns": []}]
    batches = [
        BatchRecord(data=0, num_tokens=n, loss=1.0, scores={"kl": [[value]]}, fixed_point=still)
        for value, n in zip(values, weights, strict=True)
    ]
    identity = identify_model(make_iiet(num_layers=1, num_iterations=1), "m")
    profile = Profile.of(batches, identity, [DATA], SETTINGS)
    assert profile.scores["kl"] == [[pytest.approx(mean)]]
    errors = profile.standard_errors
    assert (errors and errors["kl"]) == (error and [[pytest.approx(error)]])


def test_a_model_without_iterations_or_in_training_and_unknown_metrics_are_refused(tokens):
    for model, kind in ((make_llama(), "llama"), (make_iiet(num_iterations=0), "iiet")):
        with refused("model: expected an iiet", f"got type '{kind}' and no iterations"):
            profile_batch(model, tokens)
    with refused("model: expected evaluation mode"):
        profile_batch(make_iiet(num_iterations=1).train(), tokens)
    for metrics, got in ((["kl", "magic"], "got 'magic'"), ([], "got 'none'")):
        with refused("metric: expected kl, loss, taylor, cosine, relative_l2, ", got):
            profile_batch(make_iiet(num_iterations=1), tokens, metrics)


def test_nan_states_name_the_batch_and_the_layer():
    model = make_iiet(num_iterations=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    model.lm_head.weight = torch.nn.Parameter(torch.ones(97, 32))
    with refused("batch 2: expected finite states of layer 1, got NaN"):
        profile_batch(model, torch.full((1, 4), 50), where="batch 2")


def test_nan_of_one_stop_names_batch_and_layer(tokens):
    model = make_iiet(num_iterations=1)

    def spoil(_, inputs, output):  # of the stops of both layers below, one sequence at a time
        return output * math.inf if len(inputs[0]) == 1 and counts.count(1) > 2 else output

    counts = count_sequences(model.model.layers[2])
    model.model.layers[2].mlp.register_forward_hook(spoil)
    with refused("batch 1: the model stopped early in layer 2: expected finite logits"):
        profile_batch(model, tokens, ["kl"], memory=0, where="batch 1")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            torch.zeros(4, dtype=torch.int64),
            "expected token ids, int64 or int32 of shape (B, T), got torch.int64",
        ),
        (torch.zeros(1, 4), "got torch.float32 of shape (1, 4)"),
        (torch.zeros(0, 4, dtype=torch.int64), "got torch.int64 of shape (0, 4)"),
        (torch.full((1, 4), 97), "expected token ids from 0 to 96, got 97"),
        (torch.full((1, 4), -100), "expected token ids from 0 to 96, got -100"),
    ],
)
def test_batches_that_the_model_cannot_read_are_refused(batch, message):
    with refused("the batch: ", message):
        profile_batch(make_iiet(num_iterations=1), batch)


def test_blocks_are_drawn_from_the_whole_corpus_and_sorted():
    drawn = sample_blocks(1000, 16, 16 * 50 + 3, seed=1)
    assert len(drawn) == len(set(drawn)) == 50
    assert drawn == sorted(drawn)
    assert drawn[0] < 200
    assert drawn[-1] >= 800
    assert drawn == sample_blocks(1000, 16, 16 * 50 + 3, seed=1)
    assert drawn != sample_blocks(1000, 16, 16 * 50 + 3, seed=2)
    assert sample_blocks(3, 16, 1 << 20, seed=1) == sample_blocks(3, 16, None, seed=1) == [0, 1, 2]

    with refused("max_tokens: expected at least one block of 16, got 15"):
        sample_blocks(10, 16, 15, seed=0)


def test_batches_hold_the_blocks_drawn_and_the_last_of_a_set_may_be_smaller():
    tokens = np.repeat(np.arange(10, dtype=np.uint16), 4)
    blocks = TokenBlocks(TokenCorpus(tokens, 40, 1, 40, "0" * 64, ("a.txt",), 0), 4)
    sets = [CalibrationSet(blocks, indices, DATA) for indices in ([1, 4, 9], [0])]
    batches = [(number, batch["input_ids"].tolist()) for number, batch in numbered_batches(sets, 2)]
    assert batches == [(0, [[1] * 4, [4] * 4]), (0, [[9] * 4]), (1, [[0] * 4])]


@pytest.mark.parametrize(
    "kind", ["shared", "plain-shared", "untied", "pcformer-shared", "pcformer-rk4-fixed"]
)
def test_other_variants_of_the_models_can_be_profiled(kind, tokens):
    assert all(map(math.isfinite, flat(profile_batch(VARIANTS[kind](), tokens[:, :5]))))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ITERATED)
def test_on_a_gpu_scores_are_those_of_the_cpu(kind, tokens):
    model = ITERATED[kind]()
    wanted, found = profile_batch(model, tokens), profile_batch(model.to("cuda"), tokens)
    assert flat(found) == pytest.approx(flat(wanted), rel=2e-3, abs=1e-5)
    for memory in (0, AMPLE):
        other = profile_batch(model, tokens, memory=memory)
        assert flat(other) == pytest.approx(flat(found), rel=1e-3, abs=1e-6)
