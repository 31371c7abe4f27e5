"""`iiad evaluate --metrics`: texts of sources, as the stock generate() makes them, scored against the targets."""

import json

import numpy as np
import pytest
import torch

from iiad.checkpoints import load_model
from iiad.data import load_tokenizer, pack, resolve_inputs
from iiad.evaluation import Tasks, evaluate_models
from iiad.evaluation.hypotheses import Hypotheses, Texts
from iiad.evaluation.quality_artefact import EvaluationResult, EvaluationSettings
from iiad.evaluation.text_metrics import score_texts
from tests.helpers import PAIRS, refused

SETTINGS = EvaluationSettings(block_size=40, batch_size=3, max_tokens=None, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tokenizer(pair_folders):
    return load_tokenizer(pair_folders.teacher)


@pytest.fixture(scope="module")
def translator(pair_folders):
    return load_model(pair_folders.teacher, kind="pair")


@pytest.fixture
def data(pair_folders):
    return pair_folders.pairs


def make(translator, tokenizer, data, cache, numbers=(0, 1, 2, 3), **options):
    sources = resolve_inputs([str(data)])
    corpus = pack(sources, tokenizer, cache_dir=cache, progress=False)
    hypotheses = Hypotheses(Texts(["chrf"], **options), sources, np.array(numbers), positions=12)
    for name in ("one", "other"):
        hypotheses.add(translator, tokenizer, corpus, name, SETTINGS)
    return hypotheses


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3, "length_penalty": 2.0}], ids=str)
def test_texts_are_the_stock_generates_from_the_sources_as_trained_on(
    translator, tokenizer, data, tmp_path, options
):
    found = make(translator, tokenizer, data, tmp_path, **options).made
    wanted = []
    for source, _ in PAIRS:
        ids = torch.tensor([[*tokenizer(source)["input_ids"], tokenizer.eos_token_id]])
        made = translator.generate(ids, max_new_tokens=11, do_sample=False, pad_token_id=0, **options)
        wanted.append(tokenizer.decode(made[0], skip_special_tokens=True))
    assert found == [wanted, wanted]
    assert any(wanted)


def test_scores_and_texts_are_kept_under_each_models_name(translator, tokenizer, data, tmp_path):
    output = tmp_path / "out" / "hypotheses.jsonl"
    hypotheses = make(translator, tokenizer, data, tmp_path, numbers=(0, 1, 2), num_beams=2, output=output)
    results = [EvaluationResult.model_construct(label=label, text_metrics={}) for label in ("one", "other")]
    settings, found = hypotheses.score(results)
    targets = [target for _, target in PAIRS[:3]]
    wanted = score_texts(hypotheses.made, targets, ["chrf"])
    assert [result.text_metrics for result in found] == wanted.by_model
    assert (settings.num_texts, settings.num_beams, settings.length_penalty) == (3, 2, 1.0)
    assert (settings.max_new_tokens, settings.signatures) == (11, wanted.signatures)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["source"], row["target"]) for row in rows] == PAIRS[:3]
    assert [row["hypotheses"] for row in rows] == [
        {"one": text, "other": text} for text in hypotheses.made[0]
    ]


def test_a_source_longer_than_the_positions_is_refused(translator, tokenizer, data, tmp_path, monkeypatch):
    monkeypatch.setattr(translator.config, "max_position_embeddings", 4)
    with refused("prompt: expected at most 4 tokens, the model's positions, got"):
        make(translator, tokenizer, data, tmp_path)


def test_an_encoder_decoder_has_no_tasks(pair_folders, data):
    with refused("translator: expected a causal language model, got an encoder-decoder"):
        evaluate_models([pair_folders.teacher], [str(data)], tasks=Tasks(["piqa"]))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "{teacher} --data {text} --metrics bleu",
            "metrics: expected pairs of source and target to make texts of",
        ),
        (
            "{teacher} --data {pairs}",
            "teacher: data: expected text or labelled rows, for a causal model (iiet), got pairs",
        ),
        (
            "{translator} --data {text}",
            "translator: data: expected pairs of source and target, for an encoder-decoder (iiet_seq2seq)",
        ),
        ("{teacher} --data {pairs} --metrics meteor", "metrics: expected bleu, chrf, rouge, got meteor"),
        ("{teacher} --data {text} --num-beams 2", "--num-beams: expected none without --metrics, got 2"),
        (
            "{translator} --data {pairs} --cut-sources",
            "--cut-sources: expected none without --max-source-tokens, got True",
        ),
        (
            "{translator} --data {pairs} --metrics bleu --max-tokens 2",
            "metrics: expected at least 2 texts for an interval, got 1",
        ),
        ("{teacher} --data {text} --hypotheses x", "--hypotheses: expected none without --metrics, got x"),
        (
            "{translator} --data {pairs} --metrics bleu --num-beams 1 --length-penalty 2",
            "length_penalty: expected several beams with it, got 2.0 and 1",
        ),
        (
            "{translator} --data {pairs} --metrics bleu --hypotheses {pairs}",
            "hypotheses: expected",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folders, pair_folders, data, iiad, command, words):
    given = {**vars(folders), "translator": pair_folders.teacher, "pairs": data}
    code, out, errors = iiad("evaluate", *command.format(**given).split())
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert words in errors
