"""Stage onpolicy: whose tokens a step learns from, what is asked of them, and that a run can go on."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iiad.data import TokenBlocks, load_tokenizer, make_blocks, pack, resolve_inputs
from iiad.data.labelled import CELL, LabelledCorpus
from iiad.distillation import LearnFromTeacher, LiveTeacher, distill
from iiad.distillation.continuations import Continuations
from iiad.training import RunRecord
from iiad.training.distillation_sections import DistillationSection, OnPolicySection
from iiad.training.learner import Learner
from tests.helpers import greedy, log_of, make_iiet, make_seq2seq, refused

T = 16
ALWAYS = {"fraction": 1.0, "prompt_length": 6}


class Tokenizer:
    pad_token_id = eos_token_id = bos_token_id = None


def corpus_of(rows):
    """Rows of (prompt, answer)."""
    cells = np.concatenate([np.zeros(len(prompt) + len(answer), CELL) for prompt, answer in rows])
    cells["token"] = [token for row in rows for part in row for token in part]
    cells["label"] = [label for prompt, answer in rows for label in [-100] * len(prompt) + answer]
    starts = np.cumsum([0] + [len(prompt) + len(answer) for prompt, answer in rows])
    return LabelledCorpus(cells, starts, "", ())


def text_blocks(little_text, cache_dir, folder):
    return TokenBlocks(
        pack(resolve_inputs([str(little_text)], "train"), load_tokenizer(folder), cache_dir=cache_dir), T
    )


ROWS = [([5, 9, 11], [4, 8]), ([7, 6, 5, 4, 3, 8], [9]), ([3, 4], [5, 6, 7, 8])]


def continuations(blocks, model, **fields):
    made = Continuations(OnPolicySection(max_steps=1, **fields), blocks, model.eval(), Tokenizer())
    made.draw(0, 0)
    return made


def rewrite_rows(model, **fields):
    blocks = make_blocks(corpus_of(ROWS), 64)
    return continuations(blocks, model, **{"fraction": 1.0, **fields}).rewrite(blocks.batch(range(len(ROWS))))


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.3, 0.5, 1.0])
def test_steps_with_continuations_are_spaced_evenly_and_follow_from_the_step_alone(fraction):
    made = continuations(make_blocks(corpus_of(ROWS), 64), make_iiet(), fraction=fraction)
    own = []
    for step in range(40):
        made.draw(3, step)
        own.append(made.own)
        assert abs(sum(own) - fraction * len(own)) < 1
    assert sum(own) == round(40 * fraction)


def test_continuations_are_the_students_own_by_its_plan_whatever_the_other_prompts_length():
    model = make_iiet(num_iterations=[2, 0, 1])
    batch = rewrite_rows(model, temperature=0.01)
    for row, (prompt, _) in enumerate(ROWS):
        wanted = greedy(model, torch.tensor([prompt]), 4)[0, :-1]
        assert batch["input_ids"][row, : len(wanted)].tolist() == wanted.tolist()


def test_only_positions_of_the_continuation_are_asked_and_nothing_is_labelled():
    batch = rewrite_rows(make_iiet(), max_new_tokens=3)
    length = batch["input_ids"].shape[1]
    wanted = [row * length + len(prompt) - 1 + n for row, (prompt, _) in enumerate(ROWS) for n in range(3)]
    assert batch["asked"].tolist() == wanted
    assert (batch["labels"] == -100).all()


def test_nothing_is_asked_after_the_token_that_ends_a_text():
    model = make_iiet()
    model.generation_config.eos_token_id = list(range(0, 97, 3))
    blocks = make_blocks(corpus_of([([5, 9], [3] * 30)] * 8), 64)
    batch = continuations(blocks, model, fraction=1.0).rewrite(blocks.batch(range(8)))
    length = batch["input_ids"].shape[1]
    counts = torch.bincount(batch["asked"] // length, minlength=8).tolist()
    assert len(set(counts)) > 2
    for row, count in zip(batch["input_ids"].tolist(), counts, strict=True):
        assert not any(token % 3 == 0 for token in row[2 : 1 + count])  # the last one is only asked for


def test_the_loss_is_the_divergence_at_the_continuation_alone():
    teacher, student = (make_iiet(num_iterations=2).double() for _ in range(2))
    student.set_num_iterations([0, 1, 0])
    batch = rewrite_rows(student)
    learner = Learner(
        student, LearnFromTeacher(LiveTeacher(teacher), DistillationSection(divergence="jsd"), 3)
    )
    loss, parts = learner(batch, learner.objective.signal(batch))
    divergences = []
    with torch.no_grad():
        log_p, log_q = (model(batch["input_ids"]).logits.log_softmax(-1) for model in (teacher, student))
    for row, (prompt, _) in enumerate(ROWS):
        for place in range(len(prompt) - 1, len(prompt) - 1 + 4):
            p, q = log_p[row, place].exp(), log_q[row, place].exp()
            m = (p + q) / 2
            divergences.append(((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2)
    assert loss.item() == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-9)
    assert parts["ce"].item() == 0
    loss.backward()
    assert student.lm_head.weight.grad.abs().sum() > 0


def test_text_goes_on_from_the_beginnings_of_its_blocks(teacher_folder, little_text, cache_dir):
    blocks, model = text_blocks(little_text, cache_dir, teacher_folder), make_iiet(vocab_size=300)
    given = blocks.batch(range(3))
    batch = continuations(blocks, model, fraction=1.0).rewrite(given)
    assert torch.equal(batch["input_ids"][:, : T // 2], given["input_ids"][:, : T // 2])
    assert batch["input_ids"].shape == (3, T - 1)  # nothing is asked after the last token
    other = continuations(blocks, model, fraction=1.0, prompt_length=3, max_new_tokens=20).rewrite(given)
    assert other["input_ids"].shape == (3, 3 + 20 - 1)


def test_an_encoder_decoder_makes_targets_of_the_sources(pair_folders, cache_dir):
    corpus = pack(resolve_inputs([str(pair_folders.pairs)], "train"), load_tokenizer(pair_folders.teacher))
    blocks, model = make_blocks(corpus, 64), make_seq2seq(vocab_size=320, eos_token_id=None)
    model.generation_config.decoder_start_token_id = corpus.start_token_id
    given = blocks.batch(range(4))
    batch = continuations(blocks, model, fraction=1.0, temperature=0.01).rewrite(given)
    assert torch.equal(batch["input_ids"], given["input_ids"])
    assert torch.equal(batch["decoder_input_ids"][:, 0], given["decoder_input_ids"][:, 0])
    count = given["labels"].shape[1]
    assert batch["decoder_input_ids"].shape == (4, count)
    assert batch["asked"].tolist() == list(range(4 * count))
    with torch.no_grad():
        likeliest = model(**{n: batch[n] for n in ("input_ids", "attention_mask", "decoder_input_ids")})
    assert torch.equal(likeliest.logits.argmax(-1)[:, :-1], batch["decoder_input_ids"][:, 1:])


def test_sampling_leaves_random_numbers_and_training_mode_as_they_were_and_repeats_itself():
    model, blocks = make_iiet(attention_dropout=0.5), make_blocks(corpus_of(ROWS), 64)
    made, given = continuations(blocks, model, fraction=1.0), blocks.batch(range(3))
    model.train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = made.rewrite(given), made.rewrite(given)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert model.model.layers[0].slots[0].training
    assert not torch.equal(first["input_ids"], second["input_ids"])  # another micro-batch
    torch.manual_seed(2)
    made.draw(0, 0)
    assert torch.equal(made.rewrite(given)["input_ids"], first["input_ids"])


def test_without_continuations_the_stage_is_stage_distill(distilled):
    never = {"onpolicy": {"fraction": 0.0}}
    settings = {"hidden_weight": 0.1, "training": {"seed": 0}}
    own = distilled("own", onpolicy=3, schedules=never, **settings)
    # Stages draw their data by the recipe's seed and their number, 1 and 3.
    offline = distilled("offline", distill=3, **{**settings, "training": {"seed": 2}})
    one, other = (load_file(folder / "model.safetensors") for folder in (own, offline))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("loss", "ce", "kl", "hidden"):
        assert [each[name] for each in log_of(own)] == [each[name] for each in log_of(offline)]


def test_steps_learn_from_continuations_and_from_text_in_turns_and_tell_what_they_cost(distilled, capsys):
    folder = distilled(onpolicy=4, schedules={"onpolicy": {"prompt_length": 20}})
    entries = log_of(folder, "onpolicy")
    assert [entry["ce"] > 0 for entry in entries] == [True, False, True, False]
    assert [entry["generation_share"] > 0 for entry in entries] == [False, True, False, True]
    assert ["generated_tokens_per_second" in entry for entry in entries] == [False, True, False, True]
    assert all(entry["kl"] > 0 for entry in entries)
    assert "% of the time generating" in capsys.readouterr().err


def test_a_killed_run_goes_on_bit_for_bit(teacher_folder, plan_file, lesson, tmp_path):
    recipe = lesson(
        onpolicy=4, schedules={"onpolicy": ALWAYS}, training={"save_steps": 2, "save_total_limit": None}
    )
    whole, killed, stage = tmp_path / "whole", tmp_path / "killed", "stage-3-onpolicy"
    distill(teacher_folder, plan_file, recipe, whole)
    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("checkpoint-4", "*.safetensors"))
    shutil.copytree(whole / stage / "checkpoint-2", killed / stage / "checkpoint-2", dirs_exist_ok=True)
    (killed / stage / "LATEST").write_text("checkpoint-2\n")
    record = RunRecord.load(killed / "run.json")
    record.model_copy(update={"finished": False, "results": {}}).save(killed / "run.json")
    distill(teacher_folder, plan_file, recipe, killed, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert [each["loss"] for each in log_of(whole)] == [each["loss"] for each in log_of(killed)]


BAD = [
    ({"prompt_length": 32}, {}, "onpolicy.prompt_length: expected less than a block of 32 tokens, got 32"),
    ({"max_new_tokens": 60}, {}, "onpolicy.max_new_tokens: expected at most 48, the model's positions after"),
    ({"fraction": 1.5}, {}, "onpolicy.fraction: expected less than or equal to 1, got 1.5"),
    ({"temperature": 0.0}, {}, "onpolicy.temperature: expected greater than or equal to 0.01, got 0.0"),
    ({}, {"distillation.kl_weight": 0}, "distillation.kl_weight: expected above 0, or hidden_weight: stage"),
    (
        {},
        {"distillation.signals": "signals"},
        "distillation.signals: expected null with stage onpolicy, whose",
    ),
    ({}, {"training.fsdp": "true"}, "training.fsdp: expected false with stage onpolicy, which would gather"),
    ({}, {"training.attn_implementation": "flex_attention"}, "expected sdpa, eager or null with the static"),
    ({}, {"distillation.elastic.cuts": "[0,1]"}, "onpolicy.max_steps: expected 0 with nested plans, each of"),
]


@pytest.mark.parametrize(("fields", "others", "message"), BAD)
def test_bad_input_is_one_line(
    fields, others, message, iiad, teacher_folder, plan_file, little_text, cache_dir, tmp_path
):
    given = {"max_steps": 2, **fields}
    settings = {f"distillation.onpolicy.{name}": value for name, value in given.items()}
    settings |= {f"distillation.{name}.max_steps": 0 for name in ("distill", "recover")}
    settings |= {"data.block_size": 32, "data.cache_dir": cache_dir, "distillation.check_teacher": "false"}
    settings |= {"training.per_device_train_batch_size": 2, **others}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    plan = [] if "distillation.elastic.cuts" in others else [plan_file]
    code, _, err = iiad(
        "distill", teacher_folder, *plan, "--data", little_text, "--output-dir", tmp_path / "run", *words
    )
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_rows_that_ask_for_other_tokens_than_those_that_come_next_are_refused():
    corpus = corpus_of(ROWS)
    corpus.cells["label"][9] = 44
    with refused("onpolicy.max_steps: expected 0 for rows that ask", "got 44 asked for at 3 in row 2"):
        continuations(make_blocks(corpus, 64), make_iiet(), fraction=1.0)
    with refused("onpolicy.prompt_length: expected none for labelled rows", "got 3"):
        continuations(make_blocks(corpus_of(ROWS), 64), make_iiet(), prompt_length=3)
