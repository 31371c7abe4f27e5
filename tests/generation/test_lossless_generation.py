"""Lossless mode from Python and the command line."""

import re

import pytest
import typer
from typer.testing import CliRunner

from cli.generate import generate
from iiad import InputError
from iiad.generation.drafts import Draft, self_draft
from iiad.generation.text import generate_text, load_drafted_generator, load_generator, text_streamer
from tests.helpers import BUDGET

PROMPT = "def push(self"


@pytest.fixture(scope="module")
def loaded(folders):
    return load_generator(folders.teacher, device="cpu")


@pytest.fixture(scope="module")
def wanted(loaded):
    return generate_text(*loaded, PROMPT, max_new_tokens=24)


@pytest.fixture
def command(folders):
    app = typer.Typer()
    app.command()(generate)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("which", ["self", "auto", "student", "llama", "teacher"])
@pytest.mark.parametrize("length", [None, 3])
def test_text_is_the_teachers_with_any_draft(folders, wanted, which, length):
    draft = getattr(folders, which, which)
    model, tokenizer, made = load_drafted_generator(folders.teacher, draft, draft_length=length, device="cpu")
    found = generate_text(model, tokenizer, PROMPT, max_new_tokens=24, draft=made)
    assert found.texts == wanted.texts
    assert found.num_new_tokens == wanted.num_new_tokens
    assert (found.choice is None) == (length is not None and which != "auto")
    assert found.speculation.length == (length or found.choice.best.length)


def test_a_plan_for_the_draft_and_one_for_the_teacher(folders, loaded):
    model, tokenizer, made = load_drafted_generator(
        folders.teacher, "self", draft_plan=folders.plan, draft_length=2, device="cpu"
    )
    assert made.model.config.num_iterations == BUDGET
    assert model.config.num_iterations == [3, 3, 3]
    model, _, made = load_drafted_generator(
        folders.teacher, "self", plan=folders.plan, draft_length=2, device="cpu"
    )
    assert (model.config.num_iterations, made.model.config.num_iterations) == (BUDGET, [0, 0, 0])
    truncated = generate_text(model, tokenizer, PROMPT, max_new_tokens=12).texts
    assert generate_text(model, tokenizer, PROMPT, max_new_tokens=12, draft=made).texts == truncated


def test_the_seed_decides_samples_with_a_draft_too(loaded):
    draft = Draft(self_draft(loaded[0]), 3)
    options = {"max_new_tokens": 16, "temperature": 1.5, "top_p": 0.95, "draft": draft}
    first = generate_text(*loaded, PROMPT, seed=1, **options)
    assert generate_text(*loaded, PROMPT, seed=1, **options).texts == first.texts
    assert generate_text(*loaded, PROMPT, seed=2, **options).texts != first.texts


def test_a_stream_prints_the_same_text(loaded, wanted, capsys):
    model, tokenizer = loaded
    draft = Draft(self_draft(model), 4)
    found = generate_text(
        model, tokenizer, PROMPT, max_new_tokens=24, draft=draft, streamer=text_streamer(tokenizer)
    )
    assert capsys.readouterr().out == found.texts[0] + "\n" == wanted.texts[0] + "\n"


def test_what_ends_a_text_ends_it_with_a_draft(loaded, monkeypatch):
    model = loaded[0]
    draft = Draft(self_draft(model, 3), 6)
    monkeypatch.setattr(model.generation_config, "eos_token_id", -1)
    new = generate_text(*loaded, PROMPT, max_new_tokens=16, draft=draft).speculation.tokens
    monkeypatch.setattr(model.generation_config, "eos_token_id", [new[6], new[9]])
    end = min(new.index(new[6]), new.index(new[9])) + 1
    found = generate_text(*loaded, PROMPT, max_new_tokens=16, draft=draft)
    assert found.num_new_tokens == end == generate_text(*loaded, PROMPT, max_new_tokens=16).num_new_tokens


def test_several_samples_or_a_short_context_are_refused(loaded):
    draft = Draft(self_draft(loaded[0]), 2)
    with pytest.raises(InputError, match="num_samples: found 2 with a draft; accepted: 1"):
        generate_text(*loaded, PROMPT, draft=draft, temperature=1.0, num_samples=2)
    with pytest.raises(InputError, match="1000 new tokens; accepted: at most 128 together"):
        generate_text(*loaded, PROMPT, draft=draft, max_new_tokens=1000)


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_the_command_shows_what_the_draft_did(folders, wanted, command, monkeypatch, stream):
    said = []
    monkeypatch.setattr("iiad.progress.print_status", said.append)
    options = ("--prompt", PROMPT, "--max-new-tokens", 24, "--device", "cpu", stream)
    done = command(folders.teacher, "--draft", folders.student, "--draft-length", 4, *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == wanted.texts[0] + "\n"
    assert re.fullmatch(r"\d+ new tokens, [\d.]+ tokens/s", said[0])
    assert re.fullmatch(
        r"draft: length 4, [\d.]+% of \d+ tokens accepted, [\d.]+ tokens per call of the teacher", said[1]
    )
    assert len(said) == 2
    done = command(folders.teacher, "--draft", "auto", *options)
    assert done.stdout == wanted.texts[0] + "\n"
    assert re.match(
        r"draft: measured in [\d.]+ s: best is plan \[\d, \d, \d\], length \d+: [\d.]+x predicted", said[-1]
    )
    assert "; tried plan [" in said[-1]


@pytest.mark.parametrize(
    ("draft", "options", "words"),
    [
        ("other_tokenizer", (), "has another tokenizer than"),
        ("nowhere", (), "nowhere: no such model folder"),
        ("self", ("--draft-length", 0), "draft length: found 0; accepted: at least 1"),
        ("auto", ("--draft-plan", "plan"), "draft plan: found with draft auto"),
        ("self", ("--draft-plan", "nowhere"), "nowhere"),
        ("self", ("--temperature", 1, "--num-samples", 2), "num_samples: found 2 with --draft; accepted: 1"),
        ("self", ("--max-new-tokens", 500), "500 new tokens; accepted: at most 128 together"),
        ("self", ("--device", "warp"), "device: expected cpu, or cuda where there is one, got 'warp'"),
        (None, ("--draft-length", 3), "draft plan and length: found without a draft; accepted: with --draft"),
        (None, ("--draft-plan", "plan"), "found without a draft"),
    ],
)
def test_bad_input_is_one_line(folders, command, draft, options, words):
    options = [getattr(folders, str(option), option) for option in options]
    given = () if draft is None else ("--draft", getattr(folders, draft, draft))
    done = command(folders.teacher, "--device", "cpu", *given, *options)
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("draft", ["self", "auto"])
def test_a_teacher_without_iterations_is_refused(folders, command, draft):
    done = command(folders.llama, "--draft", draft, "--device", "cpu")
    assert isinstance(done.exception, InputError)
    assert "the teacher, a llama, runs no iterations" in str(done.exception)
