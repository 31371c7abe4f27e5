"""Text from a model: what transformers' generate() says, with every value checked first."""

import pytest
import torch
import typer
from transformers import TextStreamer
from typer.testing import CliRunner

from cli.generate import generate
from iiad import InputError
from iiad.checkpoints import load_model
from iiad.data import load_tokenizer
from iiad.generation.text import generate_text, load_generator, read_prompt, text_streamer
from tests.helpers import BUDGET

PROMPT = "def push(self"


@pytest.fixture(scope="module")
def loaded(folders):
    return load_generator(folders.teacher, device="cpu")


def test_greedy_text_is_what_the_stock_generate_says(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    found = generate_text(model, tokenizer, PROMPT, max_new_tokens=12)
    assert found.texts == [tokenizer.decode(wanted[0], skip_special_tokens=True)]
    assert found.texts[0].startswith(PROMPT)
    assert found.num_new_tokens == wanted.shape[1] - ids.shape[1]
    assert found.tokens_per_second > 0


def test_a_plan_truncates_the_model(folders, loaded):
    truncated, _ = load_generator(folders.teacher, plan=folders.plan, device="cpu")
    by_hand = load_model(folders.teacher, num_iterations=BUDGET)
    tokenizer = loaded[1]
    assert truncated.config.num_iterations == BUDGET
    found = generate_text(truncated, tokenizer, PROMPT, max_new_tokens=12)
    assert found.texts == generate_text(by_hand, tokenizer, PROMPT, max_new_tokens=12).texts
    assert found.texts != generate_text(*loaded, PROMPT, max_new_tokens=12).texts
    with pytest.raises(InputError, match="plan: was made for teacher"):
        load_generator(folders.student, plan=folders.plan, device="cpu")


def test_the_seed_decides_the_samples_and_the_callers_random_state_stays(loaded):
    options = {"max_new_tokens": 10, "temperature": 1.5, "num_samples": 3}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = generate_text(*loaded, PROMPT, seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert generate_text(*loaded, PROMPT, seed=1, **options).texts == first.texts
    assert generate_text(*loaded, PROMPT, seed=2, **options).texts != first.texts
    assert len(set(first.texts)) > 1


def test_top_k_of_one_is_greedy_and_no_top_k_leaves_every_token(loaded, monkeypatch):
    model, tokenizer = loaded
    greedy = generate_text(model, tokenizer, PROMPT, max_new_tokens=10).texts
    assert generate_text(model, tokenizer, PROMPT, max_new_tokens=10, temperature=3, top_k=1).texts == greedy
    assert (
        generate_text(model, tokenizer, PROMPT, max_new_tokens=10, temperature=3, top_p=1e-6).texts == greedy
    )
    seen = {}
    original = model.generate
    monkeypatch.setattr(
        model, "generate", lambda *ids, **options: seen.update(options) or original(*ids, **options)
    )
    generate_text(model, tokenizer, PROMPT, max_new_tokens=2, temperature=3)
    assert (seen["top_k"], seen["top_p"]) == (0, 1.0)


def test_an_empty_prompt_starts_where_documents_do(loaded):
    model, tokenizer = loaded
    start = torch.tensor([[tokenizer.bos_token_id]])
    wanted = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=8, pad_token_id=0)
    found = generate_text(model, tokenizer, "", max_new_tokens=8)
    assert found.texts == [tokenizer.decode(wanted[0], skip_special_tokens=True)]


def test_a_sample_ends_with_the_token_that_ends_a_text(loaded, monkeypatch):
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": -1}
    new = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
    monkeypatch.setattr(model.generation_config, "eos_token_id", [new[5]])
    assert generate_text(model, tokenizer, PROMPT, max_new_tokens=12).num_new_tokens == new.index(new[5]) + 1


def test_padding_of_samples_that_ended_early_is_not_counted(loaded, monkeypatch):
    model, tokenizer = loaded
    num_prompt = len(tokenizer(PROMPT)["input_ids"])
    prompt = tokenizer(PROMPT)["input_ids"]
    rows = torch.tensor([[*prompt, 5, 0, 0, 0], [*prompt, 5, 6, 7, 8]])
    monkeypatch.setattr(model, "generate", lambda *ids, **options: rows)
    found = generate_text(model, tokenizer, PROMPT, max_new_tokens=4, temperature=1, num_samples=2)
    assert found.num_new_tokens == 2 + 4
    assert rows.shape[1] == num_prompt + 4


def test_a_stream_prints_the_text_that_is_returned(loaded, capsys):
    model, tokenizer = loaded
    streamer = text_streamer(tokenizer)
    assert isinstance(streamer, TextStreamer)
    found = generate_text(model, tokenizer, PROMPT, max_new_tokens=12, streamer=streamer)
    assert capsys.readouterr().out == found.texts[0] + "\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: found 0; accepted: at least 1"),
        ({"num_samples": 0}, "num_samples: found 0"),
        ({"seed": -1}, "seed: found -1"),
        ({"temperature": -1.0}, "temperature: found -1.0; accepted: 0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": 1e-9}, "temperature: found 1e-09"),
        ({"temperature": 1.0, "top_k": 0}, "top_k: found 0; accepted: at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p: found 0.0; accepted: above 0, at most 1"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p: found 1.1"),
        ({"top_k": 5}, "top_k: found 5 with temperature 0 (greedy)"),
        ({"top_p": 0.9}, "top_p: found 0.9 with temperature 0"),
        ({"num_samples": 2}, "num_samples: found 2 with temperature 0"),
        ({"max_new_tokens": 1000}, "prompt tokens + 1000 new tokens; accepted: at most 128 together"),
        (
            {"temperature": 1.0, "num_samples": 2, "streamer": object()},
            "num_samples: found 2 with a streamer",
        ),
    ],
)
def test_bad_values_are_refused(loaded, options, words):
    with pytest.raises(InputError) as caught:
        generate_text(*loaded, PROMPT, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(folders, loaded):
    model, _ = load_generator(folders.other_tokenizer, device="cpu")
    with pytest.raises(
        InputError, match=r"its tokenizer gives token \d+; accepted: below the model's vocabulary"
    ):
        generate_text(model, load_tokenizer(folders.teacher), PROMPT, max_new_tokens=4)


def test_prompts_come_from_one_place(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("héllo\n", encoding="utf-8")
    assert read_prompt(None, None) == ""
    assert read_prompt("x", None) == "x"
    assert read_prompt(None, file) == "héllo\n"
    with pytest.raises(InputError, match="found both a text and a file"):
        read_prompt("x", file)
    with pytest.raises(InputError, match="No such file"):
        read_prompt(None, tmp_path / "nothing")
    file.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="found byte 2 that is not UTF-8"):
        read_prompt(None, file)


@pytest.fixture
def command(folders):
    app = typer.Typer()
    app.command()(generate)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_text_to_stdout_and_speed_to_stderr(folders, loaded, command):
    wanted = generate_text(*loaded, PROMPT, max_new_tokens=8).texts[0]
    for stream in ("--stream", "--no-stream"):
        done = command(folders.teacher, "--prompt", PROMPT, "--max-new-tokens", 8, "--device", "cpu", stream)
        assert done.exit_code == 0, done.output
        assert done.stdout == wanted + "\n"


def test_several_samples_are_told_apart(folders, command):
    options = ("--temperature", 1, "--num-samples", 2, "--max-new-tokens", 4, "--device", "cpu")
    done = command(folders.teacher, "--prompt", PROMPT, *options)
    assert done.exit_code == 0, done.output
    assert "--- sample 2 of 2 ---" in done.stdout


def test_bad_values_are_refused_before_the_model_is_loaded(command):
    done = command("nowhere/at/all", "--temperature", -1)
    assert "temperature: found -1.0" in str(done.exception)
    assert "iiad generate student" in " ".join(command("--help").output.split())
