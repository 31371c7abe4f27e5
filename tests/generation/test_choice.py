"""Plan and length of a draft are chosen by a measurement whose arithmetic can be followed by hand."""

from itertools import pairwise

import pytest
import torch

from iiad.generation import draft_choice as choice
from iiad.generation.draft_choice import choose_draft
from iiad.generation.drafts import Draft, candidate_plans, self_draft
from iiad.generation.token_choice import Chooser
from tests.helpers import make_iiet, make_llama

PROMPT = torch.tensor([[5, 9, 11, 30]])


def expected(chances, k):
    """1 + sum over j of the mean over starts of j acceptances in a row, term by term."""
    total = 1.0
    for j in range(1, k + 1):
        rows = [torch.tensor(chances[i : i + j]).prod().item() for i in range(len(chances) - j + 1)]
        total += sum(rows) / len(rows)
    return total


def test_expected_tokens_are_counted_over_all_starts():
    chances = [1.0, 0.5, 0.0, 1.0, 0.8, 0.9]
    for k in range(7):
        assert choice._expected_tokens(chances, k) == pytest.approx(expected(chances, k))
    # Leviathan et al. 2023, equation 1, where every chance is alpha; also beyond the measured tokens.
    for k in (1, 5, 12):
        assert choice._expected_tokens([0.8] * 6, k) == pytest.approx((1 - 0.8 ** (k + 1)) / (1 - 0.8))


def slow_clock(monkeypatch, costs):
    """A clock that ticks with forward calls: costs(model) ms each, whatever this machine does."""
    time = [0.0]
    read = choice.Reader.read

    def timed(self, tokens, keep=1):
        time[0] += costs(self.model, tokens.shape[1])
        return read(self, tokens, keep)

    monkeypatch.setattr(choice.Reader, "read", timed)
    monkeypatch.setattr(choice, "now", lambda device: time[0])


def test_the_best_of_plan_and_length_is_taken(monkeypatch):
    teacher = make_iiet(num_iterations=[3, 1, 1], max_num_iterations=3)

    def costs(model, num_tokens):
        return model.config.num_evaluations + 0.1 * (num_tokens - 1)

    slow_clock(monkeypatch, costs)
    draft = Draft(self_draft(teacher), plans=[*candidate_plans(teacher), [3, 1, 1]])
    found = choose_draft(teacher, draft, PROMPT, 100, Chooser())
    assert [list(estimate.plan) for estimate in found.tried] == list(draft.plans)
    assert [estimate.draft_cost for estimate in found.tried] == pytest.approx([3 / 8, 4 / 8, 5 / 8, 6 / 8, 1])
    assert found.tried[-1].acceptance == 1.0  # the teacher itself
    assert found.tried[-1].length == 0  # as dear as the teacher: it does not pay
    assert all(a.acceptance <= 1 for a in found.tried)
    assert found.best == max(found.tried, key=lambda estimate: estimate.speedup)
    assert draft.model.config.iterations == list(found.best.plan)
    assert teacher.config.iterations == [3, 1, 1]
    for estimate in found.tried:
        if estimate.length:
            assert estimate.speedup > 1
    assert str(list(found.best.plan)) in str(found)


def test_a_cheap_draft_that_is_right_drafts_far_and_one_that_is_wrong_not_at_all(monkeypatch):
    teacher = make_iiet(num_iterations=1)
    for draft, share, lengths in ((self_draft(teacher, 1), 0.1, range(6, 17)), (make_llama(), 0.5, range(1))):
        with monkeypatch.context() as patch:
            slow_clock(
                patch, lambda model, num, share=share: share if model is not teacher else 1 + 0.01 * num
            )
            best = choose_draft(teacher, Draft(draft), PROMPT, 100, Chooser()).best
        assert best.length in lengths
        assert best.plan is None


def test_a_given_length_is_kept(monkeypatch):
    teacher = make_iiet(num_iterations=2)
    draft = Draft(self_draft(teacher), 5, candidate_plans(teacher))
    assert {estimate.length for estimate in choose_draft(teacher, draft, PROMPT, 40, Chooser()).tried} == {5}


def test_a_given_length_beyond_the_sizes_timed_costs_what_the_last_of_them_lead_to(monkeypatch):
    teacher = make_iiet(num_iterations=1)
    slow_clock(monkeypatch, lambda model, num_tokens: 1 + 0.1 * (num_tokens - 1))
    for max_new_tokens, length in ((100, 40), (100, 17), (6, 5), (2, 1)):
        probe = choice._Probe(teacher, PROMPT, max_new_tokens, Chooser(), length)
        verification = 1 + 0.1 * length if max_new_tokens > 2 else 1  # of one size alone no more is known
        assert probe._speedup(3.0, length, 0.5) == pytest.approx(3 / (0.5 * length + verification))


def test_no_more_is_drafted_than_is_to_be_said():
    teacher = make_iiet(num_iterations=1)
    for max_new_tokens, length in ((6, 5), (1, 0)):
        found = choose_draft(teacher, Draft(self_draft(teacher), 40), PROMPT, max_new_tokens, Chooser())
        assert found.best.length == length


def test_a_given_length_that_does_not_pay_comes_with_a_hint(monkeypatch):
    teacher, hint = make_iiet(num_iterations=1), "without --draft-length a length is chosen, 0 included"
    slow_clock(monkeypatch, lambda model, num_tokens: 1)
    for draft, told in ((Draft(make_llama(), 5), True), (Draft(make_llama()), False)):
        found = choose_draft(teacher, draft, PROMPT, 40, Chooser())
        assert (found.best.speedup < 1) == (hint in str(found)) == told
        assert "\n" not in str(found)


@pytest.mark.parametrize("num_new", [1, 2, 4])
def test_nothing_is_read_beyond_the_models_positions(num_new):
    teacher = make_iiet(num_iterations=1, max_position_embeddings=4 + num_new)
    seen = []
    read = choice.Reader.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            choice.Reader,
            "read",
            lambda self, tokens, keep=1: (
                seen.append(self.length + tokens.shape[1]) or read(self, tokens, keep)
            ),
        )
        found = choose_draft(teacher, Draft(self_draft(teacher)), PROMPT, num_new, Chooser(0.7))
    assert max(seen) <= 4 + num_new
    assert found.best.length < num_new


def test_more_tokens_never_take_less(monkeypatch):
    teacher = make_iiet(num_iterations=1)
    probe = choice._Probe(teacher, PROMPT, 40, Chooser(), None)
    assert all(a <= b for a, b in pairwise(probe.size_seconds))
    assert probe.sizes == [1, 3, 9, 17]
