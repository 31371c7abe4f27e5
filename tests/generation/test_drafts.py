"""Self-drafts share the teacher's memory and nothing else; drafts that cannot follow are refused in one line."""

from itertools import chain

import psutil
import pytest
import torch

from iiad import InputError
from iiad.checkpoints import identify_model
from iiad.data import train_tokenizer
from iiad.generation.drafts import (
    Draft,
    candidate_plans,
    check_draft,
    load_draft,
    require_same_vocabulary,
    self_draft,
)
from iiad.models import IIETConfig, IIETForCausalLM
from iiad.planning import Plan
from tests.helpers import VARIANTS, make_iiet, make_llama, make_pcformer


@pytest.mark.parametrize("name", VARIANTS)
def test_a_self_draft_is_the_teachers_tensors_under_another_plan(name):
    teacher = VARIANTS[name]()
    before, tokens = teacher.config.to_dict(), torch.arange(3, 12)[None]
    wanted = teacher(tokens).logits
    draft = self_draft(teacher)
    own, theirs = (
        {key: tensor.data_ptr() for key, tensor in chain(model.named_parameters(), model.named_buffers())}
        for model in (teacher, draft)
    )
    assert own == theirs
    assert draft.config.iterations == [0, 0, 0]
    assert draft.config is not teacher.config
    assert draft.model.layers[0].self_attn.config is draft.config
    assert not set(map(id, teacher.model.slots)) & set(map(id, draft.model.slots))
    assert draft.config.tolerance is None  # that of a plan goes with the plan
    assert {
        **draft.config.to_dict(),
        **{key: before[key] for key in ("num_iterations", "tolerance")},
    } == before
    assert teacher.config.to_dict() == before
    assert torch.equal(teacher(tokens).logits, wanted)
    found = draft(tokens).logits
    teacher.set_num_iterations(0)
    assert torch.equal(found, teacher(tokens).logits)


def test_an_elastic_teacher_drafts_at_its_plans_without_tolerances():
    plans = [
        {"name": "full", "num_iterations": [3, 3, 3]},
        {"name": "cut-20", "num_iterations": [3, 2, 2], "tolerance": [None, 0.1, 0.1], "cut": 0.3},
        {"name": "cut-90", "num_iterations": [1, 0, 0], "cut": 8 / 9},
    ]
    teacher = make_iiet(num_iterations=3, cache_policy="shared", tolerance=0.3, plans=plans)
    assert candidate_plans(teacher) == [[1, 0, 0]]
    draft = self_draft(teacher, [1, 0, 0])
    assert (draft.config.iterations, draft.config.tolerance) == ([1, 0, 0], None)
    assert (teacher.config.iterations, teacher.config.tolerance) == ([3, 3, 3], 0.3)


def test_a_self_draft_takes_no_memory():
    config = IIETConfig(vocab_size=2000, hidden_size=1024, intermediate_size=2048, num_layers=2)
    teacher = IIETForCausalLM(config).eval()
    size = sum(parameter.nbytes for parameter in teacher.parameters())
    assert size > 64 * 2**20
    process = psutil.Process()
    before = process.memory_info().rss
    draft = self_draft(teacher)
    assert process.memory_info().rss - before < size / 20
    with torch.no_grad():
        teacher.model.norm.weight.fill_(2.0)
    assert draft.model.norm.weight[0] == 2.0


def test_candidates_go_from_no_iterations_to_one_in_every_layer():
    plans = candidate_plans(make_iiet(num_layers=6, num_iterations=[3, 0, 2, 1, 1, 1]))
    assert plans == [[0] * 6, [1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1]]
    assert candidate_plans(make_pcformer()) == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert candidate_plans(make_iiet(num_iterations=[1, 0, 0])) == [[0, 0, 0]]


@pytest.fixture(scope="module")
def teacher():
    return make_iiet(num_iterations=1)


def test_a_teacher_without_iterations_has_no_draft_of_its_own():
    for without in (make_llama(), make_iiet(num_iterations=0, max_num_iterations=2)):
        for function in (self_draft, candidate_plans):
            with pytest.raises(InputError, match="draft: expected a teacher with iterations"):
                function(without)


def test_a_plan_that_the_teacher_cannot_run_is_refused(teacher):
    for plan, message in (
        (2, r"\[0\]: expected from 0 to 1"),
        ([0], ": expected an int or a list of num_layers"),
    ):
        with pytest.raises(InputError, match=f"draft plan: num_iterations{message}"):
            self_draft(teacher, plan)


def test_a_plan_for_another_teacher_is_refused():
    teacher, other = make_iiet(num_iterations=2), make_iiet(num_iterations=1)
    identity = identify_model(teacher, "teacher")
    with torch.no_grad():
        other.model.norm.weight.add_(1)
    with pytest.raises(InputError, match="plan: expected one for teacher"):
        load_draft("self", teacher, identity, plan=Plan.explicit([1, 0, 0], identify_model(other, "other")))
    fitting = Plan.explicit([1, 0, 0], identity)
    assert load_draft("self", teacher, identity, plan=fitting).model.config.iterations == [1, 0, 0]
    auto = load_draft("auto", teacher, identity, length=3)
    assert (auto.length, auto.plans) == (3, candidate_plans(teacher))


def test_another_vocabulary_is_refused_with_its_first_difference():
    text = "one two three four five six seven eight nine ten " * 3
    one, same, other, longer = (
        train_tokenizer([words], size)
        for words, size in ((text, 262), (text, 262), (text.upper(), 262), (text, 264))
    )
    require_same_vocabulary(one, same, "a", "b")
    found = r"^draft: expected the vocabulary of a, got that of b: token 257: expected '.+', got '.+'$"
    with pytest.raises(InputError, match=found):
        require_same_vocabulary(one, other, "a", "b")
    with pytest.raises(InputError, match=r"token 262: expected none, got '.+'$"):
        require_same_vocabulary(one, longer, "a", "b")


def test_a_draft_that_cannot_follow_is_refused(teacher):
    for draft, num_tokens, message in (
        (Draft(make_llama(vocab_size=98)), 10, "expected a vocabulary of 97, the teacher's, got 98"),
        (
            Draft(make_llama(max_position_embeddings=40)),
            41,
            "at most 40 together, the draft's positions, got 41",
        ),
        (Draft(teacher, 0), 10, "draft length: expected at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            check_draft(teacher, draft, num_tokens)


@pytest.mark.parametrize(
    ("name", "refused", "neutral"),
    [
        ("repetition_penalty", 1.2, 1.0),
        ("bad_words_ids", [[5]], []),
        ("sequence_bias", [[[5], 1.0]], {}),
        ("stop_strings", ["x"], []),
        ("min_new_tokens", 4, None),
        ("min_p", 0.1, 0.0),
        ("guidance_scale", 0.0, 1.0),  # no guidance is 1
        ("token_healing", True, False),
        ("penalty_alpha", 0.6, 0.0),
        ("encoder_no_repeat_ngram_size", 2, None),
    ],
)
def test_settings_that_a_draft_cannot_follow_are_refused(teacher, name, refused, neutral, monkeypatch):
    monkeypatch.setattr(teacher.generation_config, name, refused, raising=False)
    with pytest.raises(InputError, match=rf"generation_config\.{name}: expected .* with a draft, got "):
        check_draft(teacher, Draft(teacher), 128)
    for value in (neutral, None):
        monkeypatch.setattr(teacher.generation_config, name, value, raising=False)
        check_draft(teacher, Draft(teacher), 128)
