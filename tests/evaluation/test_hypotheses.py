"""`iiad evaluate --metrics`: texts of sources, as the stock generate() makes them, scored against the targets."""

import json

import numpy as np
import pytest
import torch

from iiad.checkpoints import save_checkpoint
from iiad.data import load_tokenizer, pack, resolve_inputs
from iiad.evaluation.hypotheses import Hypotheses, Texts
from iiad.evaluation.quality_artefact import EvaluationResult, EvaluationSettings
from iiad.evaluation.text_metrics import score_texts
from tests.helpers import make_seq2seq, refused

PAIRS = [("def push(self", "def pop(self"), ("return x", "x"), ("import names", "names"), ("class A:", "A")]
SETTINGS = EvaluationSettings(block_size=40, batch_size=3, max_tokens=None, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tokenizer(folders):
    return load_tokenizer(folders.teacher)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in PAIRS))
    return path


@pytest.fixture(scope="module")
def translator(tokenizer):
    return make_seq2seq(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=None)


@pytest.fixture(scope="module")
def translator_folder(translator, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "translator"
    save_checkpoint(translator, folder, tokenizer=tokenizer)
    return folder


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


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "{teacher} --data {text} --metrics bleu",
            "metrics: expected pairs of source and target to make texts of",
        ),
        ("{teacher} --data {pairs}", "teacher: expected an encoder-decoder, as pairs are given, got a iiet"),
        (
            "{translator} --data {text}",
            "translator: expected a causal model, as text or labelled rows are given, got a iiet_seq2seq",
        ),
        ("{teacher} --data {pairs} --metrics meteor", "metrics: expected bleu, chrf, rouge, got meteor"),
        ("{teacher} --data {text} --num-beams 2", "--num-beams: expected none without --metrics, got 2"),
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
def test_bad_input_is_one_line_and_exit_code_2(folders, translator_folder, data, iiad, command, words):
    given = {**vars(folders), "translator": translator_folder, "pairs": data}
    code, out, errors = iiad("evaluate", *command.format(**given).split())
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert words in errors
