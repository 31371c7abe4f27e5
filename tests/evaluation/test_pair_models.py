"""`iiad evaluate` and `iiad bench` of encoder-decoders: loss by hand, rows under plans, texts, each half's costs."""

import json
import math

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from iiad.checkpoints import load_model, save_checkpoint
from iiad.data import PairLimits, load_tokenizer
from iiad.evaluation import Bench, Evaluation, Texts, bench_models, check_model, evaluate_models
from iiad.evaluation.timing import random_prompts, time_model
from iiad.planning.costs import phase_evaluations, predicted_speedups
from iiad.reporting.bench_tables import bench_table
from iiad.reporting.evaluation_tables import evaluation_table
from tests.helpers import PAIR_BUDGET, PAIR_VARIANTS, PAIRS, printed, refused

QUICK = {"prompt_tokens": 8, "new_tokens": 3, "repeats": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def evaluation(pair_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return evaluate_models(
        [pair_folders.teacher, pair_folders.student],
        [str(pair_folders.pairs)],
        texts=Texts(["bleu", "rouge"], num_beams=2, max_new_tokens=6, output=folder / "hypotheses.jsonl"),
        plan=pair_folders.plan,
        quantize=["int8"],
        batch_size=3,
        cache_dir=folder / "cache",
        device="cpu",
    )


@torch.no_grad()
def score_by_hand(model, tokenizer):
    """Loss and accuracy over all target tokens and their ends, a pair at a time."""
    nll, hits, count = 0.0, 0, 0
    for source, target in PAIRS:
        source, target = (torch.tensor([[*tokenizer(text)["input_ids"], 0]]) for text in (source, target))
        output = model(input_ids=source, labels=target)
        nll += float(output.loss) * target.numel()
        hits += int((output.logits.argmax(-1) == target).sum())
        count += target.numel()
    return nll / count, hits / count, count


def test_loss_and_accuracy_of_every_row_are_those_of_the_model_under_its_plan(evaluation, pair_folders):
    tokenizer = load_tokenizer(pair_folders.teacher)
    teacher, student = (load_model(folder, kind="pair") for folder in pair_folders[:2])
    wanted = [score_by_hand(teacher, tokenizer)]
    teacher.set_num_iterations(PAIR_BUDGET)
    wanted += [score_by_hand(teacher, tokenizer), score_by_hand(student, tokenizer)]
    rows = {row.label: row for row in evaluation.results}
    assert list(rows) == ["translator", "translator, truncated", "translator, int8", "smaller"]
    del rows["translator, int8"]
    for row, (nll, accuracy, count) in zip(rows.values(), wanted, strict=True):
        assert (row.nll, row.accuracy, row.tokens) == (pytest.approx(nll, rel=1e-5), accuracy, count)
    assert [row.model.num_iterations for row in rows.values()] == [[3] * 5, PAIR_BUDGET, PAIR_BUDGET]
    assert rows["translator, truncated"].overhead_cut == 11 / 15
    assert len({row.nll for row in rows.values()}) == 3


def test_every_row_has_scores_of_its_own_texts(evaluation):
    for number, row in enumerate(evaluation.results):
        assert (
            list(row.text_metrics)
            == ["bleu", "rouge1", "rouge2", "rougeL"]
            == list(evaluation.settings.texts.signatures)
        )
        assert all((score.p_value is None) == (number == 0) for score in row.text_metrics.values())
    shown = printed(evaluation_table(evaluation, 160), 160)
    assert "sources and targets of at most 128, 4 texts by 2 beams" in shown
    assert "nrefs:1|bs:1000" in shown


def test_pairs_above_the_limits_are_left_out_of_scores_and_texts(pair_folders, tmp_path):
    tokenizer = load_tokenizer(pair_folders.teacher)
    lengths = [[len(tokenizer(text)["input_ids"]) + 1 for text in pair] for pair in PAIRS]
    most = sorted(source for source, _ in lengths)[2]
    kept = [pair for pair, (source, _) in zip(PAIRS, lengths, strict=True) if source <= most]
    found = evaluate_models(
        [pair_folders.teacher], [str(pair_folders.pairs)], limits=PairLimits(most), cache_dir=tmp_path, device="cpu",
        texts=Texts(["chrf"], num_beams=1, max_new_tokens=3, output=tmp_path / "made.jsonl"),
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "made.jsonl").read_text().splitlines()]
    assert [(row["source"], row["target"]) for row in rows] == kept
    assert 2 <= found.settings.texts.num_texts == len(kept) < len(PAIRS)
    assert found.results[0].tokens == sum(target for source, target in lengths if source <= most)


def test_the_command_evaluates_pairs_and_keeps_texts(pair_folders, tmp_path, iiad):
    output, texts = tmp_path / "evaluation.json", tmp_path / "texts.jsonl"
    arguments = ("evaluate", pair_folders.teacher, "--data", pair_folders.pairs, "--metrics", "bleu", "chrf")
    more = (
        "--num-beams",
        1,
        "--max-new-tokens",
        4,
        "--output",
        output,
        "--hypotheses",
        texts,
        "--device",
        "cpu",
    )
    code, out, _ = iiad(*arguments, *more)
    assert code == 0
    assert "by greedy search" in out
    assert list(Evaluation.load(output).results[0].text_metrics) == ["bleu", "chrf"]
    assert [json.loads(line)["target"] for line in texts.read_text().splitlines()] == [
        pair[1] for pair in PAIRS
    ]


@pytest.mark.parametrize("kind", PAIR_VARIANTS)
def test_the_timed_loop_decodes_what_generate_does_and_counts_the_cache_of_both(kind):
    model, prompts = PAIR_VARIANTS[kind](), random_prompts(2, 7, 97, 0)
    timing = time_model(model, prompts, 5)
    made = model.generate(prompts, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(timing.tokens, made)
    per_slot, config = 2 * 2 * 8 * 4 * 2, model.config  # keys and values, 2 heads of 8, float32, 2 sequences
    assert timing.cache_bytes == per_slot * (5 * config.num_hidden_layers + 7 * config.num_layers)


@pytest.fixture(scope="module")
def bench(pair_folders):
    return bench_models([pair_folders.teacher, pair_folders.student], plan=pair_folders.plan, **QUICK)


def test_a_bench_counts_and_predicts_each_half(bench):
    rows = bench.results
    assert [row.prefill.evaluations_per_token for row in rows] == [12, 4, 4]
    assert [row.decode.evaluations_per_token for row in rows] == [8, 5, 5]
    assert [row.prefill.predicted_speedup for row in rows] == [1, 3, 3]
    assert [row.decode.predicted_speedup for row in rows] == [1, 1.6, 1.6]
    per_slot = 2 * 2 * 8 * 4
    assert [row.cache_bytes for row in rows] == [per_slot * (3 * slots + 8 * 2) for slots in (8, 5, 5)]
    for row in rows:
        for phase in (row.prefill, row.decode):
            assert phase.breakdown.total > phase.breakdown.seconds["attention"] > 0
            assert phase.peak_bytes > 0
        assert row.decode.breakdown.seconds["cache"] > row.prefill.breakdown.seconds["cache"] == 0


def test_a_bench_of_pair_models_names_the_halves(bench, tmp_path):
    bench.save(tmp_path / "bench.json")
    assert Bench.load(tmp_path / "bench.json") == bench
    shown = printed(bench_table(bench, 240), 240)
    words = "batch 1, 8 source tokens|predicted,|encoder|of decoder|decode step|3.00x|1.60x|peak,"
    assert [word for word in words.split("|") if word not in shown] == []
    assert "prefill" not in shown


def test_halves_do_not_compare_with_a_causal_model(bench):
    teacher = bench.results[0].model
    causal = teacher.model_copy(update={"num_encoder_layers": 0})
    assert phase_evaluations(causal) == (20, 20)
    assert predicted_speedups(causal, teacher) == (None, None)


def test_more_tokens_than_positions_are_refused_for_each_half(pair_folders):
    for name in ("prompt_tokens", "new_tokens"):
        with refused(f"{name}: expected at most 128, the max_position_embeddings of", "got 129"):
            bench_models([pair_folders.teacher], **{**QUICK, name: 129})


def test_mixed_kinds_of_models_are_refused(folders, pair_folders):
    with refused("teacher: expected an encoder-decoder, got a causal language model (iiet)"):
        bench_models([pair_folders.teacher, folders.teacher], **QUICK)
    with refused("translator: expected a causal language model, got an encoder-decoder (iiet_seq2seq)"):
        check_model(folders.student, teacher=pair_folders.teacher)


def test_a_bart_is_evaluated_in_bfloat16_and_timed(pair_folders, tmp_path):
    tokenizer = load_tokenizer(pair_folders.teacher)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    save_checkpoint(BartForConditionalGeneration(config), tmp_path / "bart", tokenizer=tokenizer)
    (row,) = evaluate_models(
        [tmp_path / "bart"], [str(pair_folders.pairs)], texts=Texts(["chrf"], num_beams=2, max_new_tokens=4),
        cache_dir=tmp_path, device="cpu", dtype="bfloat16",
    ).results  # fmt: skip
    assert row.nll == pytest.approx(math.log(len(tokenizer)), rel=0.05)
    (row,) = bench_models([tmp_path / "bart"], **QUICK).results
    assert (row.prefill.evaluations_per_token, row.decode.evaluations_per_token) == (3, 2)
    assert row.prefill.breakdown is None
    assert row.cache_bytes == 2 * 2 * 32 * 4 * (3 + 8)
