"""Samples with a draft have the teacher's distribution; a draft that is always believed would not."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

from iiad.generation import speculation
from iiad.generation.draft_choice import choose_draft
from iiad.generation.drafts import Draft
from iiad.generation.speculation import Chooser, speculate, verify

VOCABULARY, RUNS = 4, 400
PROMPT = torch.tensor([[0]])


class Markov(torch.nn.Module):
    """A model that looks at the last token only: cheap enough for hundreds of texts, exact to enumerate."""

    def __init__(self, seed):
        super().__init__()
        self.table = 1.5 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.config = SimpleNamespace(model_type="markov")

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        return SimpleNamespace(logits=self.table[input_ids])


def p_value(chooser):
    """Of the chi-square test of the second and third new token against the teacher's distribution."""
    p = chooser.probabilities(Markov(1).table).double()
    p /= p.sum(-1, keepdim=True)
    exact = p[0] @ p  # (V,), of the second token
    exact = exact[:, None] * p  # (V, V), of the pair
    counts = torch.zeros_like(exact)
    for _ in range(RUNS):
        # Of four new tokens the first comes with the prompt; the next two are drafted, or replaced.
        counts[tuple(speculate(Markov(1), Markov(2), PROMPT, 4, 2, chooser).tokens[1:3])] += 1
    possible = exact > 1e-9
    assert not counts[~possible].any()
    return chisquare(counts[possible].numpy(), RUNS * exact[possible].numpy()).pvalue


@pytest.mark.parametrize("chooser", [Chooser(1.0), Chooser(0.7, top_k=2), Chooser(1.5, 3, 0.9)], ids=str)
def test_pairs_of_tokens_have_the_teachers_distribution(chooser):
    assert p_value(chooser) > 0.01


def believe(target, drafted, by):
    """The fault: every drafted token stands."""
    return len(drafted), torch.multinomial(target[-1], 1)


def keep_target(target, drafted, by):
    """Another fault: a rejected token is replaced by one from p, not from what p has over q."""
    k = len(drafted)
    ratio = (target[:k] / by).gather(1, drafted[:, None])[:, 0]
    accepted = int((torch.rand(k) < ratio).cumprod(0).sum())
    return accepted, torch.multinomial(target[accepted], 1)


@pytest.mark.parametrize("fault", [believe, keep_target])
def test_the_test_of_the_distribution_finds_faults(fault, monkeypatch):
    monkeypatch.setattr(speculation, "verify", fault)
    assert p_value(Chooser(1.0)) < 1e-4


def test_a_token_that_the_teacher_never_says_never_stands():
    target = torch.tensor([[0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    by = torch.tensor([[1.0, 0.0, 0.0]])
    for _ in range(20):
        accepted, following = verify(target, torch.tensor([0]), by)
        assert (accepted, int(following)) == (0, 1)


def test_equal_distributions_always_agree():
    target = torch.rand(4, 9).softmax(-1)
    accepted, _ = verify(target, torch.tensor([1, 8, 0]), target[:3])
    assert accepted == 3


@pytest.mark.parametrize("chooser", [Chooser(2.0, top_k=1), Chooser(2.0, top_p=1e-6)], ids=str)
def test_sampling_among_one_token_is_greedy(chooser):
    greedy = speculate(Markov(1), Markov(2), PROMPT, 20, 3)
    assert speculate(Markov(1), Markov(2), PROMPT, 20, 3, chooser).tokens == greedy.tokens


def test_probabilities_are_those_that_generate_samples_by():
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    found = Chooser(0.5, top_k=4, top_p=0.9).probabilities(logits)
    for row, probabilities in zip(logits, found, strict=True):
        wanted = (row / 0.5).softmax(-1)
        wanted[wanted < wanted.topk(4).values[-1]] = 0
        wanted /= wanted.sum()
        order = wanted.sort(descending=True)
        beyond = order.indices[order.values.cumsum(0) - order.values >= 0.9]
        wanted[beyond] = 0
        torch.testing.assert_close(probabilities, wanted / wanted.sum())
    assert torch.equal(Chooser(1.0).probabilities(logits), logits.softmax(-1))


def test_the_predicted_acceptance_is_the_share_of_probability_in_common():
    chooser = Chooser(1.0)
    predicted = choose_draft(Markov(1), Draft(Markov(2)), PROMPT, 100, chooser).best.acceptance
    said = [speculate(Markov(1), Markov(2), PROMPT, 60, 2, chooser) for _ in range(10)]
    found = sum(run.num_accepted for run in said) / sum(run.num_tested for run in said)
    assert abs(found - predicted) < 0.1
