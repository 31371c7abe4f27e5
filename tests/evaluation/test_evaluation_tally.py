"""Evaluations by layer and class of token."""

import pytest
import torch

from iiad.data import Window
from iiad.evaluation.evaluation_tally import TOKEN_CLASSES, EvaluationTally, token_classes
from iiad.models import count_evaluations
from tests.helpers import make_iiet


@torch.no_grad()
def tallied(model, windows, classes=None, grouped_by=None):
    tally = EvaluationTally(model, classes, grouped_by)
    with count_evaluations(model) as counts:
        for window in tally.watch(windows, counts):
            model(**window.inputs)
    return tally.result()


def test_means_are_over_tokens_asked_for_in_each_layer_and_class(tokens):
    model = make_iiet(num_iterations=[3, 2, 1], cache_policy="shared", tolerance=0.3)
    text = torch.cat([tokens, tokens.flip(0)], 1)
    windows = [Window.of(tokens), Window({"input_ids": text}, torch.where(text % 3 == 0, -100, text))]
    classes = torch.arange(97) % 2
    found = tallied(model, windows, classes)
    layers, kinds = [[] for _ in range(3)], [[], []]
    for window in windows:
        with count_evaluations(model) as counts, torch.no_grad():
            model(**window.inputs)
        for b, t in (window.targets >= 0).nonzero().tolist():
            taken = [int(calls[0][b, t]) for calls in counts.calls]
            for layer, each in zip(layers, taken, strict=True):
                layer.append(each)
            kinds[window.inputs["input_ids"][b, t] % 2].append(sum(taken))
    assert found["evaluations_by_layer"] == pytest.approx([sum(each) / len(each) for each in layers])
    assert found["mean_evaluations"] == pytest.approx(sum(found["evaluations_by_layer"]))
    wanted = {TOKEN_CLASSES[k]: sum(each) / len(each) for k, each in enumerate(kinds)}
    assert found["evaluations_by_class"] == pytest.approx(wanted)


def test_rows_in_groups_are_told_apart_by_them(tokens):
    model = make_iiet(num_iterations=3, cache_policy="shared", tolerance=0.3)
    groups = torch.tensor([[4], [6]]).expand_as(tokens)
    found = tallied(model, [Window({"input_ids": tokens}, tokens, groups)], grouped_by="length")
    assert found["evaluations_by_class"].keys() == {"length 4", "length 6"}
    mean = sum(found["evaluations_by_class"].values()) / 2
    assert found["mean_evaluations"] == pytest.approx(mean)


def test_tokens_are_words_numbers_signs_spaces_or_special(folders):
    from iiad.data import load_tokenizer

    tokenizer = load_tokenizer(folders.teacher)
    classes = token_classes(tokenizer, len(tokenizer) + 3)
    for text, name in (("a", "word"), ("7", "number"), (":", "sign"), ("\n", "space")):
        assert TOKEN_CLASSES[classes[tokenizer.encode(text)[-1]]] == name
    assert {TOKEN_CLASSES[classes[token]] for token in tokenizer.all_special_ids} == {"special"}
    assert [TOKEN_CLASSES[kind] for kind in classes[-3:]] == ["special"] * 3


@torch.no_grad()
def test_a_count_inside_of_another_counts_for_itself_and_the_outer_one_goes_on(tokens):
    model = make_iiet(num_iterations=3, cache_policy="shared", tolerance=0.3)
    with count_evaluations(model) as outer:
        model(tokens)
        with count_evaluations(model) as inner:
            model(tokens)
        model(tokens)
    model(tokens)
    assert [len(calls) for calls in outer.calls] == [2] * 3
    assert [len(calls) for calls in inner.calls] == [1] * 3
