"""What the head holds at once: no logits of a whole batch, whatever the vocabulary."""

import pytest
import torch

from iiad.evaluation.activation_memory import peak_bytes
from iiad.training.head import choose_chunk_tokens, head_loss
from iiad.training.teacher_targets import FullTarget, TopTarget

N, D = 320, 4


def beyond_weights(vocab_size, kind, autocast=False):
    """Peak of a training step without the head's own gradient, and without autocast's copies of weights."""
    states = torch.zeros(N, D, requires_grad=True)
    weight = torch.zeros(vocab_size, D, requires_grad=True)
    labels = torch.zeros(N, dtype=torch.long)
    target = None
    if kind == "full":
        target = FullTarget(torch.zeros(N, D), torch.zeros(vocab_size, D))
    if kind == "top":
        target = TopTarget(torch.arange(4).expand(N, 4), torch.full((N, 4), -2.0), torch.full((N,), -0.8))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = head_loss(states, weight, labels, target, kl_weight=float(target is not None)).loss
        loss.backward()

    copies = 2 * (1 + (kind == "full")) * weight.numel() * autocast
    return peak_bytes(step) - weight.nbytes - copies


@pytest.mark.parametrize("kind", ["ce", "full", "top"])
def test_memory_does_not_grow_with_the_vocabulary(kind):
    small, large = beyond_weights(32_000, kind), beyond_weights(128_000, kind)
    assert large <= 1.2 * small
    assert large < 0.5 * N * 128_000 * 4  # not even half a batch's logits in float32


def test_half_precision_takes_less():
    assert beyond_weights(32_000, "full", autocast=True) < 0.7 * beyond_weights(32_000, "full")


def test_chunks_are_no_longer_than_the_batch_and_never_empty():
    assert choose_chunk_tokens(10, 32_000, "cpu") == 10
    assert choose_chunk_tokens(10, 1 << 40, "cpu") == 1
    assert choose_chunk_tokens(0, 32_000, "cpu") == 1
    assert 32_000 * choose_chunk_tokens(1 << 20, 32_000, "cuda") > 31_000 * choose_chunk_tokens(
        4096, 31_000, "cpu"
    )
