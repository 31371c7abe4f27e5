"""Scores against a naive version that truncates the whole model for every stop."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iiad.artefacts import DataIdentity
from iiad.checkpoints import identify_model
from iiad.errors import InputError
from iiad.evaluation.activation_memory import peak_bytes
from iiad.influence import (
    METRICS,
    BatchRecord,
    Profile,
    ProfileSettings,
    calibration_batches,
    num_profile_evaluations,
    profile_model,
    sample_blocks,
)
from iiad.influence.pass_memory import MemoryPlan, free_bytes
from tests.helpers import SHAPE, VARIANTS, make_iiet, make_pcformer
from tests.influence.naive import TruncatedRuns, naive_gradients, naive_nll, naive_scores

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


def flat(record):
    return [
        score
        for scores in (record.scores, record.stages)
        for layers in scores.values()
        for row in layers
        for score in row
    ]


def require_close(found, wanted):
    for metric, layers in wanted.items():
        for layer, naive in zip(found[metric], layers, strict=True):
            assert layer == pytest.approx(naive, rel=1e-8, abs=1e-12), metric


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", ITERATED)
def test_every_metric_equals_that_of_the_whole_model_run_again_for_every_stop(kind, tokens):
    model = ITERATED[kind]().double()
    gradients = naive_gradients(model, tokens)
    with torch.no_grad():
        runs = TruncatedRuns(model, tokens)
        wanted = naive_scores(runs.stops(), gradients, tokens)
        loss = naive_nll(model(tokens).logits, tokens)
    [found] = profile_model(model, [tokens])
    assert found.num_tokens == tokens.numel()
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert list(found.scores) == list(METRICS)
    assert [len(layer) for layer in found.scores["kl"]] == model.config.num_iterations
    require_close(found.scores, wanted)


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", ["pcformer-rk2", "pcformer-rk4"])
def test_the_stages_of_a_predictor_are_scored_as_the_whole_model_with_it_truncated(kind, tokens):
    model = ITERATED[kind]().double()
    gradients = naive_gradients(model, tokens)
    with torch.no_grad():
        wanted = naive_scores(TruncatedRuns(model, tokens).stages(), gradients, tokens)
    [found] = profile_model(model, [tokens])
    assert [len(layer) for layer in found.stages["kl"]] == [model.config.predictor_order - 1] * 3
    require_close(found.stages, wanted)
    assert profile_model(make_iiet(), [tokens])[0].stages == {}


def test_the_scores_of_a_layer_add_up_to_what_its_iterations_are_worth(tokens):
    model = make_iiet(num_iterations=3)
    [found] = profile_model(model, [tokens], ["kl"])
    with torch.no_grad():
        full = model(tokens).logits.log_softmax(-1)
        model.set_num_iterations([3, 0, 3])
        stopped = model(tokens).logits.log_softmax(-1)
    assert sum(found.scores["kl"][1]) == pytest.approx(
        (full.exp() * (full - stopped)).sum(-1).mean().item(), rel=1e-4
    )


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", ITERATED)
def test_scores_do_not_depend_on_how_much_is_run_at_a_time(kind, tokens, monkeypatch):
    model = ITERATED[kind]().double()
    found = []
    for size in (0, 1, 2, 3, 5, 1000):
        monkeypatch.setattr(MemoryPlan, "num_kept_layers", lambda *_, n=size: n)
        size = max(1, size)
        monkeypatch.setattr(MemoryPlan, "num_stops", lambda *_, n=size: n)
        monkeypatch.setattr(MemoryPlan, "num_backward_rows", lambda *_, n=size: n)
        monkeypatch.setattr(MemoryPlan, "num_stopped_rows", lambda *_, n=size: min(n, 2))
        [record] = profile_model(model, [tokens])
        found.append(flat(record))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-10, abs=1e-13)


def test_what_is_run_at_a_time_follows_the_memory_and_is_never_zero():
    model = make_iiet(num_iterations=3)
    plans = [MemoryPlan.of(model, 4, 17, memory) for memory in (0, 10**5, 10**6, 10**7)]
    found = [
        [plan.num_stops(2) for plan in plans],
        [plan.num_backward_rows() for plan in plans],
        [plan.num_stopped_rows() for plan in plans],
    ]
    for sizes in found:
        assert sizes[0] == 1
        assert sizes == sorted(sizes)
        assert sizes[-1] > sizes[0]
    assert found[1][-1] == found[2][-1] == 4
    assert [plan.num_kept_layers() for plan in plans] == [0, 0, 3, 3]
    assert MemoryPlan.of(model, 4, 17).num_stops(2) >= 1
    assert free_bytes(torch.device("cpu")) > 2**20


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vocab_size": 8192},
        pytest.param({"num_layers": 9, "vocab_size": 4096}, marks=pytest.mark.slow),
        pytest.param({"history": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_profile_takes_at_most_twice_the_memory_of_the_models_own_forward_pass(fields):
    shape = {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_layers": 6,
        "vocab_size": 2048,
        "num_iterations": 3,
    }
    model = make_iiet(**{**shape, "max_position_embeddings": 256, **fields})
    batch = torch.randint(model.config.vocab_size, (4, 64))
    with torch.no_grad():
        forward = peak_bytes(lambda: model(batch, use_cache=False).logits)
    assert peak_bytes(lambda: profile_model(model, [batch])) <= 2 * forward


def test_stops_are_run_as_one_batch_where_memory_allows(tokens):
    model = make_iiet(num_iterations=3)
    rows = []
    model.model.layers[2].mlp.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    profile_model(model, [tokens], ["kl"], memory=10**9)
    assert sorted(rows) == [2] * 4 + [12] * 4  # the full pass, and six stops of two blocks at once
    rows.clear()
    profile_model(model, [tokens], ["kl"], memory=0)
    assert rows == [2] * 4 + [1] * 56  # layer 3 again, whose iterates were not kept, and six stops row by row


class LargestOutput(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the tensors of at least so many numbers that operations make."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.count = numbers, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        views = {t.data_ptr() for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)}
        self.count += sum(
            isinstance(t, torch.Tensor) and t.numel() >= self.numbers and t.data_ptr() not in views
            for t in made
        )
        return result


def test_no_copy_of_all_logits_is_made_beside_the_logits(tokens, monkeypatch):
    model = make_iiet(vocab_size=5000, num_iterations=2)
    monkeypatch.setattr("iiad.influence.outputs.CHUNK_NUMBERS", {"cpu": 5000 * 8})
    with LargestOutput(tokens.numel() * 5000) as counter:
        profile_model(model, [tokens])
    assert counter.count == 1


@pytest.mark.parametrize("kind", ITERATED)
@pytest.mark.parametrize("metrics", [tuple(METRICS), ("kl", "cosine"), ("taylor",), ("cosine",)], ids=str)
def test_the_cost_is_what_is_counted_beforehand(kind, metrics, tokens):
    model = ITERATED[kind]()
    rows = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    profile_model(model, [tokens], metrics, memory=10**9)
    plan, start = model.config.num_iterations, model.config.num_start_evaluations
    full = wanted = sum(start + r for r in plan)
    wanted += sum(stage + r for r in plan for stage in range(1, start))
    if "kl" in metrics:
        for t, r in enumerate(plan):
            wanted += (r + start - 1) * sum(start + above for above in plan[t + 1 :])
    wanted += full if "taylor" in metrics else 0
    assert sum(rows) / len(tokens) == wanted == num_profile_evaluations(identify_model(model, "m"), metrics)


def test_exact_scores_of_twelve_layers_cost_less_than_half_of_a_pass_for_every_stop():
    identity = identify_model(make_iiet(num_layers=12, num_iterations=3), "m")
    full = identity.num_evaluations
    assert num_profile_evaluations(identity, ["kl", "loss"]) <= (12 * 3 + 1) * full / 2


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
    profile = Profile.of(batches, identify_model(model, "teacher"), [DATA], SETTINGS)
    for metric, layers in alone.scores.items():
        for layer, mean in zip(layers, profile.scores[metric], strict=True):
            assert mean == pytest.approx(layer, rel=1e-9)
    assert profile.loss == pytest.approx(alone.loss, rel=1e-12)
    assert [part.residuals for part in profile.fixed_point] == [
        pytest.approx(part.residuals, rel=1e-9) for part in alone.fixed_point
    ]
    assert profile.num_tokens == 51
    assert profile.model.name == "teacher"


def profile_of(values, tokens):
    still = [{"residuals": [0.1], "contractions": [], "turns": []}]
    batches = [
        BatchRecord(data=0, num_tokens=n, loss=1.0, scores={"kl": [[value]]}, fixed_point=still)
        for value, n in zip(values, tokens, strict=True)
    ]
    identity = identify_model(make_iiet(num_layers=1, num_iterations=1), "m")
    return Profile.of(batches, identity, [DATA], SETTINGS)


def test_the_standard_error_of_equal_batches_is_their_deviation_by_root_n():
    values = [0.1, 0.4, 0.2, 0.7]
    profile = profile_of(values, [8] * 4)
    deviation = torch.tensor(values, dtype=torch.float64).std().item()
    assert profile.scores["kl"] == [[pytest.approx(0.35)]]
    assert profile.standard_errors["kl"] == [[pytest.approx(deviation / math.sqrt(4))]]


def test_a_small_last_batch_counts_by_its_tokens():
    profile = profile_of([0.2, 0.2, 0.8], [8, 8, 4])
    assert profile.scores["kl"] == [[pytest.approx(0.32)]]
    spread = 2 * (0.4 * 0.12) ** 2 + (0.2 * 0.48) ** 2
    assert profile.standard_errors["kl"] == [[pytest.approx(math.sqrt(1.5 * spread))]]


def test_one_batch_has_no_standard_error():
    assert profile_of([0.2], [8]).standard_errors is None


def test_a_model_without_iterations_is_refused(tokens):
    shape = {k: v for k, v in SHAPE.items() if k != "num_layers"}
    llama = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2)).eval()
    with pytest.raises(InputError, match="found type 'llama' and no iterations"):
        profile_model(llama, [tokens])
    with pytest.raises(InputError, match="found type 'iiet' and no iterations"):
        profile_model(make_iiet(num_iterations=0), [tokens])


def test_nan_states_name_the_batch_and_the_layer(tokens):
    model = make_iiet(num_iterations=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    model.lm_head.weight = torch.nn.Parameter(torch.ones(97, 32))
    clean = torch.where(tokens == 50, 51, tokens)
    with pytest.raises(InputError, match="batch 2: the state of layer 1 holds NaN or infinity"):
        profile_model(model, [clean, torch.full((1, 4), 50)])


def test_nan_of_one_stop_names_batch_and_layer(tokens, monkeypatch):
    model = make_iiet(num_iterations=1)
    run_layer = model.model.run_layer

    def spoilt(layer, hidden_states, history, **context):
        hidden_states, history = run_layer(layer, hidden_states, history, **context)
        return hidden_states * float("inf"), history

    monkeypatch.setattr(model.model, "run_layer", spoilt)
    with pytest.raises(InputError, match="batch 1: the model stopped early in layer 2: its logits hold NaN"):
        profile_model(model, [tokens], memory=0)


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
    ("metrics", "message"),
    [
        (["kl", "magic"], "metric: found 'magic'; accepted: kl, loss, taylor, cosine, relative_l2"),
        ([], "found 'none'"),
    ],
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


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ITERATED)
def test_on_a_gpu_scores_are_those_of_the_cpu(kind, tokens):
    model = ITERATED[kind]()
    [wanted] = profile_model(model, [tokens])
    [found] = profile_model(model.to("cuda"), [tokens])
    assert flat(found) == pytest.approx(flat(wanted), rel=2e-3, abs=1e-5)
    for memory in (0, 10**9):
        [other] = profile_model(model, [tokens], memory=memory)
        assert flat(other) == pytest.approx(flat(found), rel=1e-3, abs=1e-6)
