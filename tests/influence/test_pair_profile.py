"""`iiad profile` and `iiad plan` of an encoder-decoder and pairs, from folders and files."""

import json

import pytest

from iiad.checkpoints import save_checkpoint
from iiad.data import train_tokenizer
from iiad.evaluation.plan_trials import verify_plans
from iiad.influence import Profile, measure_influence
from iiad.planning import Plan, candidates, trade_off
from tests.helpers import make_iiet, make_seq2seq, refused

PAIRS = [{"source": f"number {n} of {40 - n}", "target": "ab" * (n % 4) + f" {n}"} for n in range(40)]
TEXT = "".join(f"{pair['source']}\n{pair['target']}\n" for pair in PAIRS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder-decoder and a causal model with their tokenizer, pairs and a text."""
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = train_tokenizer([TEXT], vocab_size=300)
    shape = {"vocab_size": 300, "max_position_embeddings": 64, "num_iterations": [2, 1]}
    save_checkpoint(
        make_seq2seq(**shape, num_encoder_iterations=[1, 0, 2]), folder / "model", tokenizer=tokenizer
    )
    save_checkpoint(make_iiet(**shape, num_layers=2), folder / "causal", tokenizer=tokenizer)
    rows = [json.dumps(pair) for pair in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    long = json.dumps({"source": "number " * 40, "target": "ab"})
    (folder / "long.jsonl").write_text("\n".join([*rows, long]))
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def profile(folder):
    return measure_influence(
        folder / "model", [str(folder / "pairs.jsonl")], batch_size=8, cache_dir=folder / "cache"
    )


def test_both_halves_are_profiled_by_the_command_and_layers_go_by_name(folder, profile, tmp_path, iiad):
    options = ["--data", folder / "pairs.jsonl", "--device", "cpu", "--details"]
    code, shown, _ = iiad("profile", folder / "model", *options, "--output", tmp_path / "profile.json")
    assert code == 0
    assert all(f"{name} " in shown for name in ("encoder 1", "encoder 3", "decoder 2"))
    made = Profile.load(tmp_path / "profile.json")
    assert made.scores == profile.scores
    assert made.model.num_encoder_layers == 3
    assert [len(layer) for layer in made.scores["kl"]] == [1, 0, 2, 2, 1]
    assert made.num_tokens == made.data[0].num_tokens
    bounds = ["--overhead-cut", "0.4", "--pin", "encoder 3=2", "--pin", "decoder 1=0"]
    code, shown, _ = iiad("plan", tmp_path / "profile.json", *bounds, "--output", tmp_path / "plan.json")
    assert code == 0
    assert "encoder 3 at 2, decoder 1 at 0" in " ".join(shown.split())
    plan = Plan.load(tmp_path / "plan.json")
    assert (plan.num_iterations[2], plan.num_iterations[3]) == (2, 0)
    for pin, message in (
        ("3=2", "pin: expected a layer from encoder 1 to decoder 2, got 3"),
        ("decoder 2=2", "pins: expected 0 to 1 for decoder 2, the teacher's, got 2"),
    ):
        code, _, errors = iiad(
            "plan", tmp_path / "profile.json", *bounds[:2], "--pin", pin, "--output", "x.json"
        )
        assert code == 2
        assert message in errors


def test_tokens_drawn_are_those_of_both_sides_and_long_pairs_are_left_out_and_counted(folder, capsys):
    given = ([str(folder / "long.jsonl")],)
    options = {"cache_dir": folder / "cache", "metrics": ["cosine"]}
    found = measure_influence(folder / "model", *given, **options, batch_size=4)
    assert "40 of 41 pairs used; 1 left out" in capsys.readouterr().err
    some = measure_influence(folder / "model", *given, **options, max_tokens=60, batch_size=4)
    assert 0 < some.num_tokens < found.num_tokens / 2
    other = measure_influence(folder / "model", *given, **options, max_tokens=60, batch_size=4, seed=1)
    assert other.scores != some.scores


def test_verified_plans_of_one_cut_iteration_have_their_scores_as_true_loss(folder, profile):
    plans = candidates(profile, trade_off(profile, "kl"), None)
    found = verify_plans(
        folder / "model", [str(folder / "pairs.jsonl")], profile, "kl", plans, cache_dir=folder / "cache"
    )
    assert found.loss == pytest.approx(profile.loss, rel=1e-6)
    single = [plan for plan in found.plans if sum(plan.num_iterations) == 5]
    for plan in single:
        assert plan.kl == pytest.approx(plan.predicted, rel=1e-3, abs=1e-6)
    assert single


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            "model",
            "text.txt",
            "data: expected pairs of source and target, for an encoder-decoder (iiet_seq2seq)",
        ),
        (
            "causal",
            "pairs.jsonl",
            "data: expected text or labelled rows, for a causal model (iiet), got pairs",
        ),
    ],
)
def test_a_model_of_the_other_kind_is_refused(model, data, message, folder):
    with refused(message):
        measure_influence(folder / model, [str(folder / data)], cache_dir=folder / "cache")
