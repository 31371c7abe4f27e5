"""Plan and length of a draft are chosen by a measurement whose arithmetic can be followed by hand."""

from itertools import pairwise

import pytest
import torch

from iiad.generation.draft_choice import Probe, choose_draft, expected_tokens
from iiad.generation.drafts import Draft, candidate_plans, self_draft
from iiad.generation.speculation import Chooser
from tests.helpers import given_cache, make_iiet, make_llama

PROMPT = torch.tensor([[5, 9, 11, 30]])


class Clock:
    """A clock that ticks with forward calls, whatever this machine does; seen: tokens of each call.

    costs: ms of a call of the model over that many tokens.
    """

    def __init__(self, costs, *models):
        self.time, self.seen = 0.0, []

        def tick(model, args, kwargs):
            num_tokens = kwargs["input_ids"].shape[1]
            self.seen.append((given_cache(kwargs).get_seq_length(), num_tokens))
            self.time += costs(model, num_tokens)

        for model in models:
            model.register_forward_pre_hook(tick, with_kwargs=True)

    def __call__(self, device):
        return self.time


def by_hand(chances, k):
    """1 + sum over j of the mean over starts of j acceptances in a row, term by term."""
    total = 1.0
    for j in range(1, k + 1):
        rows = [torch.tensor(chances[i : i + j]).prod().item() for i in range(len(chances) - j + 1)]
        total += sum(rows) / len(rows)
    return total


def test_expected_tokens_are_counted_over_all_starts():
    chances = [1.0, 0.5, 0.0, 1.0, 0.8, 0.9]
    for k in range(7):
        assert expected_tokens(chances, k) == pytest.approx(by_hand(chances, k))
    # Leviathan et al. 2023, equation 1, where every chance is alpha; also beyond the measured tokens.
    for k in (1, 5, 12):
        assert expected_tokens([0.8] * 6, k) == pytest.approx((1 - 0.8 ** (k + 1)) / (1 - 0.8))


def test_the_best_of_plan_and_length_is_taken():
    teacher = make_iiet(num_iterations=[3, 1, 1], max_num_iterations=3)
    draft = Draft(self_draft(teacher), plans=[*candidate_plans(teacher), [3, 1, 1]])

    def costs(model, num_tokens):
        return model.config.num_evaluations + 0.1 * (num_tokens - 1)

    found = choose_draft(teacher, draft, PROMPT, 100, Chooser(), Clock(costs, teacher, draft.model))
    assert [list(estimate.plan) for estimate in found.tried] == list(draft.plans)
    assert [estimate.draft_cost for estimate in found.tried] == pytest.approx([3 / 8, 4 / 8, 5 / 8, 6 / 8, 1])
    assert found.tried[-1].acceptance == 1.0  # the teacher itself
    assert found.tried[-1].length == 0  # as dear as the teacher: it does not pay
    assert all(a.acceptance <= 1 for a in found.tried)
    assert found.best == max(found.tried, key=lambda estimate: estimate.speedup)
    assert draft.model.config.iterations == list(found.best.plan)
    assert teacher.config.iterations == [3, 1, 1]
    assert all(estimate.speedup > 1 for estimate in found.tried if estimate.length)
    assert str(list(found.best.plan)) in str(found)


@pytest.mark.parametrize(
    ("make_draft", "share", "lengths"),
    [
        (lambda teacher: self_draft(teacher, 1), 0.1, range(6, 17)),
        (lambda teacher: make_llama(), 0.5, range(1)),
    ],
    ids=["right", "wrong"],
)
def test_a_cheap_draft_that_is_right_drafts_far_and_one_that_is_wrong_not_at_all(make_draft, share, lengths):
    teacher = make_iiet(num_iterations=1)
    draft = make_draft(teacher)
    clock = Clock(lambda model, num: share if model is draft else 1 + 0.01 * num, teacher, draft)
    best = choose_draft(teacher, Draft(draft), PROMPT, 100, Chooser(), clock).best
    assert best.length in lengths
    assert best.plan is None


@pytest.mark.parametrize(("given", "max_new_tokens", "length"), [(5, 18, 5), (40, 6, 5), (40, 1, 0)])
def test_a_given_length_is_kept_as_far_as_there_are_tokens_to_say(given, max_new_tokens, length):
    teacher = make_iiet(num_iterations=1)
    draft = Draft(self_draft(teacher), given, candidate_plans(teacher))
    found = choose_draft(teacher, draft, PROMPT, max_new_tokens, Chooser())
    assert {estimate.length for estimate in found.tried} == {length}


@pytest.mark.parametrize(("max_new_tokens", "length"), [(100, 40), (6, 5), (2, 1)])
def test_a_given_length_beyond_the_sizes_timed_costs_what_the_last_of_them_lead_to(max_new_tokens, length):
    teacher = make_iiet(num_iterations=1)
    clock = Clock(lambda model, num_tokens: 1 + 0.1 * (num_tokens - 1), teacher)
    probe = Probe(teacher, PROMPT, max_new_tokens, Chooser(), length, clock)
    verification = 1 + 0.1 * length if max_new_tokens > 2 else 1  # of one size alone no more is known
    assert probe.speedup(3.0, length, 0.5) == pytest.approx(3 / (0.5 * length + verification))
    assert probe.sizes == [size for size in (1, 3, 9, 17) if size <= max_new_tokens]


@pytest.mark.parametrize(("length", "told"), [(5, True), (None, False)])
def test_a_given_length_that_does_not_pay_comes_with_a_hint(length, told):
    teacher, draft = make_iiet(num_iterations=1), make_llama()
    clock = Clock(lambda model, num_tokens: 1, teacher, draft)
    found = choose_draft(teacher, Draft(draft, length), PROMPT, 18, Chooser(), clock)
    hint = "without --draft-length a length is chosen, 0 included"
    assert (found.best.speedup < 1) == (hint in str(found)) == told
    assert "\n" not in str(found)


@pytest.mark.parametrize("num_new", [1, 2, 4])
def test_nothing_is_read_beyond_the_models_positions(num_new):
    teacher = make_iiet(num_iterations=1, max_position_embeddings=4 + num_new)
    draft = Draft(self_draft(teacher))
    clock = Clock(lambda model, num_tokens: 1, teacher, draft.model)
    found = choose_draft(teacher, draft, PROMPT, num_new, Chooser(0.7), clock)
    assert max(map(sum, clock.seen)) <= 4 + num_new
    assert found.best.length < num_new


def test_more_tokens_never_take_less_however_the_clock_jumps():
    teacher, times = make_iiet(num_iterations=1), iter(range(1, 1000))
    clock = Clock(lambda model, num_tokens: 50 / next(times), teacher)
    probe = Probe(teacher, PROMPT, 18, Chooser(), None, clock)
    assert all(a <= b for a, b in pairwise(probe.size_seconds))
