import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iiad.data import TokenBlocks, TokenCorpus, evaluation_windows
from tests.helpers import refused


def corpus_of(num_tokens):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    return TokenCorpus(tokens, num_tokens, 1, num_tokens, "0" * 64, ("a.txt",), 0)


def test_blocks_do_not_overlap_the_tail_is_dropped_and_labels_are_a_copy():
    blocks = TokenBlocks(corpus_of(11), 4)
    assert [block["input_ids"].tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(blocks) == 2
    block = blocks[-1]
    assert torch.equal(block["labels"], block["input_ids"])
    block["labels"][:] = -100
    assert block["input_ids"].tolist() == [4, 5, 6, 7]
    for ids in next(iter(torch.utils.data.DataLoader(blocks, batch_size=2))).values():
        assert (ids.shape, ids.dtype) == ((2, 4), torch.int64)
    with pytest.raises(IndexError):
        blocks[2]


@given(
    num_tokens=st.integers(2, 60),
    block_size=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    max_tokens=st.none() | st.integers(2, 70),
)
def test_windows_predict_every_token_but_the_first_exactly_once(
    num_tokens, block_size, batch_size, max_tokens
):
    batches = list(evaluation_windows(corpus_of(num_tokens), block_size, max_tokens, batch_size))
    used = min(num_tokens, max_tokens or num_tokens)
    inputs = [token for batch in batches for token in batch.inputs["input_ids"].flatten().tolist()]
    targets = [token for batch in batches for token in batch.targets.flatten().tolist()]
    assert inputs == list(range(used - 1))
    assert targets == list(range(1, used))
    assert all(batch.targets.shape[1] == block_size for batch in batches[:-1])
    assert all(len(batch.targets) <= batch_size for batch in batches)
    for part in (part for batch in batches for part in (batch.inputs["input_ids"], batch.targets)):
        assert part.is_contiguous()
        assert part.dtype == torch.int64


def test_a_short_last_window_is_a_batch_of_its_own():
    shapes = [tuple(batch.targets.shape) for batch in evaluation_windows(corpus_of(12), 3, batch_size=2)]
    assert shapes == [(2, 3), (1, 3), (1, 2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TokenBlocks(corpus_of(7), 8),
            "block_size: expected at most the 7 tokens of the corpus, got 8",
        ),
        (lambda: TokenBlocks(corpus_of(7), 1), "block_size: expected at least 2, got 1"),
        (lambda: evaluation_windows(corpus_of(1), 4), "corpus.num_tokens: expected at least 2, got 1"),
        (lambda: evaluation_windows(corpus_of(9), 0), "block_size: expected at least 1, got 0"),
        (lambda: evaluation_windows(corpus_of(9), 4, max_tokens=1), "max_tokens: expected at least 2, got 1"),
        (lambda: evaluation_windows(corpus_of(9), 4, batch_size=0), "batch_size: expected at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_on_the_call(call, message):
    with refused(message):
        call()
