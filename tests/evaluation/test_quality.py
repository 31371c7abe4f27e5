"""`iiad evaluate`: several models on one text, comparisons with the first, the artefact and its table."""

import math

import pytest
import torch

from iiad.checkpoints import identify_model, label_models, load_identified, load_model, save_checkpoint
from iiad.data import evaluation_windows, load_tokenizer, pack, resolve_inputs
from iiad.evaluation import Evaluation, evaluate_models
from iiad.evaluation.quality_artefact import TaskMetric, TaskResult, TextMetric, TextSettings
from iiad.planning import Plan
from iiad.progress import format_size
from iiad.reporting.evaluation_tables import evaluation_table
from iiad.reporting.tables import format_share, stacked_tables
from iiad.training.scoring import evaluate_model
from tests.helpers import BUDGET, printed


@pytest.fixture(scope="module")
def evaluation(folders, tmp_path_factory):
    return evaluate_models(
        [folders.teacher, folders.student, folders.llama, folders.other_tokenizer],
        [str(folders.text)],
        plan=folders.plan,
        batch_size=3,
        cache_dir=tmp_path_factory.mktemp("cache"),
        device="cpu",
    )


def corpus_of(folder, folders):
    return pack(resolve_inputs([str(folders.text)]), load_tokenizer(folder), progress=False)


def test_rows_come_in_order_with_the_truncated_first_model_second(evaluation):
    plans = {result.label: result.model.num_iterations for result in evaluation.results}
    assert list(plans) == ["teacher", "teacher, truncated", "student", "llama", "other"]
    assert list(plans.values()) == [[3, 3, 3], BUDGET, BUDGET, [0, 0, 0], [1, 1, 1]]
    assert evaluation.settings.block_size == 40  # the least that a model takes
    assert evaluation.settings.dtype == "float32"


def test_the_truncated_row_is_the_teacher_after_set_num_iterations(evaluation, folders):
    model = load_model(folders.teacher)
    model.set_num_iterations(BUDGET)
    wanted = evaluate_model(model, evaluation_windows(corpus_of(folders.teacher, folders), 40, None, 3))
    row = evaluation.results[1]
    assert (row.nll, row.accuracy, row.tokens) == (wanted.nll, wanted.accuracy, wanted.tokens)
    assert row.nll != evaluation.results[0].nll
    assert row.model.fingerprint == evaluation.results[0].model.fingerprint


def test_costs_and_cuts_by_hand(evaluation):
    teacher, truncated, student, llama, _ = evaluation.results
    assert [row.evaluations_per_token for row in (teacher, truncated, student, llama)] == [12, 6, 6, 3]
    per_slot = 2 * 2 * 8 * 4  # keys and values, 2 heads of 8, float32
    assert [row.cache_bytes_per_token for row in (teacher, llama)] == [12 * per_slot, 3 * per_slot]
    assert (teacher.overhead_cut, teacher.compute_cut, teacher.retained) == (0, 0, 1)
    assert 0 < truncated.accuracy != teacher.accuracy
    for row in (truncated, student):
        assert row.overhead_cut == pytest.approx(1 - 3 / 9)
        assert row.compute_cut == pytest.approx(1 - 6 / 12)
        assert row.retained == pytest.approx(row.accuracy / teacher.accuracy)
    assert (llama.overhead_cut, llama.compute_cut) == (1, 0.75)


def test_models_of_different_tokenizers_read_the_same_text(evaluation, folders):
    first, *_, last = evaluation.results
    assert first.data != last.data
    assert last.retained is None
    assert [entry.fingerprint for entry in evaluation.data] == [first.data, last.data]
    for result, folder in ((first, folders.teacher), (last, folders.other_tokenizer)):
        corpus = corpus_of(folder, folders)
        assert corpus.num_bytes == folders.text.stat().st_size
        assert result.tokens == corpus.num_tokens - 1
        wanted = result.nll / math.log(2) * corpus.num_tokens / corpus.num_bytes
        assert result.bits_per_byte == pytest.approx(wanted)


def run(folders, *models, **options):
    return evaluate_models(models or [folders.llama], [str(folders.text)], **{"device": "cpu", **options})


def test_max_tokens_is_recorded_and_prorates_the_bytes(folders):
    corpus, part = corpus_of(folders.llama, folders), run(folders, max_tokens=50)
    assert (part.data[0].num_tokens, part.results[0].tokens) == (50, 49)
    bytes_of_those = 49 * corpus.num_bytes / corpus.num_tokens
    wanted = part.results[0].nll * 49 / math.log(2) / bytes_of_those
    assert part.results[0].bits_per_byte == pytest.approx(wanted)
    assert run(folders, max_tokens=10**6).data[0].num_tokens == corpus.num_tokens


def test_a_first_model_without_iterations_has_no_overhead_to_cut(folders):
    llama, teacher = run(folders, folders.llama, folders.teacher).results
    assert (llama.overhead_cut, teacher.overhead_cut) == (None, None)
    assert teacher.compute_cut == pytest.approx(1 - 12 / 3)


def test_bfloat16_halves_the_cache_and_is_recorded(folders, evaluation):
    rough = run(folders, folders.teacher, dtype="bfloat16", block_size=40)
    assert rough.settings.dtype == "bfloat16"
    assert rough.results[0].cache_bytes_per_token * 2 == evaluation.results[0].cache_bytes_per_token
    assert rough.results[0].nll == pytest.approx(evaluation.results[0].nll, rel=2e-2)


def test_labels_stay_apart(folders):
    assert label_models(["a/x", "a/y", "b/x", "a/x"]) == ["a/x", "y", "b/x", "a/x (2)"]
    labels = [result.label for result in run(folders, folders.llama, folders.llama).results]
    assert labels == [str(folders.llama), f"{folders.llama} (2)"]


def test_stdlib_means_its_validation_split(folders, monkeypatch):
    asked = []

    def resolve(data, split):
        asked.append((data, split))
        return resolve_inputs([str(folders.text)])

    monkeypatch.setattr("iiad.evaluation.quality.resolve_inputs", resolve)
    evaluate_models([folders.llama], ["stdlib"], device="cpu")
    assert asked == [(["stdlib"], "validation")]


def test_a_model_stored_in_bfloat16_is_the_model_that_its_plan_was_made_for(folders, tmp_path):
    stored = load_model(folders.teacher).to(torch.bfloat16)
    save_checkpoint(stored, tmp_path / "half", tokenizer=load_tokenizer(folders.teacher))
    Plan.explicit(BUDGET, identify_model(load_model(tmp_path / "half"), "half")).save(tmp_path / "plan.json")
    rows = run(folders, tmp_path / "half", plan=tmp_path / "plan.json", dtype="float32").results
    assert [row.cache_bytes_per_token for row in rows] == [12 * 2 * 2 * 8 * 4, 6 * 2 * 2 * 8 * 4]


def test_a_cast_model_keeps_its_fingerprint_and_exact_rotary_frequencies(folders):
    model, identity = load_identified(folders.llama, "cpu", "bfloat16", cast=True)
    stored, known = load_identified(folders.llama, "cpu", "float32", cast=True)
    assert identity.fingerprint == known.fingerprint
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.model.rotary_emb.inv_freq, stored.model.rotary_emb.inv_freq)


def test_the_artefact_comes_back_as_it_was(evaluation, tmp_path):
    evaluation.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == evaluation


def test_the_command_prints_a_table_and_writes_the_artefact(folders, tmp_path, iiad):
    output = tmp_path / "evaluation.json"
    arguments = ("evaluate", folders.teacher, folders.student, "--data", folders.text, "--plan", folders.plan)
    code, out, _ = iiad(*arguments, "--output", output, "--device", "cpu", "--max-tokens", 60)
    assert code == 0
    for word in ("teacher, truncated", "overhead", "66.7 %", "retained: accuracy"):
        assert word in out
    assert len(Evaluation.load(output).results) == 3
    code, out, err = iiad(*arguments, "--output", output)
    assert (code, out) == (2, "")
    assert "exists already" in err


def test_scores_of_tasks_are_a_column_a_model_and_need_no_text(evaluation):
    metrics = {"acc": TaskMetric(value=0.625, standard_error=0.125), "perplexity": TaskMetric(value=None)}
    scored = {"tasks": {"choice": TaskResult(version="1", metrics=metrics)}}
    rows = [row.model_copy(update=scored) for row in evaluation.results[:2]]
    settings = evaluation.settings.model_copy(update={"harness": "0.4.13"})
    fields = {"settings": settings, "data": [], "results": rows}
    shown = printed(evaluation_table(evaluation.model_copy(update=fields), 100), 100)
    assert shown.startswith("tasks of lm-eval 0.4.13, float32 on cpu")
    assert shown.count("0.6250 ± 0.1250") == 2
    assert "accuracy\n" not in shown
    assert "evaluations" in shown


def test_scores_of_texts_are_a_column_a_model_with_interval_and_p_value(evaluation):
    score = {"value": 27.125, "low": 26.0, "high": 28.5}
    rows = [
        row.model_copy(update={"text_metrics": {"bleu": TextMetric(**score, p_value=p_value)}})
        for row, p_value in zip(evaluation.results[:2], (None, 0.0312), strict=True)
    ]
    texts = {"num_texts": 1200, "num_beams": 4, "length_penalty": 1.0, "max_new_tokens": 64}
    texts = TextSettings(**texts, signatures={"bleu": "tok:13a|" + 90 * "x"})
    settings = evaluation.settings.model_copy(update={"texts": texts})
    made = evaluation.model_copy(update={"settings": settings, "results": rows})
    shown, narrow = (printed(evaluation_table(made, width), width) for width in (100, 60))
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.replace("\n", "").replace(" ", "").count("x") >= 90
    assert "27.12 ± 1.25" in shown
    assert "27.12 ± 1.25, p 0.031" in shown
    assert "tok:13a" in shown
    assert "1,200 texts by 4 beams" in shown
    assert "p: paired randomization" in shown


def test_a_narrow_terminal_gets_stacked_tables_with_nothing_cut_off(evaluation):
    narrow, wide = (printed(evaluation_table(evaluation, width), width) for width in (80, 200))
    assert wide.count("teacher, truncated") == 1
    assert narrow.count("teacher, truncated") == 2
    cells = [f"{result.bits_per_byte:.4f}" for result in evaluation.results]
    cells += [f"{result.nll:.4f}" for result in evaluation.results]
    assert all(cell in narrow and cell in wide for cell in cells)
    assert max(len(line) for line in narrow.splitlines()) <= 80


def test_a_table_is_split_only_where_it_must_be():
    columns, rows = ["name", "aa", "bb\nbbb"], [["x", "1", "2"]]  # 4 + 2 + 2 + 2 + 3 characters
    assert len(stacked_tables(columns, rows, 13)) == 1
    assert len(stacked_tables(columns, rows, 12)) == 2
    assert len(stacked_tables(columns, rows, 1)) == 2


def test_numbers_are_shown_at_their_precision():
    assert [format_share(None), format_share(0.5512), format_share(0.41237, 2)] == ["-", "55.1 %", "41.24 %"]
    shown = [format_size(size) for size in (512, 1536, 300 * 1024, 5 << 20, 3 << 30)]
    assert shown == ["512 B", "1.5 KiB", "300 KiB", "5.0 MiB", "3.0 GiB"]
