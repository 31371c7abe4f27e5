"""Beams, many prompts at a time and encoder-decoders: the text of the stock generate(), whatever the batch."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from iiad import InputError
from iiad.data import load_tokenizer
from iiad.generation.drafts import Draft
from iiad.generation.guards import start_token
from iiad.generation.prompting import read_prompts
from iiad.generation.searching import Search
from iiad.generation.text import generate_text, generate_texts, load_generator
from tests.helpers import make_seq2seq, refused, stir

PROMPTS = ["def push(self", "import", "for name in names:\n    print(name)", "class A:", "return x"]
BEAMS = {"max_new_tokens": 6, "num_beams": 3}


@pytest.fixture(scope="session")
def translator(folders):
    """A tiny encoder-decoder that has learnt nothing, and the teacher's tokenizer."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folders.teacher)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=5, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return stir(T5ForConditionalGeneration(config).eval(), scale=0.4), tokenizer


@pytest.fixture(params=["causal", "encoder-decoder"])
def either(request, loaded, translator):
    return loaded if request.param == "causal" else translator


def stock(model, tokenizer, prompt, **options):
    """Text of transformers' own generate() on one prompt."""
    ids = tokenizer(prompt)["input_ids"]
    reads = model.config.is_encoder_decoder
    ids = torch.tensor([[*ids, tokenizer.eos_token_id] if reads else ids])
    options = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, **options}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return tokenizer.decode(made[0], skip_special_tokens=True)


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 6}, BEAMS, {**BEAMS, "length_penalty": -2.0}], ids=str
)
def test_each_text_of_a_batch_is_what_the_stock_generate_says(either, options):
    wanted = [stock(*either, prompt, **options) for prompt in PROMPTS]
    assert len(set(wanted)) > 1
    assert generate_text(*either, PROMPTS[0], **options).texts == wanted[:1]
    for batch_size in (2, 5):
        assert generate_texts(*either, PROMPTS, batch_size=batch_size, **options).texts == wanted


def test_the_target_holds_no_source_and_counts_its_own_tokens_alone(translator):
    model, tokenizer = translator
    found = generate_text(model, tokenizer, PROMPTS[0], max_new_tokens=4)
    assert not found.texts[0].startswith(PROMPTS[0])
    assert 1 <= found.num_new_tokens <= 4


def test_an_encoder_decoder_can_be_sampled(translator):
    options = {"max_new_tokens": 6, "temperature": 1.5, "num_samples": 3}
    first, again, other = (generate_text(*translator, "x", seed=seed, **options).texts for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 0}, "num_beams: expected at least 1, got 0"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams: expected 1 when sampling, got 2"),
        ({"length_penalty": 1.0}, "length_penalty: expected several beams with it, got 1.0 and 1"),
        (
            {"num_beams": 2, "length_penalty": float("nan")},
            "length_penalty: expected from -100 to 100, got nan",
        ),
        ({"num_beams": 2, "streamer": object()}, "num_beams: expected 1 with a streamer, got 2"),
        ({"num_beams": 2, "draft": Draft(None)}, "num_beams: expected 1 with a draft, got 2"),
    ],
)
def test_bad_values_are_refused(either, options, words):
    with refused(words):
        generate_text(*either, PROMPTS[0], **options)


def test_a_draft_of_or_for_an_encoder_decoder_is_refused(translator, loaded):
    for model, draft in ((translator[0], loaded[0]), (loaded[0], translator[0])):
        with refused("draft: expected causal models, got an encoder-decoder, t5"):
            generate_text(model, loaded[1], "x", max_new_tokens=4, draft=Draft(draft))


def test_sources_and_targets_have_positions_of_their_own(translator, monkeypatch):
    model, tokenizer = translator
    num_tokens = len(tokenizer(PROMPTS[2])["input_ids"]) + 1
    monkeypatch.setattr(model.config, "max_position_embeddings", num_tokens, raising=False)
    options = {"max_new_tokens": num_tokens - 1}
    assert generate_text(model, tokenizer, PROMPTS[2], **options).num_new_tokens <= num_tokens
    with refused(f"prompt: expected at most {num_tokens} tokens, the model's positions, got"):
        generate_text(model, tokenizer, PROMPTS[2] + " x", **options)
    with refused(f"max_new_tokens: expected at most {num_tokens - 1}, the model's positions after the first"):
        generate_text(model, tokenizer, PROMPTS[1], max_new_tokens=num_tokens)


def test_logits_that_are_not_finite_are_refused(either, monkeypatch):
    head = either[0].get_output_embeddings()
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda states: forward(states) * float("nan"))
    with refused("model: expected finite logits, got nan"):
        generate_texts(*either, PROMPTS, **BEAMS)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes("a\u2028b\r\n\nc".encode())
    assert read_prompts(file) == ["a\u2028b", "", "c"]
    file.write_bytes(b"a\n")
    assert read_prompts(file) == ["a"]
    file.write_bytes(b"")
    with refused("lines.txt: expected a prompt on each line, got none"):
        read_prompts(file)


def test_search_has_the_defaults_of_generate():
    assert Search().options()["num_beams"] == 1
    assert "length_penalty" not in Search().options()
    assert Search(num_beams=4).options()["length_penalty"] == 1.0
    with pytest.raises(InputError):
        Search(max_new_tokens=0)


def test_the_command_prints_a_line_for_each_prompt(folders, iiad, loaded, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("def push(self\nimport\n")
    options = f"--prompts {file} --num-beams 3 --max-new-tokens 6 --batch-size 2 --device cpu".split()
    code, out, err = iiad("generate", folders.teacher, *options)
    texts = generate_texts(*loaded, PROMPTS[:2], **BEAMS).texts
    assert (code, out) == (0, "".join(text.replace("\n", " ") + "\n" for text in texts))
    assert "new tokens, " in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--prompts {file} --prompt x", "--prompt: expected none with --prompts, got x"),
        ("--prompts {file} --temperature 1", "--temperature: expected none with --prompts, got 1.0"),
        ("--prompts {file} --draft self", "--draft: expected none with --prompts, got self"),
        ("--prompts {file} --num-beams 0", "num_beams: expected from 1 to 1,024, got 0"),
        ("--prompts nowhere", "nowhere: No such file or directory"),
        ("--num-beams 2 --stream", "--stream: expected none with --num-beams, got True"),
        ("--num-beams 2 --draft self", "--draft: expected none with --num-beams, got self"),
        ("--num-beams 2 --temperature 1", "num_beams: expected 1 when sampling, got 2"),
        ("--length-penalty 2", "length_penalty: expected several beams with it, got 2.0 and 1"),
        ("--batch-size 2", "--batch-size: expected none without --prompts, got 2"),
    ],
)
def test_options_that_do_not_go_together_are_one_line_and_exit_code_2(
    folders, iiad, tmp_path, options, words
):
    file = tmp_path / "lines.txt"
    file.write_text("x\n")
    code, out, err = iiad("generate", folders.teacher, *options.format(file=file).split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_the_command_makes_targets_under_a_plan(pair_folders, iiad, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("def push(self\nimport\n")
    model, tokenizer = load_generator(pair_folders.teacher, plan=pair_folders.plan, device="cpu")
    wanted = generate_texts(model, tokenizer, PROMPTS[:2], **BEAMS)
    more = ("--plan", pair_folders.plan, "--num-beams", 3, "--max-new-tokens", 6, "--device", "cpu")
    code, out, err = iiad("generate", pair_folders.teacher, "--prompts", file, *more)
    assert (code, out) == (0, "".join(text.replace("\n", " ") + "\n" for text in wanted.texts))
    assert f"{wanted.num_new_tokens} new tokens" in err
    code, out, _ = iiad("generate", pair_folders.teacher, "--prompt", PROMPTS[0], *more)
    assert (code, out) == (0, wanted.texts[0] + "\n")
    code, out, err = iiad("generate", pair_folders.teacher, "--draft", "self", "--max-new-tokens", 4)
    assert (code, out) == (2, "")
    assert "draft: expected causal models, got an encoder-decoder, iiet_seq2seq" in err


def test_a_start_token_is_found_or_named():
    model = make_seq2seq()
    model.generation_config.decoder_start_token_id = None
    assert start_token(model) == model.config.decoder_start_token_id == 0
    model.generation_config.decoder_start_token_id = 9999
    with refused("generation_config: decoder_start_token_id: expected a token of the vocabulary, got 9999"):
        start_token(model)
