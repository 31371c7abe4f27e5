"""Speculative decoding says what the teacher says, whatever the draft, its length and where a text ends."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from iiad import InputError
from iiad.evaluation.timing import time_model
from iiad.generation.drafts import self_draft
from iiad.generation.speculation import Chooser, Reader, Speculator, speculate
from tests.helpers import SHAPE, VARIANTS, make_iiet, make_llama


def make_prompts(num: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, SHAPE["vocab_size"], (num, length), generator=torch.Generator().manual_seed(seed))


def plain(model, prompts, num_new):
    """The model's own continuation, (B, num_new)."""
    return time_model(model, prompts, max(num_new - 1, 1)).tokens[:, :num_new]


@pytest.fixture(scope="module")
def double_teacher():
    torch.manual_seed(0)
    return make_iiet(num_iterations=[2, 3, 1], max_num_iterations=3).double()


@settings(max_examples=12)
@given(
    plan=st.tuples(*(st.integers(0, 3) for _ in range(3))),
    length=st.integers(0, 9),
    num_prompt=st.integers(1, 20),
    num_new=st.integers(1, 14),
    seed=st.integers(0, 1000),
)
def test_any_plan_and_length_gives_the_teachers_tokens(
    double_teacher, plan, length, num_prompt, num_new, seed
):
    prompt = make_prompts(1, num_prompt, seed)
    said = speculate(double_teacher, self_draft(double_teacher, plan), prompt, num_new, length)
    assert said.tokens == plain(double_teacher, prompt, num_new)[0].tolist()
    assert said.num_accepted + said.num_calls == num_new
    assert double_teacher.config.num_iterations == [2, 3, 1]


def test_a_draft_that_is_the_teacher_is_always_right():
    teacher = make_iiet(num_iterations=1)
    said = speculate(teacher, self_draft(teacher, 1), make_prompts(1, 6), 21, length=4)
    assert said.acceptance_rate == 1.0
    assert (said.num_calls, said.tokens_per_call) == (5, 21 / 5)  # the prompt, and four rounds of 4 + 1
    assert (said.num_tested, said.num_accepted) == (16, 16)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_teacher_has_its_self_draft(name, norms_in_float64):
    teacher, prompt = VARIANTS[name]().double(), make_prompts(1, 7)
    said = speculate(teacher, self_draft(teacher), prompt, 12, length=3)
    assert said.tokens == plain(teacher, prompt, 12)[0].tolist()


def make_sliding():
    """A model that attends to the last 6 tokens only."""
    shape = {name: value for name, value in SHAPE.items() if name != "num_layers"}
    config = MistralConfig(**shape, num_hidden_layers=2, sliding_window=6, head_dim=8)
    return MistralForCausalLM(config).eval().double()


def test_other_models_may_draft_and_teach(norms_in_float64):
    iiet, llama, sliding = make_iiet(num_iterations=1).double(), make_llama().double(), make_sliding()
    prompt = make_prompts(1, 9)
    for teacher, draft in ((iiet, llama), (llama, iiet), (sliding, llama), (sliding, sliding)):
        said = speculate(teacher, draft, prompt, 14, length=3)
        assert said.tokens == plain(teacher, prompt, 14)[0].tolist()
    assert said.acceptance_rate == 1.0


def assert_as_fresh(reader: Reader, tokens: torch.Tensor) -> None:
    """The reader holds what a new one would that reads these tokens (1, T) at once."""
    fresh = Reader(reader.model)
    fresh.read(tokens)
    assert reader.length == fresh.length == reader.cache.get_seq_length()
    for found, wanted in zip(reader.cache.layers, fresh.cache.layers, strict=True):
        torch.testing.assert_close(found.keys, wanted.keys, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.values, wanted.values, rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_what_was_taken_back_leaves_no_trace(norms_in_float64):
    model = make_iiet(num_iterations=[2, 0, 1], max_num_iterations=2).double()
    tokens, others = make_prompts(1, 12), make_prompts(1, 6, seed=1)
    reader = Reader(model)
    reader.read(tokens[:, :9])
    reader.read(others)
    reader.rollback(9)
    reader.rollback(9)
    assert_as_fresh(reader, tokens[:, :9])
    reader.read(tokens[:, 9:])
    reader.rollback(11)
    assert_as_fresh(reader, tokens[:, :11])


@torch.inference_mode()
def test_after_every_round_both_caches_are_those_of_a_fresh_prefill(norms_in_float64):
    teacher = make_iiet(num_iterations=2).double()
    full = partial = 0
    for draft in (self_draft(teacher, 2), self_draft(teacher), make_llama().double()):
        run = Speculator(teacher, draft, make_prompts(1, 5), 40, Chooser())
        run.start()
        for k in (3, 1, 0, 4, 2):
            before = run.result.num_accepted
            run.draft_round(k)
            accepted = run.result.num_accepted - before
            full += 0 < k == accepted
            partial += accepted < k
            assert_as_fresh(run.teacher, run.sequence[:, : run.known - 1])
            assert run.draft.length <= run.known - 1
            assert_as_fresh(run.draft, run.sequence[:, : run.draft.length])
    assert full > 4  # the teacher as its own draft, and more
    assert partial


def test_a_text_ends_at_its_end_also_within_a_draft(norms_in_float64):
    teacher, prompt = make_iiet(num_iterations=1).double(), make_prompts(1, 6)
    whole = plain(teacher, prompt, 20)[0].tolist()
    for draft in (self_draft(teacher, 1), self_draft(teacher)):
        for end in set(whole):
            said = speculate(teacher, draft, prompt, 20, length=5, ends={end})
            assert said.tokens == whole[: whole.index(end) + 1]
            # Every call of the teacher adds a token of its own, but for a last one that ended on a draft's.
            assert said.num_accepted + said.num_calls - len(said.tokens) in (0, 1)
            assert said.num_accepted <= said.num_tested


@pytest.mark.parametrize("num_new", [1, 2, 3, 5, 6, 7])
def test_not_one_token_too_many_where_the_limit_lies_within_a_draft(num_new):
    teacher, seen = make_iiet(num_iterations=1, max_position_embeddings=20), []
    prompt = make_prompts(1, 20 - num_new)
    said = speculate(teacher, self_draft(teacher, 1), prompt, num_new, length=4, on_tokens=seen.append)
    assert len(said.tokens) == num_new
    assert [token for tokens in seen for token in tokens] == said.tokens


@pytest.mark.parametrize(
    ("layer_types", "forward", "got"),
    [
        (None, lambda input_ids, **options: None, "no keys and values"),
        (["full_attention", "linear_attention"], lambda input_ids, past_key_values: None, "linear_attention"),
    ],
)
def test_a_model_that_cannot_take_tokens_back_is_refused(layer_types, forward, got):
    config = SimpleNamespace(model_type="mamba", layer_types=layer_types)
    with pytest.raises(InputError, match=f"draft: expected models whose cache .* got a mamba with {got}"):
        Reader(SimpleNamespace(config=config, forward=forward))
