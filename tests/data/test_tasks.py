"""Generated tasks: answers by an independent reckoning, uniform, and no question in both splits."""

from collections import Counter
from itertools import islice, pairwise, permutations

import pytest
from scipy.stats import chisquare

from iiad.data import parse_task, resolve_inputs
from tests.helpers import refused

SPECS = ["states", "states:group=s5,length=6", "states:group=z7,length=5", "expressions", "hops"]
SMALL = [
    "states:length=3",
    "states:group=z5,length=5",
    "expressions:operations=3,modulus=7",
    "hops:nodes=6,hops=3",
]


def rows_of(spec, number, split="train"):
    return list(islice(parse_task(spec).generate(split), number))


def permutations_of(word):
    return map("".join, permutations(word))


def as_map(word):
    return dict(enumerate(map(int, word)))


@pytest.mark.parametrize("group", ["s3", "s5"])
def test_states_ask_for_the_running_product_of_permutations(group):
    for words, labels, groups in rows_of(f"states:group={group},length=9", 20):
        maps = [as_map(word) for word in words[:-1]]
        for position in range(1, 10):
            image = {}
            for start in maps[0]:
                image[start] = start
                for one in reversed(maps[:position]):  # the last factor acts first
                    image[start] = one[image[start]]
            assert as_map(labels[position]) == image
        assert labels[0] is None
        assert groups == list(range(10))


def test_swaps_are_the_identity_and_all_swaps_of_neighbours():
    rows = rows_of("states:group=s5,length=9,steps=swaps", 40)
    found = {word for words, _, _ in rows for word in words[:-1]}
    assert found == {"01234", "10234", "02134", "01324", "01243"}
    assert all(set(labels[1:]) <= set(permutations_of("01234")) for _, labels, _ in rows)
    assert len({labels[-1] for _, labels, _ in rows}) > 20  # the products leave the swaps
    for spec in ("states:group=z7,steps=swaps", "states:steps=cycles"):
        with refused("steps: expected all"):
            parse_task(spec)


def test_states_of_a_cyclic_group_ask_for_the_running_sum():
    for words, labels, _ in rows_of("states:group=z60,length=7", 20):
        numbers = list(map(int, words[:-1]))
        assert list(map(int, labels[1:])) == [sum(numbers[: i + 1]) % 60 for i in range(7)]


def value(words, modulus):
    """Evaluate a prefix expression from the right, on a stack."""
    stack = []
    for word in reversed(words):
        if word.isdigit():
            stack.append(int(word))
        else:
            one, other = stack.pop(), stack.pop()
            stack.append({"+": one + other, "-": one - other, "x": one * other}[word] % modulus)
    (found,) = stack
    return found


def test_expressions_ask_for_their_value_and_count_their_operations():
    for words, labels, groups in rows_of("expressions:operations=6,modulus=11", 200):
        assert words[-2:] == ["=", labels[-1]]
        assert int(labels[-1]) == value(words[:-2], 11)
        assert groups[-1] == sum(word in "+-x" for word in words[:-2])
        assert set(labels[:-1]) == {None}


@pytest.mark.parametrize("questions", [1, 7])
def test_hops_follow_the_edges_of_the_row(questions):
    for words, labels, groups in rows_of(f"hops:nodes=9,hops=5,questions={questions}", 50):
        following = dict(zip(words[:18:2], words[1:18:2], strict=True))
        assert len(following) == 9
        assert sum(label is not None for label in labels) == questions
        asked = set()
        for at in range(18, len(words), 3):
            hops, start, answer = words[at : at + 3]
            asked.add((hops, start))
            for _ in range(int(hops[1:])):
                start = following[start]
            assert labels[at + 2] == answer == start
            assert groups[at + 2] == int(hops[1:])
        assert len(asked) == questions


@pytest.mark.parametrize(("spec", "num_answers"), list(zip(SMALL, [6, 5, 7, 6], strict=True)))
def test_answers_are_uniform(spec, num_answers):
    counts = Counter(row.labels[-1] for row in rows_of(spec, 4000))
    assert len(counts) == num_answers
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("spec", SMALL)
def test_no_question_is_in_both_splits(spec):
    questions = [
        {" ".join(row.words[:-1]) for row in rows_of(spec, 500, split)} for split in ("train", "validation")
    ]
    assert all(questions)
    assert not questions[0] & questions[1]


@pytest.mark.parametrize("spec", SPECS)
def test_a_longer_data_set_begins_with_a_shorter_one_and_another_seed_gives_another(spec):
    long = rows_of(spec, 12)
    assert rows_of(spec, 5) == long[:5]
    task = parse_task(spec)
    assert list(islice(task.generate("train", first=7), 5)) == long[7:]
    assert rows_of(f"{spec}{',' if ':' in spec else ':'}seed=1", 12) != long
    assert all(one != other for one, other in pairwise(long))
    assert {word for row in long for word in row.words} <= set(task.words)


def test_the_specification_does_not_depend_on_the_order_of_settings_or_the_rows():
    one, other = parse_task("states:length=7,group=s5,rows=3"), parse_task("states:group=s5,length=7")
    assert str(one) == str(other) == "states:group=s5,length=7,seed=0,steps=all"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("states:group=s4", "states: group: expected s3, s5, or z2 to z60, got 's4'"),
        ("states:group=z61", "states: group: expected s3, s5, or z2 to z60, got 'z61'"),
        ("states:length=0", "states: length: expected 1 to 4096, got 0"),
        ("states:length=-3", "states: length: expected a whole number, got '-3'"),
        ("states:length=9999999999999", "states: length: expected a whole number"),
        (
            "states:size=3",
            "states: expected some of group=VALUE, length=VALUE, rows=VALUE, seed=VALUE, steps=VALUE, each once",
        ),
        ("states:length=3,length=4", "each once, got 'length=4'"),
        ("expressions:modulus=9", "expressions: modulus: expected a prime number, got 9"),
        ("expressions:operations=0", "expressions: operations: expected 1 to 256, got 0"),
        ("hops:nodes=4,hops=4", "hops: hops: expected 1 to 3, got 4"),
        ("hops:rows=0", "hops: rows: expected 1 to"),
    ],
)
def test_settings_that_are_not_accepted_are_one_line(spec, message):
    with refused(message):
        resolve_inputs([spec])


def test_a_task_without_questions_for_a_split_is_refused():
    with refused("states:group=z2,length=1,seed=0,steps=all: expected a task with more questions"):
        for split in ("train", "validation"):
            rows_of("states:group=z2,length=1", 1, split)


def test_any_other_name_is_no_task():
    assert parse_task("state") is None
    assert parse_task("./states") is None
