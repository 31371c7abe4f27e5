"""Text from a model, alone or with a draft, from Python and the command line; every value is checked first."""

import re

import pytest
import torch
from transformers import TextStreamer

from iiad import InputError
from iiad.checkpoints import load_model
from iiad.data import load_tokenizer
from iiad.generation.drafts import Draft, self_draft
from iiad.generation.prompting import read_prompt
from iiad.generation.text import generate_text, load_drafted_generator, load_generator
from tests.helpers import BUDGET

PROMPT = "def push(self"


@pytest.fixture(scope="module")
def wanted(loaded):
    return generate_text(*loaded, PROMPT, max_new_tokens=12)


@pytest.fixture(scope="module")
def prompt_ids(loaded):
    return torch.tensor([loaded[1](PROMPT)["input_ids"]])


def stock(model, ids, num_new, **options):
    """New tokens of transformers' own generate()."""
    options = {"max_new_tokens": num_new, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()


def test_greedy_text_is_what_the_stock_generate_says(loaded, wanted, prompt_ids):
    model, tokenizer = loaded
    new = stock(model, prompt_ids, 12)
    assert wanted.texts == [tokenizer.decode([*prompt_ids[0].tolist(), *new], skip_special_tokens=True)]
    assert wanted.texts[0].startswith(PROMPT)
    assert wanted.num_new_tokens == len(new)
    assert wanted.tokens_per_second > 0


def test_an_empty_prompt_starts_where_documents_do(loaded):
    model, tokenizer = loaded
    new = stock(model, torch.tensor([[tokenizer.bos_token_id]]), 4)
    found = generate_text(model, tokenizer, "", max_new_tokens=4)
    assert found.texts == [tokenizer.decode(new, skip_special_tokens=True)]


@pytest.mark.parametrize("drafted", [False, True])
def test_the_seed_decides_the_samples_and_the_callers_random_state_stays(loaded, drafted):
    options = {"max_new_tokens": 6, "temperature": 1.5, "top_p": 0.95}
    options |= {"draft": Draft(self_draft(loaded[0]), 3)} if drafted else {"num_samples": 3}
    state = torch.get_rng_state()
    first, again, other = (generate_text(*loaded, PROMPT, seed=seed, **options).texts for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again != other
    assert drafted or len(set(first)) > 1


def test_sampling_among_one_token_is_greedy_and_no_top_k_leaves_every_token(loaded, wanted, monkeypatch):
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        assert (
            generate_text(*loaded, PROMPT, max_new_tokens=12, temperature=3, **options).texts == wanted.texts
        )
    seen = {}
    rows = torch.zeros(1, 40, dtype=torch.long)
    monkeypatch.setattr(loaded[0], "generate", lambda *ids, **options: seen.update(options) or rows)
    generate_text(*loaded, PROMPT, max_new_tokens=2, temperature=3)
    assert (seen["top_k"], seen["top_p"]) == (0, 1.0)


def test_a_text_ends_with_the_token_that_ends_texts_also_with_a_draft(loaded, prompt_ids, monkeypatch):
    model = loaded[0]
    new = stock(model, prompt_ids, 12, eos_token_id=-1)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [new[6], new[9]])
    end = min(new.index(new[6]), new.index(new[9])) + 1
    for draft in (None, Draft(self_draft(model, 3), 6)):
        assert generate_text(*loaded, PROMPT, max_new_tokens=12, draft=draft).num_new_tokens == end


def test_padding_of_samples_that_ended_early_is_not_counted(loaded, prompt_ids, monkeypatch):
    rows = torch.cat([prompt_ids.expand(2, -1), torch.tensor([[5, 0, 0, 0], [5, 6, 7, 8]])], 1)
    monkeypatch.setattr(loaded[0], "generate", lambda *ids, **options: rows)
    found = generate_text(*loaded, PROMPT, max_new_tokens=4, temperature=1, num_samples=2)
    assert found.num_new_tokens == 2 + 4


@pytest.mark.parametrize("drafted", [False, True])
def test_a_stream_prints_the_text_that_is_returned(loaded, wanted, capsys, drafted):
    model, tokenizer = loaded
    draft = Draft(self_draft(model), 4) if drafted else None
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    found = generate_text(model, tokenizer, PROMPT, max_new_tokens=12, streamer=streamer, draft=draft)
    assert capsys.readouterr().out == found.texts[0] + "\n" == wanted.texts[0] + "\n"


@pytest.mark.parametrize(
    ("which", "length"),
    [("self", 3), ("auto", 3), ("auto", None), ("student", 3), ("llama", None), ("teacher", None)],
)
def test_text_is_the_teachers_with_any_draft(folders, wanted, which, length):
    draft = getattr(folders, which, which)
    model, tokenizer, made = load_drafted_generator(folders.teacher, draft, draft_length=length, device="cpu")
    found = generate_text(model, tokenizer, PROMPT, max_new_tokens=12, draft=made)
    assert (found.texts, found.num_new_tokens) == (wanted.texts, wanted.num_new_tokens)
    assert (found.choice is None) == (length is not None and which != "auto")
    assert found.speculation.length == (length or found.choice.best.length)


def test_plans_truncate_the_teacher_its_draft_or_neither(folders, wanted):
    options = {"draft_length": 2, "device": "cpu"}
    model, _, made = load_drafted_generator(folders.teacher, "self", draft_plan=folders.plan, **options)
    assert (model.config.num_iterations, made.model.config.num_iterations) == ([3, 3, 3], BUDGET)
    model, tokenizer, made = load_drafted_generator(folders.teacher, "self", plan=folders.plan, **options)
    assert (model.config.num_iterations, made.model.config.num_iterations) == (BUDGET, [0, 0, 0])
    by_hand = load_model(folders.teacher, num_iterations=BUDGET)
    truncated = generate_text(by_hand, tokenizer, PROMPT, max_new_tokens=12).texts
    for draft in (None, made):
        assert generate_text(model, tokenizer, PROMPT, max_new_tokens=12, draft=draft).texts == truncated
    assert truncated != wanted.texts
    with pytest.raises(InputError, match="plan: expected one for teacher"):
        load_generator(folders.student, plan=folders.plan, device="cpu")


NO_ROOM = "prompt: expected at most 128 tokens with the new ones"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"num_samples": 0}, "num_samples: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected from 0 to 2147483647, got -1"),
        ({"temperature": -1.0}, "temperature: expected 0 (greedy), or from 0.01 to 100, got -1.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"temperature": 1e-9}, "got 1e-09"),
        ({"temperature": 1.0, "top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p: expected above 0, at most 1, got 0.0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p: expected above 0, at most 1, got 1.1"),
        ({"top_k": 5}, "top_k: expected a temperature above 0 with it, got 5 and 0 (greedy)"),
        ({"top_p": 0.9}, "top_p: expected a temperature above 0 with it"),
        ({"num_samples": 2}, "num_samples: expected a temperature above 0 with it"),
        ({"max_new_tokens": 1000}, NO_ROOM),
        ({"max_new_tokens": 1000, "draft": Draft(None, 2)}, NO_ROOM),
        ({"temperature": 1.0, "num_samples": 2, "streamer": object()}, "expected 1 with a streamer, got 2"),
        ({"temperature": 1.0, "num_samples": 2, "draft": Draft(None)}, "expected 1 with a draft, got 2"),
    ],
)
def test_bad_values_are_refused(loaded, options, words):
    with pytest.raises(InputError) as caught:
        generate_text(*loaded, PROMPT, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(folders):
    model, _ = load_generator(folders.other_tokenizer, device="cpu")
    with pytest.raises(InputError, match=r"prompt: expected tokens below the model's vocabulary of \d+, got"):
        generate_text(model, load_tokenizer(folders.teacher), PROMPT, max_new_tokens=4)


def test_prompts_come_from_one_place(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("héllo\n", encoding="utf-8")
    assert read_prompt(None, None) == ""
    assert read_prompt("x", None) == "x"
    assert read_prompt(None, file) == "héllo\n"
    with pytest.raises(InputError, match="prompt: expected a text or a file, got both"):
        read_prompt("x", file)
    file.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="expected UTF-8 text, got another byte at 2"):
        read_prompt(None, file)


OPTIONS = ("--prompt", PROMPT, "--max-new-tokens", 12, "--device", "cpu")
DRAFTED = r"draft: length 4, [\d.]+% of \d+ tokens accepted, [\d.]+ tokens per call of the teacher\n"
MEASURED = r"draft: measured in [\d.]+ s: best is plan \[\d, \d, \d\], length \d+: .*x predicted.*; tried plan \[.*\n"


@pytest.mark.parametrize(
    ("draft", "more", "lines"),
    [
        (None, ("--stream",), ""),
        (None, ("--no-stream",), ""),
        ("student", ("--draft-length", 4, "--stream"), DRAFTED),
        ("student", ("--draft-length", 4), DRAFTED),
        ("auto", (), rf"draft: length [^\n]*\n{MEASURED}"),
    ],
)
def test_the_command_prints_text_to_stdout_speed_and_draft_to_stderr(
    folders, wanted, iiad, draft, more, lines
):
    more = more if draft is None else ("--draft", getattr(folders, draft, draft), *more)
    code, out, err = iiad("generate", folders.teacher, *OPTIONS, *more)
    assert (code, out) == (0, wanted.texts[0] + "\n")
    assert re.fullmatch(rf"\d+ new tokens, [\d.]+ tokens/s\n{lines}", err)


def test_several_samples_are_told_apart(folders, iiad):
    options = ("--temperature", 1, "--num-samples", 2, "--max-new-tokens", 4, "--device", "cpu")
    code, out, _ = iiad("generate", folders.teacher, "--prompt", PROMPT, *options)
    assert code == 0
    assert "--- sample 2 of 2 ---" in out


@pytest.mark.parametrize(
    ("model", "draft", "options", "words"),
    [
        (
            "owner/nowhere",
            None,
            ("--temperature", -1),
            "temperature: expected from 0 to 100",
        ),  # before the model
        ("teacher", "other_tokenizer", (), "draft: expected the vocabulary of"),
        ("teacher", "nowhere", (), "nowhere: no such model folder"),
        ("teacher", "self", ("--draft-length", 0), "draft_length: expected from 1 to 1,024, got 0"),
        (
            "teacher",
            "auto",
            ("--draft-plan", "plan"),
            "draft plan: expected the draft self with it, got auto",
        ),
        ("teacher", "self", ("--draft-plan", "nowhere"), "nowhere"),
        ("teacher", None, ("--prompt-file", "nowhere"), "nowhere: No such file or directory"),
        ("teacher", "self", ("--temperature", 1, "--num-samples", 2), "expected 1 with --draft, got 2"),
        ("teacher", "self", ("--max-new-tokens", 500), NO_ROOM),
        (
            "teacher",
            "self",
            ("--device", "warp"),
            "device: expected cpu, or cuda where there is one, got 'warp'",
        ),
        (
            "teacher",
            None,
            ("--draft-plan", "plan"),
            "draft plan and length: expected a draft with them, got none",
        ),
        ("teacher", None, ("--draft-length", 3), "expected a draft with them"),
        ("llama", "self", (), "draft: expected a teacher with iterations"),
        ("llama", "auto", (), "draft: expected a teacher with iterations"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folders, iiad, model, draft, options, words):
    options = [getattr(folders, str(option), option) for option in options]
    given = () if draft is None else ("--draft", getattr(folders, draft, draft))
    code, out, err = iiad("generate", getattr(folders, model, model), *given, *options)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
