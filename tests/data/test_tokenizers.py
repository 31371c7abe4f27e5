import json

import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from iiad.data import load_tokenizer, tokenizer_fingerprint, train_tokenizer
from iiad.data.tokenizers import END_OF_TEXT
from tests.helpers import refused


@given(text=st.text())
@example(" a , b . c 's")
@example("\r\n\t x\n\n\n    y ")
@example(f"{END_OF_TEXT}\x00\x1c\u00a0\ufeff")
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_same_texts_give_the_same_tokenizer(code, tokenizer):
    again = train_tokenizer(iter([code]), vocab_size=320)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)


def test_one_special_token_begins_ends_and_pads(tokenizer):
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.all_special_tokens == [END_OF_TEXT]
    assert len(tokenizer) == 320


def test_the_smallest_vocabulary_is_every_byte_and_the_end_of_text(code):
    smallest = train_tokenizer([code], 257, context_length=64)
    assert (len(smallest), smallest.model_max_length) == (257, 64)
    with refused("vocab_size: expected at least 257, got 256"):
        train_tokenizer([code], 256)
    with refused("texts: expected at least one document with text"):
        train_tokenizer(["", ""], 300)
    with refused("context_length: expected at least 1, got 0"):
        train_tokenizer([code], 300, context_length=0)


def test_indentation_leaves_the_last_space_to_the_word():
    tokenizer = train_tokenizer(["\n        return x\n    return y\nreturn z"] * 9, 400)
    tokens = tokenizer.tokenize("x\n        return x")
    assert tokens == ["x", "ĊĠĠĠĠĠĠĠ", "Ġreturn", "Ġx"]


@pytest.mark.parametrize("model_type", [None, "llama", "gpt2"])
def test_a_saved_tokenizer_loads_with_the_same_fingerprint(tokenizer, tmp_path, model_type):
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def test_vocabulary_and_special_tokens_change_the_fingerprint_and_use_does_not(code, tokenizer):
    other = train_tokenizer([code], 300)
    before = tokenizer_fingerprint(other)
    other(["a", "b c"], padding=True, truncation=True, max_length=3)
    other("x", split_special_tokens=True)
    assert tokenizer_fingerprint(other) == before
    other.add_special_tokens({"pad_token": "<pad>"})
    assert len({tokenizer_fingerprint(tokenizer), before, tokenizer_fingerprint(other)}) == 3


def test_what_cannot_be_loaded_is_named_in_one_line(tokenizer, tmp_path):
    for name in (tmp_path / "gone", "./gone"):
        with refused(name, "no such model folder"):
            load_tokenizer(name)
    for name, content, words in (
        ("empty", "", "cannot be read as JSON"),
        ("broken", "{", "cannot be read as JSON"),
        ("list", "[]", "expected a JSON object, got a list"),
        ("other", "{}", "cannot be loaded"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(content)
        with refused(tmp_path / name, words):
            load_tokenizer(tmp_path / name)
    slow = transformers.ByT5Tokenizer()
    slow.save_pretrained(tmp_path / "slow")
    with refused("expected one with a tokenizer.json, got ByT5Tokenizer of"):
        load_tokenizer(tmp_path / "slow")
    endless = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    endless.save_pretrained(tmp_path / "endless")
    with refused(tmp_path / "endless", "eos_token"):
        load_tokenizer(tmp_path / "endless")
