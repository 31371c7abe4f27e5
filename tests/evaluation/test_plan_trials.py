"""Plans on the untrained teacher, against the whole model run under each plan."""

import re

import pytest
import torch

from iiad.checkpoints import save_checkpoint
from iiad.data import train_tokenizer
from iiad.evaluation.plan_trials import measure_truncations, verify_plans
from iiad.influence import measure_influence, profile_batch
from iiad.models.layers import IterativeLayer
from iiad.planning import Plan, trade_off
from iiad.planning.verification import Candidate, Verification, candidates
from tests.helpers import VARIANTS, make_iiet, refused
from tests.influence.naive import naive_kl, naive_nll


def text_batch(input_ids):
    return {"input_ids": input_ids, "labels": input_ids}


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("kind", ["history-full", "plain", "pcformer-rk2"])
@torch.no_grad()
def test_what_a_plan_costs_is_that_of_the_whole_model_under_it(kind, tokens):
    tokens = tokens[:, :9]
    model = VARIANTS[kind]().double()
    own = list(model.config.iterations)
    plans = [[max(0, r - 1) for r in own], [0, 0, 0], own, [0, 0, 0]]
    loss, found = measure_truncations(model, [text_batch(tokens)], plans)
    full = model(tokens).logits
    assert loss == pytest.approx(naive_nll(full, tokens), rel=1e-12)
    for plan, harm in zip(plans, found, strict=True):
        model.set_num_iterations(plan)
        logits = model(tokens).logits
        assert harm["kl"] == pytest.approx(naive_kl(full, logits), rel=1e-8, abs=1e-13)
        assert harm["loss"] == pytest.approx(naive_nll(logits, tokens) - loss, rel=1e-8, abs=1e-12)
        assert harm["kl_error"] is harm["loss_error"] is None
    assert (found[2]["kl"], found[2]["loss"]) == (0, 0)


def test_the_model_keeps_its_plan_and_a_plan_that_is_there_twice_is_run_once(tokens):
    model = make_iiet(num_iterations=[2, 1, 0])
    runs = []
    model.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    _, found = measure_truncations(
        model, list(map(text_batch, [tokens, tokens[:1]])), [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    )
    assert found[0] == found[2]
    assert len(runs) == 2 * 3
    assert model.config.num_iterations == [2, 1, 0]
    with pytest.raises(ValueError, match="num_iterations"):
        measure_truncations(model, [text_batch(tokens)], [[3, 0, 0]])
    assert model.config.num_iterations == [2, 1, 0]


def test_a_plan_that_cuts_one_layer_costs_what_its_scores_predict(tokens):
    model = make_iiet(num_iterations=3)
    record = profile_batch(model, tokens, ["kl", "loss"])
    _, [found] = measure_truncations(model, [text_batch(tokens)], [[3, 1, 3]])
    for metric in ("kl", "loss"):
        assert found[metric] == pytest.approx(sum(record.scores[metric][1][1:]), rel=1e-3, abs=1e-6)


def test_several_batches_have_standard_errors_and_none_are_refused(tokens):
    _, [found] = measure_truncations(make_iiet(), map(text_batch, [tokens[:1], tokens[1:]]), [[0, 0, 0]])
    assert min(found["kl_error"], found["loss_error"]) > 0
    with refused("batches: expected at least one, got none"):
        measure_truncations(make_iiet(), [], [[0, 0, 0]])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A teacher's folder, a text and its profile."""
    folder = tmp_path_factory.mktemp("verified")
    text = "".join(f"def number_{n}():\n    return {n}\n\n" for n in range(400))
    (folder / "text.txt").write_text(text)
    tokenizer = train_tokenizer([text], vocab_size=300)
    for name, fields in (("model", {}), ("other", {"rms_norm_eps": 1e-5})):
        model = make_iiet(vocab_size=300, num_iterations=[2, 0, 3], max_position_embeddings=32, **fields)
        save_checkpoint(model, folder / name, tokenizer=tokenizer)
    options = {"max_tokens": 320, "cache_dir": folder / "cache", "metrics": ["kl", "loss", "cosine"]}
    return folder, measure_influence(folder / "model", [str(folder / "text.txt")], **options)


def verify(world, plans, model="model", metric="kl"):
    folder, profile = world
    text = [str(folder / "text.txt")]
    return verify_plans(folder / model, text, profile, metric, plans, cache_dir=folder / "cache")


def explicit(*num_iterations):
    return Candidate(kind="plan", name="plan", num_iterations=list(num_iterations))


def test_a_verification_holds_every_kind_of_plan_and_comes_back_from_its_file(world, tmp_path):
    _, profile = world
    plans = candidates(profile, trade_off(profile), [1, 0, 1], num_random=3)
    made = verify(world, plans)
    assert made.plans[0].num_iterations == [1, 0, 1]
    assert {plan.kind for plan in made.plans} >= {"plan", "threshold", "metric", "baseline"}
    ruled = [plan.num_iterations for plan in made.plans if plan.kind == "threshold"]
    assert not [plan for plan in made.plans if plan.kind == "front" and plan.num_iterations in ruled]
    assert {plan.name for plan in made.plans if plan.kind == "metric"} == {"by loss", "by cosine"}
    assert made.settings.max_tokens == profile.settings.max_tokens
    assert made.model == profile.model
    for plan in made.plans:
        dropped = [layer[r:] for layer, r in zip(profile.scores["kl"], plan.num_iterations, strict=True)]
        assert plan.predicted == pytest.approx(sum(map(sum, dropped)))
        assert plan.overhead_cut == pytest.approx(1 - sum(plan.num_iterations) / 5)
        assert plan.kl > 0
    made.save(tmp_path / "verification.json")
    assert Verification.load(tmp_path / "verification.json") == made


@pytest.mark.parametrize(("metric", "tolerance"), [("kl", 1e-4), ("loss", 1e-3)])
def test_on_the_profiles_own_blocks_a_cut_of_one_layer_costs_what_was_predicted(world, metric, tolerance):
    [found] = verify(world, [explicit(2, 0, 1)], metric=metric).plans
    assert getattr(found, metric) == pytest.approx(found.predicted, rel=tolerance)


def test_another_model_than_the_profiled_one_is_refused(world):
    with refused("model: expected the one that was profiled"):
        verify(world, [explicit(1, 0, 1)], model="other")


def test_where_memory_runs_out_the_sizes_and_what_helps_are_told(world, monkeypatch):
    evaluate = IterativeLayer.evaluate

    def fail_to_allocate(layer, point, *args, **kwargs):
        if point.shape[1] <= 2:  # so many tokens are tried when a model is loaded
            return evaluate(layer, point, *args, **kwargs)
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."
        )

    folder, _ = world
    monkeypatch.setattr(IterativeLayer, "evaluate", fail_to_allocate)
    size = "out of memory, asked for 4.0 GiB more; batch 8 x 32 tokens, 8 evaluations, weights of "
    helps = "; what helps: a smaller batch, shorter blocks or bfloat16"
    text = [str(folder / "text.txt")]
    for what, run in (
        ("verifying", lambda: verify(world, [explicit(1, 0, 1)])),
        ("profiling", lambda: measure_influence(folder / "model", text, cache_dir=folder / "cache")),
    ):
        with refused(f"{what} model on cpu: {size}", helps):
            run()


def test_candidates_without_a_plan_compare_at_the_middle_of_the_curve(world):
    _, profile = world
    found = candidates(profile, trade_off(profile), num_points=3, num_random=2)
    assert found[0].kind == "threshold"
    assert sum(candidate.kind == "threshold" for candidate in found) <= 3
    counts = {sum(candidate.num_iterations) for candidate in found if candidate.kind == "baseline"}
    assert len(counts) == 1
    assert profile.model.num_iterations not in [candidate.num_iterations for candidate in found]


@pytest.fixture
def plan_command(world, tmp_path, monkeypatch, iiad):
    """`iiad plan` on the world's profile: exit code, stdout, stderr."""
    folder, profile = world
    monkeypatch.setenv("IIAD_CACHE", str(folder / "cache"))
    profile.save(tmp_path / "profile.json")
    return lambda *arguments: iiad("plan", tmp_path / "profile.json", *arguments)


def test_the_command_verifies_draws_and_writes(plan_command, world, tmp_path):
    verify = ["--verify", world[0] / "model", "--data", world[0] / "text.txt", "--max-tokens", 320]
    outputs = ["--output", tmp_path / "plan.json", "--plot", tmp_path / "pictures"]
    verify += ["--verification", tmp_path / "v.json"]
    _, shown, _ = plan_command("--overhead-cut", 0.5, *outputs, *verify)
    assert "chosen without influence" in shown
    found = Verification.load(tmp_path / "v.json")
    assert found.plans[0].kind == "plan"
    assert found.plans[0].num_iterations == Plan.load(tmp_path / "plan.json").num_iterations
    assert sum(part.num_tokens for part in found.data) == 320
    names = {"curve.png", "curve.svg", "verification.png", "verification.svg"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names


def test_extrapolated_plans_are_verified_beside_the_plan_without(plan_command, world, tmp_path):
    verify = ["--verify", world[0] / "model", "--data", world[0] / "text.txt", "--max-tokens", 64]
    outputs = ["--output", tmp_path / "plan.json", "--verification", tmp_path / "v.json"]
    _, shown, _ = plan_command("--overhead-cut", 0.4, "--pin", "1=1", "--extrapolate", *outputs, *verify)
    first, *_, last = Verification.load(tmp_path / "v.json").plans
    assert first.extrapolation == Plan.load(tmp_path / "plan.json").extrapolation
    assert (last.name, last.num_iterations) == ("plan, not extrapolated", first.num_iterations)
    assert first.kl != last.kl
    assert "plan, not extrapolated" in " ".join(shown.split())


def test_the_curve_is_verified_without_a_plan(plan_command, world):
    verify = ["--verify", world[0] / "model", "--data", world[0] / "text.txt", "--max-tokens", 64]
    shown = plan_command("--curve", *verify)[1]
    assert shown.startswith("Verdict: ")
    assert "points of the threshold's curve" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verify", "owner/model"], "verify: expected --verify and --data together"),
        (["--data", "stdlib"], "verify: expected --verify and --data together"),
        (["--verify", "owner/nowhere", "--data", "nothing.txt"], "nothing.txt"),
        (["--verify", "nowhere", "--data", "stdlib"], "nowhere: no such model folder"),
    ],
)
def test_half_a_verification_is_one_line(arguments, message, plan_command):
    code, _, errors = plan_command("--curve", *arguments)
    [line] = [line for line in errors.splitlines() if line.startswith("iiad: ")]
    assert code == 2
    assert re.search(message, line)
